// Package seccomp compiles the seccomp section of an OCI configuration into the classic BPF program that
// seccomp(2) loads.
//
// The program is a binary search over the ranges of system call numbers that share a verdict: the kernel
// runs a filter once for every number of the table when it is loaded (its cache of constant verdicts), so
// short paths are what makes loading cheap. What a profile means is libseccomp's and runc's reading of it:
// names nobody knows are ignored, the first unconditional rule of a call decides, and a call newer than
// every one the profile names answers ENOSYS, not the default action, so that a C library falls back.
//
// The package imports only x/sys and the runtime-spec types.
package seccomp

import (
	"encoding/binary"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:generate go run gen.go

// MaxInsns is the longest filter the kernel takes (BPF_MAXINSNS).
const MaxInsns = 4096

// Filter is a compiled profile. The zero Filter means that seccomp is off.
type Filter struct {
	Insns []unix.SockFilter
	// Flags are those of seccomp(SECCOMP_SET_MODE_FILTER): SECCOMP_FILTER_FLAG_LOG, SPEC_ALLOW and, for a
	// filter with SCMP_ACT_NOTIFY, NEW_LISTENER and WAIT_KILLABLE_RECV. Never TSYNC: who loads a filter
	// here has one thread.
	Flags uint
	// Notify reports that seccomp(2) returns a listener, which belongs to the agent at ListenerPath,
	// together with ListenerMetadata.
	Notify           bool
	ListenerPath     string
	ListenerMetadata string
}

// Off reports that there is nothing to load.
func (f Filter) Off() bool { return len(f.Insns) == 0 }

// Bytes returns the instructions as the kernel reads them from memory (struct sock_filter of a
// little-endian machine, 8 bytes each).
func (f Filter) Bytes() []byte {
	b := make([]byte, 0, 8*len(f.Insns))
	for _, in := range f.Insns {
		b = binary.LittleEndian.AppendUint16(b, in.Code)
		b = append(b, in.Jt, in.Jf)
		b = binary.LittleEndian.AppendUint32(b, in.K)
	}
	return b
}

// Compile translates a profile for a machine of the given GOARCH: amd64 (with SCMP_ARCH_X86 and X32 where
// the profile lists them) or arm64 (with SCMP_ARCH_ARM). The machine's own architecture is always part of
// the filter; a call made through one that the profile does not list kills the process. A nil profile, or
// one without default action and rules, is the zero Filter. It does not look at the running kernel.
func Compile(p *specs.LinuxSeccomp, goarch string) (Filter, error) {
	if p == nil || p.DefaultAction == "" && len(p.Syscalls) == 0 {
		return Filter{}, nil
	}
	m, ok := machineOf(goarch)
	if !ok {
		return Filter{}, fmt.Errorf("seccomp: no system call table for architecture %q", goarch)
	}
	prof, err := read(p)
	if err != nil {
		return Filter{}, fmt.Errorf("seccomp: %w", err)
	}
	abis, err := m.listed(p.Architectures)
	if err != nil {
		return Filter{}, fmt.Errorf("seccomp: %w", err)
	}
	f := Filter{Insns: prof.program(abis), Flags: prof.flags, Notify: prof.notify}
	if len(f.Insns) > MaxInsns {
		return Filter{}, fmt.Errorf("seccomp: the profile compiles to %d instructions, the kernel takes %d", len(f.Insns), MaxInsns)
	}
	if f.Notify {
		f.ListenerPath, f.ListenerMetadata = p.ListenerPath, p.ListenerMetadata
	}
	return f, nil
}
