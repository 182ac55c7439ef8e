package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
)

// machine is a made-up node: it is Source, Cgroups, Filesystems and clock at once.
type machine struct {
	pods       []Pod
	containers []Container
	groups     map[string]*Usage
	pids       map[string][]int
	layers     map[string]image.Usage
	walks      int
	now        time.Time
}

func (m *machine) StatsPods() []Pod             { return m.pods }
func (m *machine) StatsContainers() []Container { return m.containers }

func (m *machine) Usage(path string) (*Usage, error) {
	u := m.groups[path]
	if u == nil {
		return nil, errs.New(errs.NotFound, "cgroup %s: not found", path)
	}
	c := *u
	c.Devices = slices.Clone(u.Devices)
	return &c, nil
}

func (m *machine) Pids(path string) ([]int, error) { return m.pids[path], nil }

func (m *machine) RootfsUsage(id string) (image.Usage, error) {
	m.walks++
	u, ok := m.layers[id]
	if !ok {
		return u, errs.New(errs.NotFound, "rootfs %s: not found", id)
	}
	return u, nil
}

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  net1:      11      12   13   14    0     0          0         0       15      16   17   18    0     0       0          0
  eth0:      21      22   23   24    0     0          0         0       25      26   27   28    0     0       0          0
`

const route = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
	"net1\t0000800A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n" +
	"eth0\t00000000\t0100580A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"

const (
	podUID = "0a1b2c3d-1111-2222-3333-444455556666"
	parent = "/kubepods/pod" + podUID
)

func newMachine(t *testing.T) (*machine, *Collector) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/70/net/dev", netDev)
	write("proc/70/net/route", route)
	write("proc/71/limits", "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 4096                 files     \n")
	write("proc/71/fd/0", "")
	if err := os.Symlink("socket:[42]", filepath.Join(dir, "proc/71/fd/3")); err != nil {
		t.Fatal(err)
	}
	write("sys/dev/block/8:16/uevent", "MAJOR=8\nMINOR=16\nDEVNAME=sdb\nDEVTYPE=disk\n")

	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m := &machine{
		now: start.Add(10 * time.Second),
		pods: []Pod{{
			ID: "p1", Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: podUID}, Labels: map[string]string{"app": "web"},
			Parent: parent, Holder: parent + "/p1", HolderPid: 70, CreatedAt: start,
		}},
		containers: []Container{{
			ID: "c1", PodID: "p1", Metadata: &cri.ContainerMetadata{Name: "main"}, Labels: map[string]string{"tier": "x"},
			Image: "docker.io/library/web:1", Cgroup: parent + "/c1", Pid: 71, StartedAt: start,
			Resources: &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512},
		}, {
			ID: "c2", PodID: "p1", Metadata: &cri.ContainerMetadata{Name: "done"},
		}},
		groups: map[string]*Usage{
			parent + "/c1": usage(5), parent + "/p1": usage(1), parent: usage(7),
		},
		pids:   map[string][]int{parent + "/c1": {71, 9999}},
		layers: map[string]image.Usage{"c1": {Mountpoint: dir, Bytes: 4096, Inodes: 3}, "c2": {Mountpoint: dir, Bytes: 1, Inodes: 1}},
	}
	return m, New(Config{
		Source: m, Cgroups: m, Filesystems: m, Proc: filepath.Join(dir, "proc"), Sys: filepath.Join(dir, "sys"), Now: func() time.Time { return m.now },
	})
}

// usage makes a sample with n seconds of CPU time.
func usage(n uint64) *Usage {
	p := &Pressure{Some: PressureLine{Avg10: 1.5, Total: 3e9}, Full: PressureLine{Total: 2e9}}
	return &Usage{
		CPU:     CPU{Total: n * 1e9, User: n * 6e8, System: n * 4e8, Periods: 10, ThrottledPeriods: 2, ThrottledTime: 2e9},
		Memory:  Memory{Usage: 1000, WorkingSet: 800, RSS: 600, Cache: 300, PageFaults: 5, MajorPageFaults: 1, Limit: 2000, SwapLimit: 0},
		Pids:    Pids{Current: 4, Limit: Unlimited},
		Devices: []DeviceIO{{Major: 8, Minor: 16, ReadBytes: 512, WriteBytes: 1024, Reads: 1, Writes: 2}},
		Hugetlb: []Hugetlb{{PageSize: "2MB", Usage: 2 << 20, MaxUsage: 4 << 20}}, CPUPressure: p, MemoryPressure: p, IOPressure: p,
	}
}

func TestContainerStats(t *testing.T) {
	m, c := newMachine(t)
	s, err := c.Container("c1")
	if err != nil {
		t.Fatal(err)
	}
	if s.GetAttributes().GetId() != "c1" || s.GetAttributes().GetMetadata().GetName() != "main" || s.GetAttributes().GetLabels()["tier"] != "x" {
		t.Errorf("attributes %v", s.GetAttributes())
	}
	for name, v := range map[string][2]uint64{
		"cpu":         {s.GetCpu().GetUsageCoreNanoSeconds().GetValue(), 5e9},
		"nanocores":   {s.GetCpu().GetUsageNanoCores().GetValue(), 5e8}, // 5 s of CPU in the 10 s since it started
		"psi":         {s.GetCpu().GetPsi().GetSome().GetTotal(), 3e9},
		"working set": {s.GetMemory().GetWorkingSetBytes().GetValue(), 800},
		"available":   {s.GetMemory().GetAvailableBytes().GetValue(), 1200},
		"swap left":   {s.GetSwap().GetSwapAvailableBytes().GetValue(), 0},
		"layer":       {s.GetWritableLayer().GetUsedBytes().GetValue(), 4096},
		"inodes":      {s.GetWritableLayer().GetInodesUsed().GetValue(), 3},
	} {
		if v[0] != v[1] {
			t.Errorf("%s is %d, want %d", name, v[0], v[1])
		}
	}
	if s.GetCpu().GetTimestamp() != m.now.UnixNano() {
		t.Errorf("timestamp %d", s.GetCpu().GetTimestamp())
	}
	if _, err := c.Container("nope"); !errs.Is(err, errs.NotFound) {
		t.Errorf("unknown container: %v", err)
	}
	s, err = c.Container("c2")
	if err != nil || s.GetCpu() != nil || s.GetWritableLayer() == nil {
		t.Errorf("a container that does not run has its layer and no CPU: %v, %v", s, err)
	}
}

func TestRateSpansTheLastWindow(t *testing.T) {
	m, c := newMachine(t)
	rate := func() uint64 {
		t.Helper()
		s, err := c.Container("c1")
		if err != nil {
			t.Fatal(err)
		}
		return s.GetCpu().GetUsageNanoCores().GetValue()
	}
	steps := []struct {
		after time.Duration
		cpu   uint64 // nanoseconds
		want  uint64
	}{
		{0, 5e9, 5e8},
		{10 * time.Second, 25e9, 2e9},
		{10 * time.Millisecond, 25e9, 1998001998}, // too short to be a window of its own: still over the last one
		{4990 * time.Millisecond, 25e9, 0},
		{10 * time.Second, 1e9, 0}, // less than before: another cgroup
	}
	for i, s := range steps {
		m.now = m.now.Add(s.after)
		m.groups[parent+"/c1"].CPU.Total = s.cpu
		if got := rate(); got != s.want {
			t.Errorf("step %d: %d nanocores, want %d", i, got, s.want)
		}
	}
}

func TestListFilters(t *testing.T) {
	m, c := newMachine(t)
	ids := func(f *cri.ContainerStatsFilter) string {
		t.Helper()
		list, err := c.Containers(f)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, s := range list {
			out = append(out, s.GetAttributes().GetId())
		}
		return strings.Join(out, " ")
	}
	for want, filters := range map[string][]*cri.ContainerStatsFilter{
		"c1": {nil, {Id: "c1"}, {Id: "c"}, {PodSandboxId: "p1"}, {LabelSelector: map[string]string{"tier": "x"}}},
		"":   {{Id: "zz"}, {PodSandboxId: "p2"}, {LabelSelector: map[string]string{"tier": "y"}}, {Id: "c1", PodSandboxId: "p2"}},
	} {
		for _, f := range filters {
			if got := ids(f); got != want {
				t.Errorf("filter %v gave %q, want %q", f, got, want)
			}
		}
	}
	delete(m.groups, parent+"/c1")
	if got := ids(nil); got != "" {
		t.Errorf("a container whose cgroup is gone is listed: %q", got)
	}
}

func TestPodsOwnCgroup(t *testing.T) {
	p := &Pod{ID: "p1", Metadata: &cri.PodSandboxMetadata{Uid: podUID}}
	slice := "/kubepods.slice/kubepods-pod" + strings.ReplaceAll(podUID, "-", "_") + ".slice"
	for parent, want := range map[string]bool{
		parent: true, slice: true, "/cri-server/podp1": true,
		"": false, "/": false, "/k8s.io": false, "/kubepods": false, parent + "/other": false, "/podp12": false,
	} {
		if p.Parent = parent; ownCgroup(p) != want {
			t.Errorf("%q is the pod's own: %v", parent, !want)
		}
	}
	if ownCgroup(&Pod{ID: "p1", Parent: "/pod"}) {
		t.Error("a pod without a UID owns any cgroup named pod")
	}
}

func TestPodStats(t *testing.T) {
	m, c := newMachine(t)
	s, err := c.Pod("p1")
	if err != nil {
		t.Fatal(err)
	}
	l := s.GetLinux()
	if got := l.GetCpu().GetUsageCoreNanoSeconds().GetValue(); got != 7e9 {
		t.Errorf("CPU of the pod's own cgroup is %d", got)
	}
	if len(l.GetContainers()) != 1 || l.GetProcess().GetProcessCount().GetValue() != 2 {
		t.Errorf("containers %v, processes %v", l.GetContainers(), l.GetProcess())
	}
	n := l.GetNetwork()
	if n.GetDefaultInterface().GetName() != "eth0" || n.GetDefaultInterface().GetRxBytes().GetValue() != 21 || n.GetDefaultInterface().GetTxErrors().GetValue() != 27 {
		t.Errorf("default interface %v", n.GetDefaultInterface())
	}
	if len(n.GetInterfaces()) != 1 || n.GetInterfaces()[0].GetName() != "net1" {
		t.Errorf("other interfaces %v", n.GetInterfaces())
	}
	if _, err := c.Pod("nope"); !errs.Is(err, errs.NotFound) {
		t.Errorf("unknown pod: %v", err)
	}

	m.pods[0].Parent = "/k8s.io" // shared by all pods: the pod is the sum of its parts
	m.groups["/k8s.io"] = usage(1000)
	if s, err = c.Pod("p1"); err != nil || s.GetLinux().GetCpu().GetUsageCoreNanoSeconds().GetValue() != 6e9 {
		t.Errorf("CPU of holder and containers: %v, %v", s.GetLinux().GetCpu(), err)
	}
	m.pods[0].HostNetwork = true
	if s, err = c.Pod("p1"); err != nil || s.GetLinux().GetNetwork() != nil {
		t.Errorf("a pod in the node's network has counters: %v, %v", s.GetLinux().GetNetwork(), err)
	}
	m.pods[0].HolderPid = 0
	if list, err := c.Pods(nil); err != nil || len(list) != 0 {
		t.Errorf("a pod without a holder is listed: %v, %v", list, err)
	}
}

func TestLayersAreNotWalkedEveryTime(t *testing.T) {
	m, c := newMachine(t)
	first := m.now
	for range 3 {
		m.now = m.now.Add(time.Second)
		if _, err := c.Containers(nil); err != nil {
			t.Fatal(err)
		}
	}
	if m.walks != 1 {
		t.Errorf("%d walks within three seconds", m.walks)
	}
	s, _ := c.Container("c1")
	if got := s.GetWritableLayer().GetTimestamp(); got != first.Add(time.Second).UnixNano() {
		t.Errorf("the layer's timestamp is not that of the walk: %d", got)
	}
	m.now = m.now.Add(fsAge)
	c.Containers(nil)
	if m.walks != 2 {
		t.Errorf("%d walks after %s", m.walks, fsAge)
	}
	m.containers = nil
	c.Containers(nil)
	if len(c.layers) != 0 || len(c.windows) != 0 {
		t.Errorf("containers that are gone are remembered: %d layers, %d windows", len(c.layers), len(c.windows))
	}
}

func TestMetricsMatchTheirDescriptors(t *testing.T) {
	_, c := newMachine(t)
	keys := map[string][]string{}
	for _, d := range Descriptors() {
		if keys[d.GetName()] != nil {
			t.Errorf("%s is described twice", d.GetName())
		}
		if d.GetHelp() == "" || !slices.IsSorted(d.GetLabelKeys()) {
			t.Errorf("descriptor %v", d)
		}
		keys[d.GetName()] = d.GetLabelKeys()
	}
	pods, err := c.Metrics()
	if err != nil || len(pods) != 1 || len(pods[0].GetContainerMetrics()) != 1 {
		t.Fatalf("%v, %v", pods, err)
	}
	got := map[string]bool{}
	for _, m := range slices.Concat(pods[0].GetMetrics(), pods[0].GetContainerMetrics()[0].GetMetrics()) {
		if len(m.GetLabelValues()) != len(keys[m.GetName()]) {
			t.Errorf("%s has labels %q, its descriptor %q", m.GetName(), m.GetLabelValues(), keys[m.GetName()])
		}
		got[m.GetName()] = true
	}
	for name := range keys {
		if !got[name] {
			t.Errorf("%s has no value", name)
		}
	}
	if len(keys) != 56 {
		t.Errorf("%d metrics, want the 56 of cAdvisor that a kubelet shows", len(keys))
	}
}

func TestMetricValues(t *testing.T) {
	_, c := newMachine(t)
	pods, err := c.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	show := func(list []*cri.Metric) {
		keys := map[string][]string{}
		for _, d := range Descriptors() {
			keys[d.GetName()] = d.GetLabelKeys()
		}
		for _, m := range list {
			var labels []string
			for i, v := range m.GetLabelValues() {
				labels = append(labels, keys[m.GetName()][i]+"="+v)
			}
			lines = append(lines, fmt.Sprintf("%s{%s} %d", m.GetName(), strings.Join(labels, ","), m.GetValue().GetValue()))
		}
	}
	show(pods[0].GetMetrics())
	show(pods[0].GetContainerMetrics()[0].GetMetrics())
	const ctr = "container=main,"
	const rest = "id=" + parent + "/c1,image=docker.io/library/web:1,"
	for _, want := range []string{
		"container_cpu_usage_seconds_total{" + ctr + "cpu=total," + rest + "name=c1,namespace=default,pod=web} 5",
		"container_cpu_usage_seconds_total{container=,cpu=total,id=" + parent + ",image=,name=p1,namespace=default,pod=web} 7",
		"container_network_receive_packets_dropped_total{container=,id=" + parent + ",image=,interface=eth0,name=p1,namespace=default,pod=web} 24",
		"container_network_transmit_bytes_total{container=,id=" + parent + ",image=,interface=net1,name=p1,namespace=default,pod=web} 15",
		"container_memory_failures_total{" + ctr + "failure_type=pgmajfault," + rest + "name=c1,namespace=default,pod=web,scope=container} 1",
		"container_blkio_device_usage_total{" + ctr + "device=/dev/sdb," + rest + "major=8,minor=16,name=c1,namespace=default,operation=Write,pod=web} 1024",
		"container_fs_reads_total{" + ctr + "device=/dev/sdb," + rest + "name=c1,namespace=default,pod=web} 1",
		"container_pressure_io_stalled_seconds_total{" + ctr + rest + "name=c1,namespace=default,pod=web} 2",
		"container_spec_cpu_quota{" + ctr + rest + "name=c1,namespace=default,pod=web} 20000",
		"container_spec_memory_swap_limit_bytes{" + ctr + rest + "name=c1,namespace=default,pod=web} 2000",
		"container_spec_memory_reservation_limit_bytes{" + ctr + rest + "name=c1,namespace=default,pod=web} 0",
		"container_ulimits_soft{" + ctr + rest + "name=c1,namespace=default,pod=web,ulimit=max_open_files} 1024",
		"container_processes{" + ctr + rest + "name=c1,namespace=default,pod=web} 2",
		"container_file_descriptors{" + ctr + rest + "name=c1,namespace=default,pod=web} 2",
		"container_sockets{" + ctr + rest + "name=c1,namespace=default,pod=web} 1",
		"container_hugetlb_max_usage_bytes{" + ctr + rest + "name=c1,namespace=default,pagesize=2MB,pod=web} 4194304",
		"container_start_time_seconds{" + ctr + rest + "name=c1,namespace=default,pod=web} 1767225600",
		"container_last_seen{" + ctr + rest + "name=c1,namespace=default,pod=web} 1767225610",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("missing %s", want)
		}
	}
	if t.Failed() {
		t.Log(strings.Join(lines, "\n"))
	}
}

func TestDefaultInterface(t *testing.T) {
	v6 := "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth1\n" +
		"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000003 00000000 00000003     eth1\n" +
		"00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n"
	for want, files := range map[string][2]string{"eth0": {route, v6}, "eth1": {"", v6}, "": {"", ""}} {
		if got := defaultInterface([]byte(files[0]), []byte(files[1])); got != want {
			t.Errorf("default interface %q, want %q", got, want)
		}
	}
}

func FuzzNetDev(f *testing.F) {
	f.Add(netDev, route)
	f.Add("a\nb\neth0: 1 2 3", "\n")
	f.Fuzz(func(t *testing.T, dev, route string) {
		parseNetDev([]byte(dev))
		defaultInterface([]byte(route), []byte(route))
	})
}
