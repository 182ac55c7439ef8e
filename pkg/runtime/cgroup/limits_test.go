package cgroup

import (
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

func p[T any](v T) *T { return &v }

var sda = specs.LinuxBlockIODevice{Major: 8, Minor: 0}

func throttle(rate uint64) []specs.LinuxThrottleDevice {
	return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: sda, Rate: rate}}
}

// limits are resources with what Update does about them to a group with the kernel's values.
var limits = []struct {
	name   string
	res    specs.LinuxResources
	v1, v2 string
}{
	{"nothing", specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}, BlockIO: &specs.LinuxBlockIO{}, Pids: &specs.LinuxPids{}, Network: &specs.LinuxNetwork{}}, "", ""},
	{"cpu", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(512)), Quota: p(int64(50000)), Period: p(uint64(200000)), Burst: p(uint64(1000))}}, `
		write cpu/a/cpu.shares 512
		write cpu/a/cpu.cfs_period_us 200000
		write cpu/a/cpu.cfs_quota_us 50000
		write cpu/a/cpu.cfs_burst_us 1000`, `
		write unified/a/cpu.weight 59
		write unified/a/cpu.max 50000 200000
		write unified/a/cpu.max.burst 1000`},
	{"cpu quota alone", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(50000))}}, "write cpu/a/cpu.cfs_quota_us 50000", "write unified/a/cpu.max 50000 100000"},
	{"cpu period alone", specs.LinuxResources{CPU: &specs.LinuxCPU{Period: p(uint64(50000))}}, "write cpu/a/cpu.cfs_period_us 50000", "write unified/a/cpu.max max 50000"},
	{"cpu idle", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: p(int64(1)), Shares: p(uint64(2))}}, "write cpu/a/cpu.idle 1", "write unified/a/cpu.idle 1"},
	{"cpu as it is", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(1024)), Quota: p(int64(-1))}}, "", ""},
	{"cpuset", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}}, "write cpuset/a/cpuset.cpus 0-1", `
		write unified/a/cpuset.cpus 0-1
		write unified/a/cpuset.mems 0`},
	{"memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(1 << 20)), Swap: p(int64(3 << 20)), Reservation: p(int64(1 << 19))}}, `
		write memory/a/memory.limit_in_bytes 1048576
		write memory/a/memory.memsw.limit_in_bytes 3145728
		write memory/a/memory.soft_limit_in_bytes 524288`, `
		write unified/a/memory.swap.max 2097152
		write unified/a/memory.max 1048576
		write unified/a/memory.low 524288`},
	{"memory without swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(1 << 20)), Swap: p(int64(1 << 20))}}, `
		write memory/a/memory.limit_in_bytes 1048576
		write memory/a/memory.memsw.limit_in_bytes 1048576`, `
		write unified/a/memory.swap.max 0
		write unified/a/memory.max 1048576`},
	{"swap without limit", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(1 << 20)), Swap: p(int64(-1))}}, `
		write memory/a/memory.memsw.limit_in_bytes -1
		write memory/a/memory.limit_in_bytes 1048576`, "write unified/a/memory.max 1048576"},
	{"pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(20))}}, "write pids/a/pids.max 20", "write unified/a/pids.max 20"},
	{"no pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(0))}}, "write pids/a/pids.max 1", "write unified/a/pids.max 1"},
	{"all pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(-1))}}, "", ""},
	{"io", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: p(uint16(500)), ThrottleReadBpsDevice: throttle(1 << 20)}}, `
		write blkio/a/blkio.bfq.weight 500
		write blkio/a/blkio.throttle.read_bps_device 8:0 1048576`, `
		write unified/a/io.weight default 4950
		write unified/a/io.max 8:0 rbps=1048576`},
	{"io lifted", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleWriteIOPSDevice: throttle(0)}}, "write blkio/a/blkio.throttle.write_iops_device 8:0 0", "write unified/a/io.max 8:0 wiops=max"},
}

func TestUpdate(t *testing.T) {
	for _, c := range limits {
		t.Run(c.name, func(t *testing.T) {
			for _, m := range []Mode{V1, V2} {
				f := newFake(t, m)
				g := f.group("/a")
				if err := g.Update(&c.res); err != nil {
					t.Fatalf("%v: %v", m, err)
				}
				want := c.v1
				if m == V2 {
					want = c.v2
				}
				transcript(t, f.take(), want)
			}
		})
	}
}

// others are limits by controllers that few machines have.
var others = []struct {
	name   string
	res    specs.LinuxResources
	v1, v2 string
}{
	{"hugetlb", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}, {Pagesize: "1GB", Limit: 1 << 30}, {Pagesize: "64KB", Limit: 0}}}, `
		write hugetlb/a/hugetlb.2MB.limit_in_bytes 4194304
		write hugetlb/a/hugetlb.2MB.rsvd.limit_in_bytes 4194304
		write hugetlb/a/hugetlb.1GB.limit_in_bytes 1073741824`, `
		write unified/a/hugetlb.2MB.max 4194304
		write unified/a/hugetlb.2MB.rsvd.max 4194304
		write unified/a/hugetlb.1GB.max 1073741824`},
	{"rdma", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: p(uint32(3)), HcaObjects: p(uint32(10000))}, "ocrdma0": {HcaObjects: p(uint32(5))}}}, `
		write rdma/a/rdma.max mlx5_1 hca_handle=3 hca_object=10000
		write rdma/a/rdma.max ocrdma0 hca_handle=max hca_object=5`, `
		write unified/a/rdma.max mlx5_1 hca_handle=3 hca_object=10000
		write unified/a/rdma.max ocrdma0 hca_handle=max hca_object=5`},
	{"network", specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: p(uint32(0x100001)), Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 7}}}}, `
		write net_cls/a/net_cls.classid 1048577
		write net_prio/a/net_prio.ifpriomap lo 7`, "unsupported"},
	{"unified", specs.LinuxResources{Unified: map[string]string{"hugetlb.2MB.max": "4194304", "rdma.max": "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3", "memory.high": "1048576", "io.max": "8:0 rbps=77"}}, "invalid", `
		write unified/a/hugetlb.2MB.max 4194304
		write unified/a/io.max 8:0 rbps=77
		write unified/a/memory.high 1048576
		write unified/a/rdma.max mlx4_0 hca_handle=2 hca_object=2000
		write unified/a/rdma.max ocrdma1 hca_handle=3`},
	{"io devices", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
		ThrottleReadBpsDevice: throttle(1), ThrottleWriteBpsDevice: throttle(2), ThrottleReadIOPSDevice: throttle(3), ThrottleWriteIOPSDevice: throttle(4)}}, `
		write blkio/a/blkio.throttle.read_bps_device 8:0 1
		write blkio/a/blkio.throttle.write_bps_device 8:0 2
		write blkio/a/blkio.throttle.read_iops_device 8:0 3
		write blkio/a/blkio.throttle.write_iops_device 8:0 4`, `
		write unified/a/io.max 8:0 rbps=1
		write unified/a/io.max 8:0 wbps=2
		write unified/a/io.max 8:0 riops=3
		write unified/a/io.max 8:0 wiops=4`},
}

func TestOtherControllers(t *testing.T) {
	for _, c := range others {
		for m, want := range map[Mode]string{V1: c.v1, V2: c.v2} {
			f := newFakeWith(t, m, true)
			g := f.group("/a")
			err := g.Update(&c.res)
			switch want {
			case "unsupported", "invalid":
				if !errs.Is(err, errs.Unsupported) && !errs.Is(err, errs.Invalid) {
					t.Errorf("%s, %v: %v", c.name, m, err)
				}
			default:
				if err != nil {
					t.Errorf("%s, %v: %v", c.name, m, err)
				}
				transcript(t, f.take(), want)
			}
		}
	}
}

// TestUpdateUndone: whatever write of an update fails, the values from before are in force.
func TestUpdateUndone(t *testing.T) {
	res := specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p(uint64(512)), Quota: p(int64(50000)), Cpus: "1", Mems: "0"},
		Memory: &specs.LinuxMemory{Limit: p(int64(1 << 20)), Swap: p(int64(3 << 20)), Reservation: p(int64(1 << 19))},
		Pids:   &specs.LinuxPids{Limit: p(int64(20))}, BlockIO: &specs.LinuxBlockIO{ThrottleWriteIOPSDevice: throttle(5)},
	}
	files := []string{"cpu.shares", "cpu.cfs_quota_us", "cpu.weight", "cpu.max", "cpuset.cpus", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes",
		"memory.soft_limit_in_bytes", "memory.max", "memory.low", "memory.swap.max", "pids.max"}
	for _, m := range []Mode{V1, V2} {
		f := newFake(t, m)
		g := f.group("/a")
		if err := g.Update(&res); err != nil {
			t.Fatal(err)
		}
		written := strings.Split(strings.TrimSpace(f.take()), "\n")
		for _, w := range written {
			f, before := newFake(t, m), map[string]string{}
			g := f.group("/a")
			tree := func(file string) string {
				if m == V2 {
					return "unified/a/" + file
				}
				return strings.SplitN(file, ".", 2)[0] + "/a/" + file
			}
			has := func(file string) bool {
				return slices.ContainsFunc(written, func(w string) bool { return strings.Contains(w, "/"+file+" ") })
			}
			for _, file := range files {
				if has(file) {
					before[file] = f.get(tree(file))
				}
			}
			failing := strings.Join(strings.Fields(w)[:2], " ")
			f.fail[failing] = unix.EIO
			if err := g.Update(&res); !errors.Is(err, unix.EIO) {
				t.Fatalf("%v: %s fails: %v", m, failing, err)
			}
			for file, want := range before {
				if got := f.get(tree(file)); got != want {
					t.Errorf("%v: %s fails: %s is %q and was %q", m, failing, file, got, want)
				}
			}
		}
	}
}

// TestOrder has values that the kernel takes in one order only.
func TestOrder(t *testing.T) {
	f := newFake(t, V1)
	g := f.group("/a")
	f.put("memory/a/memory.limit_in_bytes", "1000")
	f.put("memory/a/memory.memsw.limit_in_bytes", "1000")
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(2000)), Swap: p(int64(2000))}}); err != nil {
		t.Fatal(err)
	}
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(500)), Swap: p(int64(500))}}); err != nil {
		t.Fatal(err)
	}
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write memory/a/memory.memsw.limit_in_bytes 2000
		write memory/a/memory.limit_in_bytes 2000
		write memory/a/memory.limit_in_bytes 500
		write memory/a/memory.memsw.limit_in_bytes 500
		write memory/a/memory.memsw.limit_in_bytes -1
		write memory/a/memory.limit_in_bytes -1`)
	// A quota below the burst in force is refused until the burst is down.
	f.put("cpu/a/cpu.cfs_burst_us", "9000")
	f.fail["write cpu/a/cpu.cfs_quota_us"] = unix.EINVAL
	if err := g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(5000)), Burst: p(uint64(1000))}}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write cpu/a/cpu.cfs_quota_us 5000: invalid argument
		write cpu/a/cpu.cfs_burst_us 1000
		write cpu/a/cpu.cfs_quota_us 5000`)
}

func TestSwapAlone(t *testing.T) {
	f := newFake(t, V2)
	g := f.group("/a")
	f.put("unified/a/memory.max", "1000")
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: p(int64(1500))}}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), "write unified/a/memory.swap.max 500")
}

// TestOverAlready: a limit that would kill is refused where the resources ask for it, after the kernel has taken back what it can.
func TestOverAlready(t *testing.T) {
	checked := func(limit, swap int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(limit), Swap: p(swap), CheckBeforeUpdate: p(true)}}
	}
	for name, c := range map[string]struct {
		res     *specs.LinuxResources
		prepare func(*fake)
		refused string
		want    string
	}{
		"room": {res: checked(8192, 0), want: "write unified/a/memory.max 8192"},
		"nothing to be had": {checked(4096, 0), func(f *fake) { f.fail["write unified/a/memory.reclaim"] = unix.EAGAIN },
			"the group uses 8192", "write unified/a/memory.reclaim 4096: resource temporarily unavailable"},
		"enough to be had": {checked(4096, 0), func(f *fake) {
			f.fail["write unified/a/memory.reclaim"] = unix.EAGAIN // nearly all
			f.onFail = func() { f.put("unified/a/memory.current", "4000") }
		}, "", "write unified/a/memory.reclaim 4096: resource temporarily unavailable\nwrite unified/a/memory.max 4096"},
		"old kernel":             {checked(4096, 0), func(f *fake) { f.remove("unified/a/memory.reclaim") }, "the group uses 8000", "write unified/a/memory.reclaim 4096"},
		"old kernel, page cache": {checked(8001, 0), func(f *fake) { f.remove("unified/a/memory.reclaim") }, "", "write unified/a/memory.reclaim 191\nwrite unified/a/memory.max 8001"},
		"swap, nothing to be had": {checked(8192, 9000), func(f *fake) {
			f.put("unified/a/memory.swap.current", "1000")
			f.fail["write unified/a/memory.reclaim"] = unix.EAGAIN
		}, "of memory and swap", "write unified/a/memory.reclaim 192: resource temporarily unavailable"},
		"swap, not in this kernel": {checked(8192, 8192), func(f *fake) { f.remove("unified/a/memory.swap.current") }, "", "write unified/a/memory.swap.max 0\nwrite unified/a/memory.max 8192"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, V2)
			g := f.group("/a")
			if c.prepare != nil {
				c.prepare(f)
			}
			err := g.Update(c.res)
			if c.refused == "" && err != nil || c.refused != "" && (!errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), c.refused)) {
				t.Errorf("got %v (%v), want %q", err, errs.KindOf(err), c.refused)
			}
			transcript(t, f.take(), c.want)
		})
	}
	f := newFake(t, V1) // its kernel refuses by itself
	g := f.group("/a")
	f.fail["write memory/a/memory.limit_in_bytes"] = unix.EBUSY
	if err := g.Update(checked(4096, 0)); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "the group uses 8192") {
		t.Errorf("v1: %v", err)
	}
}

func TestUnified(t *testing.T) {
	f := newFake(t, V2)
	g := f.group("/a")
	f.put("unified/a/io.max", "8:0 rbps=7 wbps=max riops=max wiops=max\n")
	err := g.Update(&specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: p(int64(1000))},
		Unified: map[string]string{"memory.high": "900", "memory.max": "950\n", "io.max": "8:0 rbps=1\n8:16 wbps=2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write unified/a/memory.max 1000
		write unified/a/io.max 8:0 rbps=1
		write unified/a/io.max 8:16 wbps=2
		write unified/a/memory.high 900
		write unified/a/memory.max 950`)
	for key, kind := range map[string]errs.Kind{
		"": errs.Invalid, "memory": errs.Invalid, "../memory.max": errs.Invalid, "memory.max/x": errs.Invalid, ".max": errs.Invalid,
		"cgroup.procs": errs.Invalid, "cgroup.kill": errs.Invalid, "foo.max": errs.Unsupported, "memory.nosuch": errs.Unsupported,
	} {
		f.put("unified/cgroup.subtree_control", "cpu memory")
		if err := g.Update(&specs.LinuxResources{Unified: map[string]string{key: "1"}}); !errs.Is(err, kind) {
			t.Errorf("key %q: %v (%v), want %v", key, err, errs.KindOf(err), kind)
		}
	}
	for no, kind := range map[unix.Errno]errs.Kind{unix.EINVAL: errs.Invalid, unix.ERANGE: errs.Invalid, unix.ENODEV: errs.Invalid, unix.EIO: errs.KindOf(unix.EIO)} {
		f.fail["write unified/a/memory.high"] = no
		err := g.Update(&specs.LinuxResources{Unified: map[string]string{"memory.high": "~"}})
		if errs.KindOf(err) != kind || !strings.Contains(err.Error(), "memory.high") {
			t.Errorf("a value that the kernel answers with %v: %v (%v), want %v", no, err, errs.KindOf(err), kind)
		}
	}
	for _, m := range []Mode{V1, Hybrid} {
		if err := newFake(t, m).group("/a").Apply(&specs.LinuxResources{Unified: map[string]string{"memory.max": "1"}}); !errs.Is(err, errs.Unsupported) {
			t.Errorf("on %v: %v", m, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		mode Mode
		res  specs.LinuxResources
		kind errs.Kind
		want string
	}{
		"swap below limit":  {V2, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(2000)), Swap: p(int64(1000))}}, errs.Invalid, "less than the memory limit 2000"},
		"swap and no limit": {V2, specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: p(int64(1000))}}, errs.Invalid, "no limit to subtract"},
		"swappiness":        {V2, specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: p(uint64(10))}}, errs.Unsupported, "swappiness"},
		"swappiness 101":    {V1, specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: p(uint64(101))}}, errs.Invalid, "0 to 100"},
		"no oom killer":     {V2, specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: p(true)}}, errs.Unsupported, "OOM killer"},
		"idle":              {V2, specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: p(int64(2))}}, errs.Invalid, "0 or 1"},
		"realtime":          {V2, specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: p(int64(2))}}, errs.Unsupported, "realtime"},
		"cpus":              {V1, specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-"}}, errs.Invalid, "not a range"},
		"cpus words":        {V2, specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "all"}}, errs.Invalid, "not a number"},
		"io weight":         {V2, specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: p(uint16(5))}}, errs.Invalid, "10 to 1000"},
		"rdma":              {V2, specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5": {}}}, errs.Unsupported, "rdma controller is not available"},
		"hugetlb":           {V1, specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}}, errs.Unsupported, "hugetlb controller"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, c.mode)
			err := f.group("/a").Update(&c.res)
			if !errs.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v (%v), want %q", err, errs.KindOf(err), c.want)
			}
			transcript(t, f.take(), "")
		})
	}
}

func TestCPUWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 0, 1: 1, 2: 1, 3: 2, 1024: 100, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		if got := CPUWeight(shares); got != want {
			t.Errorf("CPUWeight(%d) = %d, want %d", shares, got, want)
		}
	}
	last := uint64(0)
	for s := uint64(1); s <= 262144; s += 7 {
		w := CPUWeight(s)
		if w < last {
			t.Fatalf("CPUWeight(%d) = %d, less than for fewer shares", s, w)
		}
		last = w
	}
}

func TestStats(t *testing.T) {
	for _, m := range []Mode{V1, Hybrid, V2} {
		f := newFake(t, m)
		s, err := f.group("/a").Stats()
		if err != nil {
			t.Fatal(err)
		}
		if m == V2 { // it counts microseconds
			s.CPU.Usage, s.CPU.User, s.CPU.System, s.CPU.Throttled = s.CPU.Usage/10, s.CPU.User/10, s.CPU.System/10, 2
			s.CPU.ThrottledTime /= 10
			s.Memory.Peak, s.Memory.Mapped, s.Memory.Faults, s.Memory.MajorFaults, s.Memory.Kernel, s.Memory.Failures = 9000, 100, 9, 1, 512, 3
		}
		if c := s.CPU; c.Usage != 1000 || c.User != 600 || c.System != 400 || c.Periods != 5 || c.Throttled != 2 || c.ThrottledTime != 300 {
			t.Errorf("%v: %+v", m, c)
		}
		want := MemoryStats{Usage: 8192, Limit: Unlimited, Peak: 9000, WorkingSet: 8000, RSS: 2048, Cache: 4096, Mapped: 100, InactiveFile: 192,
			Kernel: 512, Faults: 9, MajorFaults: 1, Failures: 3, SwapLimit: Unlimited, OOMKills: 7}
		if s.Memory != want {
			t.Errorf("%v: %+v", m, s.Memory)
		}
		if s.Pids != (PidsStats{4, Unlimited}) {
			t.Errorf("%v: %+v", m, s.Pids)
		}
		if !slices.Equal(s.IO.Devices, []IODevice{{8, 0, 10, 20, 1, 2}}) {
			t.Errorf("%v: %+v", m, s.IO.Devices)
		}
		if pr := s.CPU.Pressure; m != V1 && (!pr.Known || pr.Some != (Stall{1.5, 0.25, 0, 77}) || pr.Full.Total != 5) || m == V1 && pr.Known {
			t.Errorf("%v: %+v", m, pr)
		}
	}
	g, err := newFake(t, V2).At("/none")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Stats(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("statistics of nothing: %v", err)
	}
}

func TestOOMKills(t *testing.T) {
	for m, want := range map[Mode]uint64{V1: 14, V2: 7} { // v1 counts each group alone
		f := newFake(t, m)
		f.group("/a/b")
		g := f.group("/a")
		if n, err := g.OOMKills(); err != nil || n != want {
			t.Errorf("%v: %d, %v", m, n, err)
		}
	}
}
