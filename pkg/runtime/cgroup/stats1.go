package cgroup

import (
	"strconv"
	"strings"
)

func (s *Stats) cpu1(d dir) error {
	return d.pairs("cpu.stat", func(k string, v uint64) {
		switch k {
		case "nr_periods":
			s.CPU.Periods = v
		case "nr_throttled":
			s.CPU.Throttled = v
		case "throttled_time":
			s.CPU.ThrottledTime = v
		case "nr_bursts":
			s.CPU.Bursts = v
		case "burst_time":
			s.CPU.BurstTime = v
		}
	})
}

func (s *Stats) cpuacct(d dir) error {
	return d.numbers(map[string]*uint64{
		"cpuacct.usage": &s.CPU.Usage, "cpuacct.usage_user": &s.CPU.User, "cpuacct.usage_sys": &s.CPU.System,
	})
}

func (s *Stats) memory1(d dir) error {
	m := &s.Memory
	var memsw uint64
	if err := d.numbers(map[string]*uint64{
		"memory.usage_in_bytes": &m.Usage, "memory.limit_in_bytes": &m.Limit, "memory.max_usage_in_bytes": &m.Peak,
		"memory.failcnt": &m.Failures, "memory.kmem.usage_in_bytes": &m.Kernel,
		"memory.memsw.usage_in_bytes": &memsw, "memory.memsw.limit_in_bytes": &m.SwapLimit,
	}); err != nil {
		return err
	}
	if m.Limit >= unlimited1 {
		m.Limit = Unlimited
	}
	if m.SwapLimit >= unlimited1 {
		m.SwapLimit = Unlimited
	}
	err := d.pairs("memory.stat", func(k string, v uint64) {
		switch k {
		case "total_cache":
			m.Cache = v
		case "total_rss":
			m.RSS = v
		case "total_mapped_file":
			m.Mapped = v
		case "total_inactive_file":
			m.InactiveFile = v
		case "total_active_file":
			m.ActiveFile = v
		case "total_pgfault":
			m.Faults = v
		case "total_pgmajfault":
			m.MajorFaults = v
		case "total_swap":
			m.SwapUsage = v
		}
	})
	if err != nil {
		return err
	}
	if m.SwapUsage == 0 && memsw > m.Usage {
		m.SwapUsage = memsw - m.Usage
	}
	m.WorkingSet = m.Usage - min(m.Usage, m.InactiveFile)
	m.OOMKills, err = d.oomKills()
	return err
}

// unlimited1 is where v1's limits begin to mean none: the largest number of whole pages that fits.
const unlimited1 = 1<<63 - 1<<16

func (s *Stats) blkio(d dir) error {
	bytes, ops := "blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"
	if !d.has(bytes) {
		bytes, ops = "blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced"
	}
	err := s.blkioFile(d, bytes, func(dev *IODevice, op string, v uint64) {
		switch op {
		case "Read":
			dev.ReadBytes = v
		case "Write":
			dev.WriteBytes = v
		}
	})
	if err != nil {
		return err
	}
	return s.blkioFile(d, ops, func(dev *IODevice, op string, v uint64) {
		switch op {
		case "Read":
			dev.Reads = v
		case "Write":
			dev.Writes = v
		}
	})
}

// blkioFile reads lines "8:0 Read 4096"; the sum without a device is left out.
func (s *Stats) blkioFile(d dir, file string, set func(*IODevice, string, uint64)) error {
	text, err := d.read(file)
	if err != nil {
		if unset(err) {
			return nil
		}
		return err
	}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) != 3 {
			continue
		}
		if v, err := strconv.ParseUint(w[2], 10, 64); err == nil {
			if dev := s.IO.device(w[0]); dev != nil {
				set(dev, w[1], v)
			}
		}
	}
	return nil
}

// device finds or adds the device "major:minor"; nil for what is not one.
func (s *IOStats) device(name string) *IODevice {
	a, b, ok := strings.Cut(name, ":")
	major, err1 := strconv.ParseUint(a, 10, 64)
	minor, err2 := strconv.ParseUint(b, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return nil
	}
	for i := range s.Devices {
		if s.Devices[i].Major == major && s.Devices[i].Minor == minor {
			return &s.Devices[i]
		}
	}
	s.Devices = append(s.Devices, IODevice{Major: major, Minor: minor})
	return &s.Devices[len(s.Devices)-1]
}

func (s *Stats) hugetlb1(d dir) error {
	for _, size := range hugePageSizes() {
		h := HugetlbStats{PageSize: size, Limit: Unlimited}
		if err := d.numbers(map[string]*uint64{
			"hugetlb." + size + ".usage_in_bytes": &h.Usage, "hugetlb." + size + ".max_usage_in_bytes": &h.Peak,
			"hugetlb." + size + ".limit_in_bytes": &h.Limit, "hugetlb." + size + ".failcnt": &h.Failure,
		}); err != nil {
			return err
		}
		if h.Limit >= unlimited1 {
			h.Limit = Unlimited
		}
		s.Hugetlb = append(s.Hugetlb, h)
	}
	return nil
}
