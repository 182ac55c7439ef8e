package runtime

import (
	goruntime "runtime"
	"strconv"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/seccomp"
)

// filters remembers compiled profiles: nearly all containers have one of a few, and to compile one takes longer
// than all else of a program. A filter is never changed.
var filters = filterCache{byProfile: map[string]seccomp.Filter{}}

type filterCache struct {
	sync.Mutex
	byProfile map[string]seccomp.Filter
}

// maxFilters bounds the cache. A profile and its filter are about 10 KB.
const maxFilters = 8

// compileFilter compiles a seccomp profile for this machine.
func compileFilter(profile *specs.LinuxSeccomp) (seccomp.Filter, error) {
	key := profileKey(profile)
	filters.Lock()
	f, ok := filters.byProfile[key]
	filters.Unlock()
	if ok {
		return f, nil
	}
	f, err := seccomp.Compile(profile, goruntime.GOARCH)
	if err != nil {
		return f, errs.With(errs.Invalid, err)
	}
	filters.Lock()
	defer filters.Unlock()
	if len(filters.byProfile) >= maxFilters {
		clear(filters.byProfile)
	}
	filters.byProfile[key] = f
	return f, nil
}

// profileKey is the whole profile as text: two profiles have the same only when they are the same.
func profileKey(p *specs.LinuxSeccomp) string {
	if p == nil {
		return ""
	}
	k := key(make([]byte, 0, 8<<10))
	k.text(string(p.DefaultAction))
	k.optional(p.DefaultErrnoRet)
	k.number(uint64(len(p.Architectures)))
	for _, a := range p.Architectures {
		k.text(string(a))
	}
	k.number(uint64(len(p.Flags)))
	for _, f := range p.Flags {
		k.text(string(f))
	}
	k.text(p.ListenerPath)
	k.text(p.ListenerMetadata)
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		k.number(uint64(len(s.Names)))
		for _, n := range s.Names {
			k.text(n)
		}
		k.text(string(s.Action))
		k.optional(s.ErrnoRet)
		k.number(uint64(len(s.Args)))
		for _, a := range s.Args {
			k.number(uint64(a.Index))
			k.number(a.Value)
			k.number(a.ValueTwo)
			k.text(string(a.Op))
		}
	}
	return string(k)
}

// key collects fields so that each is told from the next: a text has its length before it.
type key []byte

func (k *key) text(s string) {
	k.number(uint64(len(s)))
	*k = append(*k, s...)
}

func (k *key) number(n uint64) { *k = append(strconv.AppendUint(*k, n, 10), ',') }

func (k *key) optional(n *uint) {
	if n == nil {
		*k = append(*k, '-')
		return
	}
	k.number(uint64(*n))
}
