package cgroup

import (
	"strconv"
	"strings"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Detail is what v1 knows beside Stats.
type Detail struct {
	PerCPU, PerCPUUser, PerCPUSystem []uint64          // nanoseconds by processor
	CPUSet                           map[string]string // files of the cpuset controller, without its name
	Memory, Swap, Kernel, TCP        Counter           // Swap: of memory and swap
}

// Counter is one of the memory controller's counters, in bytes: a limit that is none is the kernel's largest.
type Counter struct{ Limit, Usage, Peak, Failures uint64 }

// Detail reads the group's; nil on v2. What the kernel does not have, or has on v2 beside v1, is left out.
func (g *Group) Detail() (*Detail, error) {
	if g.Mode() == V2 {
		return nil, nil
	}
	out := &Detail{CPUSet: map[string]string{}}
	for controller, read := range map[string]func(dir) error{"cpuacct": out.cpuacct, "cpuset": out.cpuset, "memory": out.memory} {
		d, err := g.controller(controller)
		if errs.Is(err, errs.Unsupported) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = read(d)
		d.close()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (o *Detail) cpuacct(d dir) error {
	for file, where := range map[string]*[]uint64{"cpuacct.usage_percpu": &o.PerCPU, "cpuacct.usage_percpu_user": &o.PerCPUUser, "cpuacct.usage_percpu_sys": &o.PerCPUSystem} {
		text, err := d.read(file)
		if unset(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, f := range strings.Fields(text) {
			n, err := strconv.ParseUint(f, 10, 64)
			if err != nil {
				return err
			}
			*where = append(*where, n)
		}
	}
	return nil
}

func (o *Detail) cpuset(d dir) error {
	for _, name := range []string{
		"cpus", "mems", "cpu_exclusive", "mem_exclusive", "mem_hardwall", "memory_migrate", "memory_spread_page", "memory_spread_slab", "memory_pressure",
		"sched_load_balance", "sched_relax_domain_level",
	} {
		text, err := d.read("cpuset." + name)
		if err == nil {
			o.CPUSet[name] = strings.TrimSpace(text)
		} else if !unset(err) {
			return err
		}
	}
	return nil
}

func (o *Detail) memory(d dir) error {
	for part, c := range map[string]*Counter{"": &o.Memory, "memsw.": &o.Swap, "kmem.": &o.Kernel, "kmem.tcp.": &o.TCP} {
		part = "memory." + part
		if err := d.numbers(map[string]*uint64{
			part + "limit_in_bytes": &c.Limit, part + "usage_in_bytes": &c.Usage, part + "max_usage_in_bytes": &c.Peak, part + "failcnt": &c.Failures,
		}); err != nil {
			return err
		}
	}
	return nil
}
