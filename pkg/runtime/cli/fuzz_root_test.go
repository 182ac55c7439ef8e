//go:build root

package cli

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// hostile are values that a field of a configuration may be given instead of its own.
var hostile = []any{
	nil, true, -1.0, 0.0, 1.0, 1e308, 4294967295.0, 4294967296.0, -9223372036854775808.0, 18446744073709551615.0, 0.5, "", ".", "..", "/", "//", "a\x00b", "\n", "../../../../../../tmp/x",
	"/proc", "/proc/self/fd/3", "/proc/1/root", "/dev", "/dev/null", "/sys", "/etc/passwd", "proc", "tmpfs", "bind", "cgroup", "overlay", "a", "c", "rwm", "mount", "user", "pid", "time",
	strings.Repeat("x", 5000), strings.Repeat("../", 2000), "%s%n", []any{}, map[string]any{}, []any{nil}, []any{""}, []any{"rbind", "ro", "rshared", "idmap", "tmpcopyup", "mode=7777"},
	[]any{map[string]any{}}, []any{[]any{[]any{}}}, map[string]any{"": nil}, "SCMP_ACT_KILL", "CAP_SYS_ADMIN", "RLIMIT_NOFILE", "0-99999", "0,1,,2", "SCHED_DEADLINE", "/bin/true",
}

// place is a value in a document.
type place struct {
	now any
	set func(any)
}

// places are all values in a document that are in objects or lists. Objects are walked in the order of their keys.
func places(v any, out *[]place) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			*out = append(*out, place{v[k], func(x any) { v[k] = x }}, place{nil, func(any) { delete(v, k) }})
			places(v[k], out)
		}
	case []any:
		for i := range v {
			*out = append(*out, place{v[i], func(x any) { v[i] = x }})
			places(v[i], out)
		}
	}
}

// spoil changes one value of a document, most often to another of its kind.
func spoil(r *rand.Rand, doc any) {
	var all []place
	places(doc, &all)
	p := all[r.IntN(len(all))]
	for range 50 {
		x := hostile[r.IntN(len(hostile))]
		if reflect.TypeOf(x) == reflect.TypeOf(p.now) || r.IntN(40) == 0 {
			p.set(x)
			return
		}
	}
}

// full is a configuration that has something of everything, a volume of source too.
func full(source string) *specs.Spec {
	s := example()
	n, i, u, mode := uint32(5), 3, uint64(7), os.FileMode(0o600)
	hook := []specs.Hook{{Path: "/bin/true", Args: []string{"true"}, Env: []string{"A=b"}, Timeout: &i}}
	s.Hooks = &specs.Hooks{CreateRuntime: hook, CreateContainer: hook, StartContainer: hook, Poststart: hook, Poststop: hook}
	s.Annotations = map[string]string{"a": "b"}
	p := s.Process
	p.Terminal, p.Args = false, []string{"true"}
	p.User = specs.User{UID: n, GID: n, AdditionalGids: []uint32{n}, Umask: &n}
	p.OOMScoreAdj, p.IOPriority = &i, &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 1}
	p.Scheduler, p.ExecCPUAffinity = &specs.Scheduler{Policy: specs.SchedBatch}, &specs.CPUAffinity{Initial: "0", Final: "0"}
	l := s.Linux
	l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace}, specs.LinuxNamespace{Type: specs.TimeNamespace})
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 65536}}
	l.UIDMappings, l.GIDMappings = ids, ids
	l.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
	l.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "7"}
	l.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &n, GID: &n}}
	l.Personality, l.RootfsPropagation = &specs.LinuxPersonality{Domain: specs.PerLinux}, "rslave"
	l.Resources.CPU, l.Resources.BlockIO = &specs.LinuxCPU{Shares: &u, Cpus: "0"}, &specs.LinuxBlockIO{}
	l.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"mkdir"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 1, Value: 2, Op: specs.OpMaskedEqual}}}}}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: source, Options: []string{"rbind", "ro", "rslave"}, UIDMappings: ids, GIDMappings: ids})
	return s
}

// TestHostileSpecs runs configurations with fields that no one should write. Whatever becomes of the container,
// the runtime says so in one line, nothing outside has changed, and nothing is left. CRI_FUZZ_ROUNDS sets how many
// are tried, CRI_FUZZ_SEED which.
func TestHostileSpecs(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("CRI_FUZZ_ROUNDS"))
	seed, _ := strconv.ParseUint(os.Getenv("CRI_FUZZ_SEED"), 10, 64)
	if rounds == 0 {
		rounds = 40
	}
	b := newBench(t)
	o := newOutside(t)
	whole, err := json.Marshal(full(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for round := range rounds {
		r := rand.New(rand.NewPCG(seed, uint64(round)))
		var doc map[string]any
		if err := json.Unmarshal(whole, &doc); err != nil {
			t.Fatal(err)
		}
		for range r.IntN(4) {
			spoil(r, doc)
		}
		doc["root"] = map[string]any{"path": "rootfs"} // the one thing that has to be right: what is written to
		if l, ok := doc["linux"].(map[string]any); ok {
			l["cgroupsPath"] = b.cgroup + "/c1"
		}
		text, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if r.IntN(20) == 0 {
			text = text[:r.IntN(len(text))]
		}
		if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		res := b.do("run", "--bundle", b.bundle, "c1")
		if res.code == 0 {
			ran++
		}
		said := strings.TrimSpace(res.err)
		if os.Getenv("CRI_FUZZ_SHOW") != "" {
			t.Logf("%d %s", res.code, said)
		}
		if strings.Contains(said, "goroutine ") || strings.Contains(said, "panic") || res.code == 1 && said == "" || res.code < 0 || res.code == 2 {
			t.Errorf("round %d: exit %d: %s\n%s", round, res.code, said, text)
		}
		b.ok("delete", "--force", "c1")
		b.leftovers()
		o.check()
		if t.Failed() {
			t.Fatalf("CRI_FUZZ_SEED=%d, round %d: %s\n%s", seed, round, said, text)
		}
	}
	t.Logf("%d of %d ran", ran, rounds)
	if ran == 0 && rounds >= 40 {
		t.Error("none ran: what is spoiled here is wrong to begin with")
	}
}
