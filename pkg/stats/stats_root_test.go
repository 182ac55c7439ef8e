//go:build root

package stats

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

func TestMain(m *testing.M) {
	if os.Getenv("STATS_CHILD") != "" {
		io.Copy(io.Discard, os.Stdin) // lives as long as its parent
		os.Exit(0)
	}
	testroot.Main(m)
}

// onePod is a source of one pod with one container, whose writable layer is a directory.
type onePod struct {
	pod       Pod
	container Container
	dir       string
}

func (l *onePod) StatsPods() []Pod             { return []Pod{l.pod} }
func (l *onePod) StatsContainers() []Container { return []Container{l.container} }

func (l *onePod) RootfsUsage(string) (image.Usage, error) {
	return image.Usage{Mountpoint: l.dir, Bytes: 4096, Inodes: 1}, nil
}

func TestRealProcessIsMeasured(t *testing.T) {
	testroot.NeedRoot(t)
	host, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	path := filepath.Join(testroot.Cgroup(t), "container")
	g, err := host.Create(path, cgroup.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(64 << 20)
	if err := g.Apply(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "STATS_CHILD=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		cmd.Wait()
	}()
	if err := g.Enter(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}

	node := &onePod{
		pod: Pod{
			ID: "p", Metadata: &cri.PodSandboxMetadata{Name: "pod", Namespace: "ns", Uid: "u"}, Holder: path, HolderPid: cmd.Process.Pid, CreatedAt: time.Now(),
		},
		container: Container{
			ID: "c", PodID: "p", Metadata: &cri.ContainerMetadata{Name: "main"}, Cgroup: path, Pid: cmd.Process.Pid, StartedAt: time.Now(),
			Resources: &cri.LinuxContainerResources{CpuQuota: 1000},
		},
		dir: t.TempDir(),
	}
	c := New(Config{Source: node, Cgroups: HostCgroups{host}, Filesystems: node})
	s, err := c.Container("c")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.GetMemory().GetAvailableBytes().GetValue(); got == 0 || got > uint64(limit) {
		t.Errorf("%d bytes of %d are available", got, limit)
	}
	if s.GetCpu().GetTimestamp() == 0 || s.GetWritableLayer().GetUsedBytes().GetValue() != 4096 {
		t.Errorf("%v", s)
	}
	pods, err := c.Metrics()
	if err != nil || len(pods) != 1 {
		t.Fatalf("%v, %v", pods, err)
	}
	have := map[string]bool{}
	for _, m := range pods[0].GetContainerMetrics()[0].GetMetrics() {
		have[m.GetName()] = true
		if m.GetName() == "container_processes" && m.GetValue().GetValue() != 1 {
			t.Errorf("%d processes", m.GetValue().GetValue())
		}
	}
	for _, d := range Descriptors() {
		if !have[d.GetName()] && !contains(networkMetrics, d.GetName()) {
			t.Errorf("%s has no value", d.GetName())
		}
	}
	if _, err := (HostCgroups{host}).Usage(path + "-none"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a cgroup that is not there: %v", err)
	}
}

func contains(rows []*metric, name string) bool {
	for _, m := range rows {
		if m.name == name {
			return true
		}
	}
	return false
}
