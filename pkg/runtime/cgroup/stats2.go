package cgroup

import (
	"strconv"
	"strings"
)

func (s *Stats) cpu2(d dir) error {
	return d.pairs("cpu.stat", func(k string, v uint64) {
		switch k {
		case "usage_usec":
			s.CPU.Usage = v * 1000
		case "user_usec":
			s.CPU.User = v * 1000
		case "system_usec":
			s.CPU.System = v * 1000
		case "nr_periods":
			s.CPU.Periods = v
		case "nr_throttled":
			s.CPU.Throttled = v
		case "throttled_usec":
			s.CPU.ThrottledTime = v * 1000
		case "nr_bursts":
			s.CPU.Bursts = v
		case "burst_usec":
			s.CPU.BurstTime = v * 1000
		}
	})
}

func (s *Stats) memory2(d dir) error {
	m := &s.Memory
	if err := d.numbers(map[string]*uint64{
		"memory.current": &m.Usage, "memory.max": &m.Limit, "memory.peak": &m.Peak,
		"memory.swap.current": &m.SwapUsage, "memory.swap.max": &m.SwapLimit,
	}); err != nil {
		return err
	}
	var slab, stacks, tables uint64
	err := d.pairs("memory.stat", func(k string, v uint64) {
		switch k {
		case "file":
			m.Cache = v
		case "anon":
			m.RSS = v
		case "file_mapped":
			m.Mapped = v
		case "inactive_file":
			m.InactiveFile = v
		case "active_file":
			m.ActiveFile = v
		case "pgfault":
			m.Faults = v
		case "pgmajfault":
			m.MajorFaults = v
		case "kernel":
			m.Kernel = v
		case "slab":
			slab = v
		case "kernel_stack":
			stacks = v
		case "pagetables":
			tables = v
		}
	})
	if err != nil {
		return err
	}
	if m.Kernel == 0 { // before Linux 5.18 there was no sum
		m.Kernel = slab + stacks + tables
	}
	m.WorkingSet = m.Usage - min(m.Usage, m.InactiveFile)
	return d.pairs("memory.events", func(k string, v uint64) {
		switch k {
		case "max":
			m.Failures = v
		case "oom_kill":
			m.OOMKills = v
		}
	})
}

// io2 reads lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func (s *Stats) io2(d dir) error {
	text, err := d.read("io.stat")
	if err != nil {
		if unset(err) {
			return nil
		}
		return err
	}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 2 {
			continue
		}
		dev := s.IO.device(w[0])
		if dev == nil {
			continue
		}
		for _, kv := range w[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, _ := strconv.ParseUint(v, 10, 64)
			switch k {
			case "rbytes":
				dev.ReadBytes = n
			case "wbytes":
				dev.WriteBytes = n
			case "rios":
				dev.Reads = n
			case "wios":
				dev.Writes = n
			}
		}
	}
	return nil
}

func (s *Stats) hugetlb2(d dir) error {
	for _, size := range hugePageSizes() {
		h := HugetlbStats{PageSize: size, Limit: Unlimited}
		if err := d.numbers(map[string]*uint64{"hugetlb." + size + ".current": &h.Usage, "hugetlb." + size + ".max": &h.Limit}); err != nil {
			return err
		}
		if err := d.pairs("hugetlb."+size+".events", func(k string, v uint64) {
			if k == "max" {
				h.Failure = v
			}
		}); err != nil {
			return err
		}
		s.Hugetlb = append(s.Hugetlb, h)
	}
	return nil
}
