package oci

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestResources(t *testing.T) {
	host, noSwap := &HostFacts{Swap: true}, &HostFacts{}
	for name, c := range map[string]struct {
		in   *cri.LinuxContainerResources
		host *HostFacts
		want specs.LinuxResources
	}{
		"nil":                 {nil, host, specs.LinuxResources{}},
		"zeros":               {&cri.LinuxContainerResources{}, host, specs.LinuxResources{}},
		"cpu":                 {&cri.LinuxContainerResources{CpuShares: 2, CpuQuota: -1, CpuPeriod: 1000}, host, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(2)), Quota: ptr(int64(-1)), Period: ptr(uint64(1000))}}},
		"cpuset":              {&cri.LinuxContainerResources{CpusetCpus: "0-3,8", CpusetMems: "0"}, host, specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-3,8", Mems: "0"}}},
		"memory, no swap":     {&cri.LinuxContainerResources{MemoryLimitInBytes: 100}, host, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(100))}}},
		"memory and swap":     {&cri.LinuxContainerResources{MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 150}, host, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150))}}},
		"unlimited swap":      {&cri.LinuxContainerResources{MemoryLimitInBytes: 100, MemorySwapLimitInBytes: -1}, host, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(-1))}}},
		"unlimited":           {&cri.LinuxContainerResources{MemoryLimitInBytes: -1}, host, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1)), Swap: ptr(int64(-1))}}},
		"swap not accounted":  {&cri.LinuxContainerResources{MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 150}, noSwap, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100))}}},
		"swap alone, not acc": {&cri.LinuxContainerResources{MemorySwapLimitInBytes: 150}, noSwap, specs.LinuxResources{}},
		"hugepages":           {&cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "1GB", Limit: 1 << 30}, {PageSize: "64KB"}}}, host, specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 1 << 30}, {Pagesize: "64KB"}}}},
		"unified":             {&cri.LinuxContainerResources{Unified: map[string]string{"memory.high": "max", "io.bfq.weight": "default 100", "hugetlb.2MB.max": "0"}}, host, specs.LinuxResources{Unified: map[string]string{"memory.high": "max", "io.bfq.weight": "default 100", "hugetlb.2MB.max": "0"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Resources(c.in, c.host)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestResourcesRefused(t *testing.T) {
	unified := func(k, v string) *cri.LinuxContainerResources {
		return &cri.LinuxContainerResources{Unified: map[string]string{k: v}}
	}
	for text, in := range map[string]*cri.LinuxContainerResources{
		"cpu_shares: -1":                       {CpuShares: -1},
		"cpu_shares: 1;":                       {CpuShares: 1},
		"cpu_shares: 262145":                   {CpuShares: 262145},
		"cpu_quota: 17592186044416":            {CpuQuota: 1 << 44},
		"cpu_quota: -2":                        {CpuQuota: -2},
		"cpu_quota: 999":                       {CpuQuota: 999},
		"cpu_period: 999":                      {CpuPeriod: 999},
		"cpu_period: 1000001":                  {CpuPeriod: 1000001},
		"memory_limit_in_bytes: -2":            {MemoryLimitInBytes: -2},
		"memory_swap_limit_in_bytes: 99":       {MemoryLimitInBytes: 100, MemorySwapLimitInBytes: 99},
		"memory_swap_limit_in_bytes: 98":       {MemoryLimitInBytes: -1, MemorySwapLimitInBytes: 98},
		`cpuset_cpus: "3-1"`:                   {CpusetCpus: "3-1"},
		`cpuset_cpus: "0,"`:                    {CpusetCpus: "0,"},
		`cpuset_mems: "-1"`:                    {CpusetMems: "-1"},
		`cpuset_mems: "0\n"`:                   {CpusetMems: "0\n"},
		`hugepage_limits[0].page_size: "2M"`:   {HugepageLimits: []*cri.HugepageLimit{{PageSize: "2M"}}},
		`hugepage_limits[0].page_size: "../B"`: {HugepageLimits: []*cri.HugepageLimit{{PageSize: "../B"}}},
		`hugepage_limits[0].page_size: "0KB"`:  {HugepageLimits: []*cri.HugepageLimit{{PageSize: "0KB"}}},
		`unified: key "memory"`:                unified("memory", "1"),
		`unified: key "../memory.max"`:         unified("../memory.max", "1"),
		`unified: key "memory/x.max"`:          unified("memory/x.max", "1"),
		`unified: key "memory..max"`:           unified("memory..max", "1"),
		`unified: key ".max"`:                  unified(".max", "1"),
		`unified: key "memory."`:               unified("memory.", "1"),
		`unified: key "cgroup.procs"`:          unified("cgroup.procs", "1"),
		`unified: value "1\x00"`:               unified("memory.max", "1\x00"),
	} {
		_, err := Resources(in, &HostFacts{})
		wantError(t, err, errs.Invalid, "resources."+text)
	}
}

func TestOOMScoreAdj(t *testing.T) {
	for _, c := range []struct {
		adj  int64
		min  int
		want int
	}{{0, -1000, 0}, {-997, -1000, -997}, {1000, -1000, 1000}, {-997, 0, 0}, {-997, -500, -500}} {
		got, err := OOMScoreAdj(&cri.LinuxContainerResources{OomScoreAdj: c.adj}, &HostFacts{OOMScoreAdjMin: c.min})
		if err != nil || got != c.want {
			t.Errorf("%+v gives %d, %v", c, got, err)
		}
	}
	for _, adj := range []int64{-1001, 1001, 1 << 32} {
		_, err := OOMScoreAdj(&cri.LinuxContainerResources{OomScoreAdj: adj}, &HostFacts{})
		wantError(t, err, errs.Invalid, "oom_score_adj")
	}
}

func TestDevices(t *testing.T) {
	dir := realTempDir(t)
	os.Symlink("/dev/zero", filepath.Join(dir, "link"))
	in := input(t)
	in.Config.Devices = []*cri.Device{
		{HostPath: filepath.Join(dir, "link"), ContainerPath: "/dev/a", Permissions: "mr"},
		{HostPath: "/dev/null", ContainerPath: "/dev/a", Permissions: "rwm"}, // instead of the first
	}
	l := mustTranslate(t, in).Spec.Linux
	if len(l.Devices) != 1 || l.Devices[0].Path != "/dev/a" || l.Devices[0].Minor != 3 || *l.Devices[0].FileMode&0o111 != 0 {
		t.Errorf("nodes %+v", l.Devices)
	}
	rules := l.Resources.Devices
	if first := rules[0]; first.Allow || first.Access != "rwm" || first.Type != "" {
		t.Errorf("the first rule is not to deny all: %+v", first)
	}
	last := rules[len(rules)-2:]
	if diff := cmp.Diff([]specs.LinuxDeviceCgroup{rule("c", 1, 5, "mr"), rule("c", 1, 3, "rwm")}, last); diff != "" {
		t.Error(diff)
	}
	checkRefusals(t, map[string]refusal{
		"missing": {func(in *ContainerInput) {
			in.Config.Devices = []*cri.Device{{HostPath: "/dev/none", ContainerPath: "/dev/x", Permissions: "r"}}
		}, errs.NotFound, []string{"devices[0].host_path", "/dev/none"}},
		"no device": {func(in *ContainerInput) {
			in.Config.Devices = []*cri.Device{{HostPath: "/proc/version", ContainerPath: "/dev/x", Permissions: "r"}}
		}, errs.Invalid, []string{"devices[0].host_path", "is no device"}},
		"empty dir": {func(in *ContainerInput) {
			in.Config.Devices = []*cri.Device{{HostPath: dir, ContainerPath: "/dev/x", Permissions: "r"}}
		}, errs.Invalid, []string{"holds none"}},
		"no permissions": {func(in *ContainerInput) {
			in.Config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x"}}
		}, errs.Invalid, []string{"devices[0].permissions"}},
		"permissions": {func(in *ContainerInput) {
			in.Config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rx"}}
		}, errs.Invalid, []string{`"rx"`}},
		"twice": {func(in *ContainerInput) {
			in.Config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rr"}}
		}, errs.Invalid, []string{`"rr"`}},
		"relative": {func(in *ContainerInput) {
			in.Config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "x", Permissions: "r"}}
		}, errs.Invalid, []string{"devices[0].container_path"}},
		"root": {func(in *ContainerInput) {
			in.Config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/", Permissions: "r"}}
		}, errs.Invalid, []string{"devices[0].container_path"}},
	})
}

func TestDeviceDirectories(t *testing.T) {
	in := input(t)
	in.Config.Devices = []*cri.Device{{HostPath: "/dev", ContainerPath: "/dev/host", Permissions: "r"}}
	l := mustTranslate(t, in).Spec.Linux
	for _, d := range l.Devices {
		if !within("/dev/host", d.Path) || within("/dev/host/pts", d.Path) || d.Path == "/dev/host/null" {
			t.Errorf("node %s", d.Path)
		}
	}
	in = input(t)
	in.security().Privileged, in.podSecurity().Privileged = true, true
	l = mustTranslate(t, in).Spec.Linux
	if diff := cmp.Diff([]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, l.Resources.Devices); diff != "" {
		t.Error(diff)
	}
}

func TestStopSignals(t *testing.T) {
	for in, want := range map[string]string{
		"TERM": "SIGTERM", "sigterm": "SIGTERM", "15": "SIGTERM", "SIGRTMIN": "SIGRTMIN", "RTMIN+3": "SIGRTMIN+3", "SIGRTMINPLUS15": "SIGRTMIN+15",
		"SIGRTMAX": "SIGRTMAX", "rtmax-1": "SIGRTMAX-1", "SIGRTMAXMINUS14": "SIGRTMAX-14", "37": "SIGRTMIN+3", "64": "SIGRTMAX", "RTMIN+30": "SIGRTMAX",
		"SIGCLD": "SIGCHLD", "SIGPOLL": "SIGIO", "SIGIOT": "SIGABRT", "9": "SIGKILL", "SIGSTKFLT": "SIGSTKFLT",
	} {
		n, err := ParseSignal(in)
		if err != nil || SignalName(n) != want {
			t.Errorf("%q gives %s, %v; want %s", in, SignalName(n), err, want)
		}
	}
	for _, in := range []string{"", "0", "65", "-1", "+9", "SIG", "SIGNOPE", "RTMIN3", "RTMIN+", "RTMIN+31", "RTMAX-31", "RTMAX+1", "RTMIN-1", "TERM ", "1e1"} {
		_, err := ParseSignal(in)
		wantError(t, err, errs.Invalid, "is no signal")
	}
}

func TestEverySignalOfTheCRI(t *testing.T) {
	for n := range cri.Signal_name {
		s := cri.Signal(n)
		in := input(t)
		in.Image.StopSignal = "SIGQUIT"
		in.Config.StopSignal = s
		out := mustTranslate(t, in)
		want := s
		switch s { // other names of the same signal
		case cri.Signal_SIGNAL_RUNTIME_DEFAULT:
			want = cri.Signal_SIGNAL_SIGQUIT // the image's
		case cri.Signal_SIGNAL_SIGCLD:
			want = cri.Signal_SIGNAL_SIGCHLD
		case cri.Signal_SIGNAL_SIGPOLL:
			want = cri.Signal_SIGNAL_SIGIO
		case cri.Signal_SIGNAL_SIGIOT:
			want = cri.Signal_SIGNAL_SIGABRT
		}
		if got := SignalEnum(out.StopSignal); got != want {
			t.Errorf("%s becomes %s, shown as %s", s, out.StopSignal, got)
		}
	}
	if out := mustTranslate(t, input(t)); out.StopSignal != "SIGTERM" {
		t.Errorf("default %s", out.StopSignal)
	}
	checkRefusals(t, map[string]refusal{
		"unknown": {func(in *ContainerInput) { in.Config.StopSignal = 99 }, errs.Invalid, []string{"stop_signal", "99"}},
		"image's": {func(in *ContainerInput) { in.Image.StopSignal = "SIGQUIT;x" }, errs.Invalid, []string{"image stop signal", "SIGQUIT;x"}},
	})
}
