package stats

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

func TestUsageOfBothKernels(t *testing.T) {
	s := &cgroup.Stats{
		CPU: cgroup.CPUStats{Usage: 10, User: 6, System: 4, Periods: 5, Throttled: 2, ThrottledTime: 3, Pressure: cgroup.Pressure{Known: true, Some: cgroup.Stall{Avg10: 1, Total: 7}}},
		Memory: cgroup.MemoryStats{
			Usage: 100, Limit: 200, Peak: 150, WorkingSet: 90, RSS: 80, Cache: 10, Mapped: 5, Kernel: 4, Faults: 3, MajorFaults: 2,
			Failures: 1, SwapUsage: 6, SwapLimit: 250, OOMKills: 9,
		},
		Pids:    cgroup.PidsStats{Current: 3, Limit: cgroup.Unlimited},
		IO:      cgroup.IOStats{Devices: []cgroup.IODevice{{Major: 8, Minor: 1, ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}}},
		Hugetlb: []cgroup.HugetlbStats{{PageSize: "2MB", Usage: 1, Peak: 2}},
	}
	want := &Usage{
		CPU:         CPU{Total: 10, User: 6, System: 4, Periods: 5, ThrottledPeriods: 2, ThrottledTime: 3},
		CPUPressure: &Pressure{Some: PressureLine{Avg10: 1, Total: 7000}},
		Memory: Memory{
			Usage: 100, Limit: 200, MaxUsage: 150, WorkingSet: 90, RSS: 80, Cache: 10, MappedFile: 5, Kernel: 4, PageFaults: 3, MajorPageFaults: 2,
			Failures: 1, Swap: 6, SwapLimit: 250,
		},
		Pids:     Pids{Current: 3, Limit: Unlimited},
		Devices:  []DeviceIO{{Major: 8, Minor: 1, ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}},
		Hugetlb:  []Hugetlb{{PageSize: "2MB", Usage: 1, MaxUsage: 2}},
		OOMKills: 9,
	}
	opt := cmp.AllowUnexported(DeviceIO{})
	if diff := cmp.Diff(want, usageOf(s, false), opt); diff != "" {
		t.Errorf("v2 (-want +got)\n%s", diff)
	}
	want.Memory.SwapLimit = 50 // v1 counts memory in
	if diff := cmp.Diff(want, usageOf(s, true), opt); diff != "" {
		t.Errorf("v1 (-want +got)\n%s", diff)
	}
	s.Memory.SwapLimit = cgroup.Unlimited
	if got := usageOf(s, true).Memory.SwapLimit; got != Unlimited {
		t.Errorf("no swap limit becomes %d", got)
	}
	s.Memory.Limit, s.Memory.SwapLimit = cgroup.Unlimited, 250
	if got := usageOf(s, true).Memory.SwapLimit; got != 0 {
		t.Errorf("a limit of both below the one of memory leaves %d", got)
	}
}
