//go:build root

package pods

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// pids are the processes of a pod: its holder and its shim, or of a container.
type pids struct {
	Pid     int `json:"pid"`
	ShimPid int `json:"shimPid"`
}

func (n *node) podPids(id string) (p pids) {
	n.t.Helper()
	r, err := n.rt.PodSandboxStatus(n.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err == nil {
		err = json.Unmarshal([]byte(r.Info["info"]), &p)
	}
	if err != nil || p.Pid == 0 || p.ShimPid == 0 {
		n.t.Fatalf("the processes of pod %s: %+v, %v", id, p, err)
	}
	return p
}

func (n *node) containerPid(id string) int {
	n.t.Helper()
	var p pids
	r, err := n.rt.ContainerStatus(n.ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err == nil {
		err = json.Unmarshal([]byte(r.Info["info"]), &p)
	}
	if err != nil || p.Pid == 0 {
		n.t.Fatalf("the process of container %s: %+v, %v", id, p, err)
	}
	return p.Pid
}

// bystander is a pod that must not notice what happens to another.
type bystander struct {
	n       *node
	pod, id string
	pid     int
}

func (n *node) bystander() *bystander {
	n.t.Helper()
	config := n.podConfig("bystander")
	pod := n.pod(config)
	id := n.run(pod, config, "c", "exec sleep 1000")
	return &bystander{n: n, pod: pod, id: id, pid: n.containerPid(id)}
}

func (b *bystander) unharmed() {
	b.n.t.Helper()
	if s := b.n.podStatus(b.pod); s.State != cri.PodSandboxState_SANDBOX_READY {
		b.n.t.Error("another pod is not ready any more")
	}
	if pid := b.n.containerPid(b.id); pid != b.pid || b.n.exec(b.id, "echo ok") != "ok" {
		b.n.t.Errorf("the container of another pod is process %d, was %d", pid, b.pid)
	}
}

// TestShimDeath kills a shim, with the server alive and without.
func TestShimDeath(t *testing.T) {
	n := newNode(t)
	for _, alive := range []bool{true, false} {
		for _, pidMode := range []func(*cri.PodSandboxConfig){func(*cri.PodSandboxConfig) {}, sharedPID, userNamespace} {
			n.shimDeath(alive, pidMode)
		}
	}
}

func (n *node) shimDeath(alive bool, mode func(*cri.PodSandboxConfig)) {
	t := n.t
	other := n.bystander()
	config := n.podConfig("a", mapped, mode)
	pod := n.pod(config)
	before := n.run(pod, config, "before", "echo out; exit 3")
	n.ended(before)
	running := n.run(pod, config, "running", "echo logged; (sleep 2000 &); trap '' TERM; while :; do sleep 1; done")
	n.create(pod, containerConfig(config, "created", "true"), config)
	eventually(t, "it has logged", func() bool { return strings.Contains(n.log(running), "logged") })
	pid, p := n.containerPid(running), n.podPids(pod)
	if !alive {
		n.kill()
	}
	kill(t, p.ShimPid)
	if !alive {
		n.up("")
	}
	if s := n.ended(running); s.ExitCode != 137 || s.Reason != "ShimDied" || s.FinishedAt == 0 {
		t.Errorf("the container that ran: exit code %d, reason %s, finished at %d", s.ExitCode, s.Reason, s.FinishedAt)
	}
	if !gone(pid, long) || !gone(p.Pid, long) {
		t.Error("the container or the holder outlives the shim")
	}
	if s := n.status(before); s.ExitCode != 3 || s.Reason == "ShimDied" {
		t.Errorf("the container that had ended: exit code %d, reason %s", s.ExitCode, s.Reason)
	}
	n.notReady(pod)
	if log := n.log(running); !strings.Contains(log, "stdout F logged\n") {
		t.Errorf("what was logged is lost: %q", log)
	}
	other.unharmed()
	n.check()
	if err := n.tryStart(n.idOf("created")); err == nil {
		t.Error("a container was started without a shim")
	}
	n.stopPod(pod)
	n.check()
	if s := n.podStatus(pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY || n.status(running).ExitCode != 137 {
		t.Errorf("after stopping: %+v", s)
	}
	n.removePod(pod)
	other.unharmed()
	n.removeAll()
}

// idOf is the id of the container of that name.
func (n *node) idOf(name string) string {
	n.t.Helper()
	for _, c := range n.containers() {
		if c.Metadata.Name == name {
			return c.Id
		}
	}
	n.t.Fatalf("there is no container %s", name)
	return ""
}

// TestHolderDeath kills the process that holds a pod's namespaces: the pod is over, and nothing of its containers is lost.
func TestHolderDeath(t *testing.T) {
	n := newNode(t)
	for _, alive := range []bool{true, false} {
		other := n.bystander()
		config := n.podConfig("a", mapped)
		pod := n.pod(config)
		id := n.run(pod, config, "c", "trap 'echo last; exit 5' TERM; echo first; while :; do sleep 0.05; done")
		eventually(t, "it has logged", func() bool { return strings.Contains(n.log(id), "first") })
		p := n.podPids(pod)
		if !alive {
			n.kill()
		}
		kill(t, p.Pid)
		if !alive {
			n.up("")
		}
		n.notReady(pod)
		n.check()
		other.unharmed()
		n.stop(id)
		if s := n.ended(id); s.ExitCode != 5 || !strings.Contains(n.log(id), "last") {
			t.Errorf("exit code %d, reason %s, log %q", s.ExitCode, s.Reason, n.log(id))
		}
		n.stopPod(pod)
		n.check()
		n.removePod(pod)
		other.unharmed()
		n.removeAll()
	}
}

// TestHolderDeathInASharedPIDNamespace takes all containers along: it is their init.
func TestHolderDeathInASharedPIDNamespace(t *testing.T) {
	n := newNode(t)
	config := n.podConfig("a", sharedPID)
	pod := n.pod(config)
	id := n.run(pod, config, "c", "exec sleep 1000")
	kill(t, n.podPids(pod).Pid)
	if s := n.ended(id); s.ExitCode != 137 {
		t.Errorf("exit code %d, reason %s", s.ExitCode, s.Reason)
	}
	n.notReady(pod)
	n.check()
	n.removeAll()
}

// chatter logs about 10,000 numbered lines a second until the file is there, and then how many it were.
const chatter = `i=0; while [ ! -e /flag/stop ]; do j=0; while [ $j -lt 100 ]; do echo line $i; i=$((i+1)); j=$((j+1)); done; usleep 10000; done; echo lines $i`

// TestServerDeathLosesNoLine kills the server while a container logs, three times over.
func TestServerDeathLosesNoLine(t *testing.T) {
	n := newNode(t)
	flags := n.flags()
	config := n.podConfig("a")
	pod := n.pod(config)
	id := n.run(pod, config, "c", chatter, mounted(flags, "/flag"))
	before, pid := n.status(id), n.containerPid(id)
	for range 3 {
		size := n.size(before.LogPath)
		n.kill()
		eventually(t, "it logs without a server", func() bool { return n.size(before.LogPath) > size+100000 })
		n.up("")
		if s := n.status(id); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt != before.StartedAt || n.containerPid(id) != pid {
			t.Fatalf("after a restart of the server: %+v", s)
		}
		if got := n.exec(id, "echo ok"); got != "ok" {
			t.Error("no exec after a restart of the server")
		}
	}
	touch(t, flags, "stop")
	if s := n.ended(id); s.ExitCode != 0 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	text, next := n.log(id), 0
	for line := range strings.Lines(text) {
		_, words, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " stdout F ")
		if words == fmt.Sprint("lines ", next) {
			next = -next
			break
		}
		if words != fmt.Sprint("line ", next) {
			t.Fatalf("after %d lines: %q", next, line)
		}
		next++
	}
	if next > -1000 {
		t.Errorf("%d lines, and no end", next)
	}
	n.removeAll()
}

func (n *node) size(file string) int64 {
	n.t.Helper()
	st, err := os.Stat(file)
	if err != nil {
		n.t.Fatal(err)
	}
	return st.Size()
}

// flags is a directory on the host by which the test talks to containers.
func (n *node) flags() string {
	n.t.Helper()
	d := filepath.Join(filepath.Dir(n.dir), "flags")
	if err := os.MkdirAll(d, 0o755); err != nil {
		n.t.Fatal(err)
	}
	return d
}

func touch(t testing.TB, dir, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func mounted(from, to string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Mounts = append(c.Mounts, &cri.Mount{HostPath: from, ContainerPath: to})
	}
}

// TestExitsWhileTheServerIsDead are told when it is back, with their code and time.
func TestExitsWhileTheServerIsDead(t *testing.T) {
	n := newNode(t)
	flags := n.flags()
	config := n.podConfig("a")
	pod := n.pod(config)
	wait := "while [ ! -e /flag/go ]; do usleep 10000; done; "
	ends := n.run(pod, config, "ends", wait+"echo bye; exit 7", mounted(flags, "/flag"))
	dies := n.run(pod, config, "dies", "exec sleep 1000")
	bomb := n.run(pod, config, "bomb", wait+memoryBomb, mounted(flags, "/flag"), func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}
	})
	var processes []int
	for _, id := range []string{ends, dies, bomb} {
		processes = append(processes, n.containerPid(id))
	}
	n.kill()
	from := time.Now()
	touch(t, flags, "go")
	kill(t, processes[1])
	for _, pid := range processes {
		if !gone(pid, long) {
			t.Fatalf("process %d does not end", pid)
		}
	}
	eventually(t, "the shim has recorded the exits", func() bool {
		records, _ := filepath.Glob(n.path("run", "pods", pod, "*", "exit.json"))
		return len(records) == 3
	})
	to := time.Now()
	n.up("")
	for id, want := range map[string]struct {
		code   int32
		reason string
	}{ends: {7, "Error"}, dies: {137, "Error"}, bomb: {137, "OOMKilled"}} {
		s := n.status(id)
		if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != want.code || s.Reason != want.reason {
			t.Errorf("%s: %s, exit code %d, reason %s, want %+v", s.Metadata.Name, s.State, s.ExitCode, s.Reason, want)
		}
		if s.FinishedAt < from.UnixNano() || s.FinishedAt > to.UnixNano() {
			t.Errorf("%s: finished at %s, not between %s and %s", s.Metadata.Name, time.Unix(0, s.FinishedAt), from, to)
		}
	}
	if log := n.log(ends); !strings.HasSuffix(log, "stdout F bye\n") {
		t.Errorf("log %q", log)
	}
	n.check()
	n.removeAll()
}

