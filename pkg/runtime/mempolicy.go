package runtime

import (
	"math/bits"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// memoryModes are the kernel's numbers of memory policies (linux/mempolicy.h), and whether they take nodes.
var memoryModes = []struct {
	name         specs.MemoryPolicyModeType
	nr           uint64
	needs, takes bool
}{
	{specs.MpolDefault, 0, false, false}, {specs.MpolPreferred, 1, false, true}, {specs.MpolBind, 2, true, true}, {specs.MpolInterleave, 3, true, true},
	{specs.MpolLocal, 4, false, false}, {specs.MpolPreferredMany, 5, true, true}, {specs.MpolWeightedInterleave, 6, true, true},
}

// memoryFlags are the bits that are added to the mode.
var memoryFlags = []struct {
	name specs.MemoryPolicyFlagType
	bit  uint64
}{
	{specs.MpolFStaticNodes, 1 << 15}, {specs.MpolFRelativeNodes, 1 << 14}, {specs.MpolFNumaBalancing, 1 << 13},
}

// MemoryPolicies are the names of memory policies and of their flags known here.
func MemoryPolicies() (modes, flags []string) {
	for _, m := range memoryModes {
		modes = append(modes, string(m.name))
	}
	for _, f := range memoryFlags {
		flags = append(flags, string(f.name))
	}
	return modes, flags
}

// memoryPolicy adds the NUMA policy that the process and all it makes have.
func (c *compiler) memoryPolicy(p *specs.LinuxMemoryPolicy) error {
	if p == nil {
		return nil
	}
	mode, mask, err := parseMemoryPolicy(p)
	if err != nil {
		return err
	}
	c.p.Subject("set the memory policy " + string(p.Mode))
	if mask == nil {
		c.p.Call(unix.SYS_SET_MEMPOLICY, num(mode), nilp, num(0))
		return nil
	}
	c.p.Call(unix.SYS_SET_MEMPOLICY, num(mode), c.p.Bytes(mask), num(8*len(mask)+1)) // the kernel takes one bit less
	return nil
}

func parseMemoryPolicy(p *specs.LinuxMemoryPolicy) (mode uint64, mask []byte, err error) {
	at := -1
	for i, m := range memoryModes {
		if m.name == p.Mode {
			at = i
		}
	}
	if at < 0 {
		return 0, nil, errs.New(errs.Invalid, "invalid memory policy mode %q", p.Mode)
	}
	m := memoryModes[at]
	mode = m.nr
	for _, name := range p.Flags {
		bit := uint64(0)
		for _, f := range memoryFlags {
			if f.name == name {
				bit = f.bit
			}
		}
		if bit == 0 {
			return 0, nil, errs.New(errs.Invalid, "invalid memory policy flag %q", name)
		}
		mode |= bit
	}
	const exclusive = 1<<15 | 1<<14
	switch nodes := strings.TrimSpace(p.Nodes); {
	case mode&exclusive == exclusive:
		return 0, nil, errs.New(errs.Invalid, "memoryPolicy: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other")
	case nodes == "" && m.needs:
		return 0, nil, errs.New(errs.Invalid, "memory policy mode requires at least one node but got 0: %s", p.Mode)
	case nodes == "":
		return mode, nil, nil
	}
	all, err := cpuMask(p.Nodes)
	if err != nil {
		return 0, nil, errs.New(errs.Invalid, "invalid memory policy nodes %q: no list of numbers", p.Nodes)
	}
	if !m.takes {
		n := 0
		for _, b := range all {
			n += bits.OnesCount8(b)
		}
		return 0, nil, errs.New(errs.Invalid, "memory policy mode requires 0 nodes but got %d: %s", n, p.Mode)
	}
	const most = 1024 / 8 // MAX_NUMNODES of the largest kernels
	for _, b := range all[most:] {
		if b != 0 {
			return 0, nil, errs.New(errs.Invalid, "invalid memory policy nodes %q: the kernel knows %d at most", p.Nodes, most*8)
		}
	}
	return mode, all[:most], nil
}

// setPersonality adds the execution domain.
func (c *compiler) setPersonality(p *specs.LinuxPersonality) error {
	if p == nil {
		return nil
	}
	if len(p.Flags) > 0 {
		c.warn("personality: no flags are supported, as the specification has none: %q", p.Flags)
	}
	const linux, linux32 = 0, 8
	var domain uint64
	switch p.Domain {
	case specs.PerLinux:
		domain = linux
	case specs.PerLinux32:
		domain = linux32
	default:
		return errs.New(errs.Invalid, "personality: domain %q is neither LINUX nor LINUX32", p.Domain)
	}
	c.p.Subject("set the personality")
	c.p.Call(unix.SYS_PERSONALITY, num(domain))
	return nil
}
