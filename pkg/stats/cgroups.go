package stats

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// HostCgroups measures the cgroups of the machine.
type HostCgroups struct{ Host *cgroup.Host }

// Usage reads one group. It implements Cgroups.
func (h HostCgroups) Usage(path string) (*Usage, error) {
	g, err := h.Host.Open(path)
	if err != nil {
		return nil, err
	}
	s, err := g.Stats()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, errs.With(errs.NotFound, err)
	}
	if err != nil {
		return nil, err
	}
	return usageOf(s, h.memoryOnV1()), nil
}

// Pids lists the processes of a group and of those below it. It implements Cgroups.
func (h HostCgroups) Pids(path string) ([]int, error) {
	g, err := h.Host.Open(path)
	if err != nil {
		return nil, err
	}
	return g.Pids()
}

func (h HostCgroups) memoryOnV1() bool {
	return slices.ContainsFunc(h.Host.Hierarchies(), func(t cgroup.Hierarchy) bool {
		return !t.Unified && slices.Contains(t.Controllers, "memory")
	})
}

// usageOf brings the two kernels' ways of counting together: v1's swap limit includes memory.
func usageOf(s *cgroup.Stats, v1 bool) *Usage {
	m := &s.Memory
	u := &Usage{
		CPU: CPU{
			Total: s.CPU.Usage, User: s.CPU.User, System: s.CPU.System,
			Periods: s.CPU.Periods, ThrottledPeriods: s.CPU.Throttled, ThrottledTime: s.CPU.ThrottledTime,
		},
		Memory: Memory{
			Usage: m.Usage, MaxUsage: m.Peak, WorkingSet: m.WorkingSet, RSS: m.RSS, Cache: m.Cache, MappedFile: m.Mapped,
			Kernel: m.Kernel, Swap: m.SwapUsage, PageFaults: m.Faults, MajorPageFaults: m.MajorFaults, Failures: m.Failures,
			Limit: m.Limit, SwapLimit: m.SwapLimit,
		},
		Pids:           Pids{Current: s.Pids.Current, Limit: s.Pids.Limit},
		CPUPressure:    pressure(s.CPU.Pressure),
		MemoryPressure: pressure(m.Pressure),
		IOPressure:     pressure(s.IO.Pressure),
		OOMKills:       m.OOMKills,
	}
	if v1 && m.SwapLimit != cgroup.Unlimited {
		u.Memory.SwapLimit = m.SwapLimit - min(m.SwapLimit, m.Limit)
	}
	for _, d := range s.IO.Devices {
		u.Devices = append(u.Devices, DeviceIO{
			Major: d.Major, Minor: d.Minor, ReadBytes: d.ReadBytes, WriteBytes: d.WriteBytes, Reads: d.Reads, Writes: d.Writes,
		})
	}
	for _, t := range s.Hugetlb {
		u.Hugetlb = append(u.Hugetlb, Hugetlb{PageSize: t.PageSize, Usage: t.Usage, MaxUsage: t.Peak})
	}
	return u
}

func pressure(p cgroup.Pressure) *Pressure {
	if !p.Known {
		return nil
	}
	line := func(s cgroup.Stall) PressureLine {
		return PressureLine{Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300, Total: s.Total * 1000} // from microseconds
	}
	return &Pressure{Some: line(p.Some), Full: line(p.Full)}
}