// TestReboot has nothing left of running pods but the records, as after a reboot: no process, no run directory, no cgroup,
// another boot ID.
func TestReboot(t *testing.T) {
	n := newNode(t)
	config := n.podConfig("a", mapped)
	pod := n.pod(config)
	running := n.run(pod, config, "running", "exec sleep 1000")
	ended := n.run(pod, config, "ended", "exit 3")
	n.ended(ended)
	created := n.create(pod, containerConfig(config, "created", "true"), config)
	shared := n.podConfig("b", sharedPID)
	n.run(n.pod(shared), shared, "c", "exec sleep 1000")
	processes := append(n.processPids(), n.pid())
	for _, pid := range processes {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	for _, pid := range processes {
		if !gone(pid, long) {
			t.Fatalf("process %d outlives SIGKILL", pid)
		}
	}
	n.removeCgroups()
	if err := os.RemoveAll(n.path("run")); err != nil {
		t.Fatal(err)
	}
	boot := filepath.Join(filepath.Dir(n.dir), "boot_id")
	if err := os.WriteFile(boot, []byte("00000000-1111-2222-3333-444444444444\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(boot, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.end(); unix.Unmount("/proc/sys/kernel/random/boot_id", unix.MNT_DETACH) })
	n.up("")
	n.afterReboot(pod, running, ended, created)
	n.removeAll()
	again := n.pod(config) // the image is there, the name, the address and the port are free
	n.run(again, config, "running", "exec sleep 1000")
	n.removeAll()
}

func (n *node) afterReboot(pod, running, ended, created string) {
	n.t.Helper()
	n.check()
	if s := n.podStatus(pod); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		n.t.Errorf("pod: %s", s.State)
	}
	if s := n.status(running); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode == 0 || s.FinishedAt == 0 {
		n.t.Errorf("the container that ran: %s, exit code %d, reason %s, finished at %d", s.State, s.ExitCode, s.Reason, s.FinishedAt)
	}
	if s := n.status(ended); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 3 {
		n.t.Errorf("the container that had ended: %s, exit code %d, reason %s", s.State, s.ExitCode, s.Reason)
	}
	if err := n.tryStart(created); err == nil {
		n.t.Error("a container of a pod that is no more was started")
	}
	n.stopPod(pod)
	n.check()
}

// TestRunDirectoryGone has somebody remove the state of living pods while the server is dead.
func TestRunDirectoryGone(t *testing.T) {
	n := newNode(t)
	config := n.podConfig("a", mapped)
	pod := n.pod(config)
	running := n.run(pod, config, "running", "exec sleep 1000")
	ended := n.run(pod, config, "ended", "exit 3")
	n.ended(ended)
	created := n.create(pod, containerConfig(config, "created", "true"), config)
	n.kill()
	if err := os.RemoveAll(n.path("run")); err != nil {
		t.Fatal(err)
	}
	n.up("")
	n.afterReboot(pod, running, ended, created)
	n.removeAll()
}

// processPids are those of processes.
func (n *node) processPids() (out []int) {
	for _, p := range n.processes() {
		var pid int
		if _, err := fmt.Sscanf(p, "process %d", &pid); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// removeCgroups removes the node's cgroups, as a reboot does.
func (n *node) removeCgroups() {
	n.t.Helper()
	host, err := cgroup.Probe()
	if err != nil {
		n.t.Fatal(err)
	}
	defer host.Close()
	g, err := host.Open(n.group)
	if err == nil {
		err = g.Delete(n.ctx)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// limitedParent makes a cgroup of the client's with room for 20 processes and 64 MiB.
func (n *node) limitedParent(name string) string {
	n.t.Helper()
	host, err := cgroup.Probe()
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(host.Close)
	path := filepath.Join(testroot.Cgroup(n.t), filepath.Base(n.group)+"-"+name)
	g, err := host.Create(path, cgroup.CreateOptions{})
	if err == nil {
		err = g.Apply(limits(20, 64<<20))
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		n.end()
		if err := g.Delete(n.ctx); err != nil {
			n.t.Error(err)
		}
	})
	return path
}
