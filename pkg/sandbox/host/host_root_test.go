//go:build root

package host

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

func TestPodEndToEnd(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	p, err := r.mgr.Pod(pod)
	if err != nil || len(p.Network.IPs) == 0 {
		t.Fatalf("pod %+v, %v", p, err)
	}
	id := r.container(pod, "c", "echo out; echo err >&2; exec sleep 1000")
	if got := r.exec(id, "hostname; cat /etc/hostname; ps | grep -c \"[s]leep 1000\""); got != "a\na\n1" {
		t.Errorf("exec says %q", got)
	}
	if got := r.exec(id, "ip -4 addr show eth0"); !strings.Contains(got, p.Network.IPs[0]) {
		t.Errorf("the pod's address %s is not in %s", p.Network.IPs[0], got)
	}
	for _, want := range []string{"stdout F out\n", "stderr F err\n"} {
		if log := r.log(id); !strings.Contains(log, want) {
			t.Errorf("log %q lacks %q", log, want)
		}
	}
	r.clean()
	if err := r.mgr.StopContainer(r.ctx, id, time.Second); err != nil {
		t.Fatal(err)
	}
	c, err := r.mgr.Container(id)
	if err != nil || c.State() != sandbox.Exited {
		t.Fatalf("container %+v, %v", c, err)
	}
	r.clean()
	r.removeAll()
}

func TestContainersOfAPodShareShmAndNetwork(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	one := r.container(pod, "one", "while :; do echo hello | nc -l -p 8000; done")
	two := r.container(pod, "two", "exec sleep 1000")
	r.exec(one, "echo shared > /dev/shm/x")
	if got := r.exec(two, "cat /dev/shm/x"); got != "shared" {
		t.Errorf("/dev/shm has %q", got)
	}
	if _, err := os.Stat("/dev/shm/x"); err == nil {
		t.Error("/dev/shm is the host's")
	}
	if got := r.exec(two, "nc 127.0.0.1 8000 </dev/null"); got != "hello" {
		t.Errorf("the neighbour says %q", got)
	}
	r.removeAll()
}

func TestSharedPIDNamespace(t *testing.T) {
	r := newRig(t)
	config := r.podConfig("a")
	config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	pod := r.runPod(config)
	r.container(pod, "one", "exec sleep 1111")
	two := r.container(pod, "two", "exec sleep 2222")
	if got := r.exec(two, "ps"); !strings.Contains(got, "1111") || !strings.Contains(got, "2222") {
		t.Errorf("ps says %s", got)
	}
	if err := r.mgr.StopContainer(r.ctx, two, 0); err != nil {
		t.Fatal(err)
	}
	r.removeAll()
}

func TestHostNetwork(t *testing.T) {
	r := newRig(t)
	config := r.podConfig("a")
	config.Hostname = ""
	config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	pod := r.runPod(config)
	id := r.container(pod, "c", "exec sleep 1000")
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := r.mgr.Container(id)
	got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.Pid))
	if err != nil || got != host {
		t.Errorf("network namespace %s, %v; want %s", got, err, host)
	}
	r.removeAll()
}

func TestUserNamespace(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // as the server has it
	for name, pid := range map[string]cri.NamespaceMode{"own": cri.NamespaceMode_CONTAINER, "shared": cri.NamespaceMode_POD} {
		t.Run(name, func(t *testing.T) { userNamespace(t, pid) })
	}
}

func userNamespace(t *testing.T, pid cri.NamespaceMode) {
	r := newRig(t)
	config := r.podConfig("a")
	config.Linux.SecurityContext.NamespaceOptions.Pid = pid
	maps := []*cri.IDMapping{{HostId: 200000, ContainerId: 0, Length: 65536}}
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: maps, Gids: maps}
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	pod := r.runPod(config)
	id := r.container(pod, "c", "exec sleep 1000")
	if got := r.exec(id, "touch /made; id -u; stat -c %u /bin/busybox /made; cat /proc/sys/net/ipv4/ip_forward; ls /sys/fs/cgroup | grep -q . && echo cgroups"); got != "0\n0\n0\n1\ncgroups" {
		t.Errorf("inside: %q", got)
	}
	c, _ := r.mgr.Container(id)
	st, err := os.Stat(fmt.Sprintf("/proc/%d", c.Pid))
	if err != nil || st.Sys().(*syscall.Stat_t).Uid != 200000 {
		t.Errorf("on the host the process belongs to %v, %v", st, err)
	}
	r.removeAll()
}

func TestMemoryBombIsOOMKilled(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	other := r.container(pod, "other", "exec sleep 1000")
	id := r.container(pod, "bomb", "x=a; while :; do x=$x$x; done", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}
	})
	if c := r.await(id); c.ExitCode != 137 || c.Reason != "OOMKilled" {
		t.Errorf("exit %d, reason %s", c.ExitCode, c.Reason)
	}
	if got := r.exec(other, "echo alive"); got != "alive" {
		t.Error("the other container is harmed")
	}
	r.clean()
	r.removeAll()
}

func TestExecSyncKillsTheTreeAfterItsTimeout(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	id := r.container(pod, "c", "exec sleep 1000")
	_, _, _, err := r.mgr.ExecSync(r.ctx, id, []string{"sh", "-c", "sleep 3333 & sleep 4444"}, 200*time.Millisecond)
	if !errs.Is(err, errs.Timeout) {
		t.Fatal(err)
	}
	if got := r.exec(id, "ps"); strings.Contains(got, "3333") || strings.Contains(got, "4444") {
		t.Errorf("the command lives on: %s", got)
	}
	begin := time.Now()
	if got := r.exec(id, "sleep 500 & echo done"); got != "done" || time.Since(begin) > 100*time.Second {
		t.Errorf("%q: the exec waited for its child", got)
	}
	r.removeAll()
}

func TestStartErrorNamesTheCommand(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	p, _ := r.mgr.Pod(pod)
	id, err := r.mgr.CreateContainer(r.ctx, pod, &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: r.ref}, Command: []string{"no-such-command"},
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: p.Config.Linux.SecurityContext.NamespaceOptions}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.mgr.StartContainer(r.ctx, id); err == nil || !strings.Contains(err.Error(), "no-such-command") {
		t.Errorf("start: %v", err)
	}
	if c, _ := r.mgr.Container(id); c.State() != sandbox.Exited || c.ExitCode != 128 || c.Reason != "StartError" {
		t.Errorf("container %+v", c)
	}
	r.removeAll()
}

func TestRestartKeepsContainers(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	lives := r.container(pod, "lives", "exec sleep 1000")
	dies := r.container(pod, "dies", "sleep 0.3; exit 7")
	before, _ := r.mgr.Container(lives)
	ends, _ := r.mgr.Container(dies)
	r.close()
	for alive(ends.Pid) {
		time.Sleep(10 * time.Millisecond)
	}
	r.open()
	after, err := r.mgr.Container(lives)
	if err != nil || after.Pid != before.Pid || after.State() != sandbox.Running {
		t.Errorf("container %+v, %v", after, err)
	}
	if c := r.await(dies); c.ExitCode != 7 {
		t.Errorf("container %+v", c)
	}
	if got := r.exec(lives, "echo hi"); got != "hi" {
		t.Error(got)
	}
	r.clean()
	r.removeAll()
}

func TestShimDeathTakesThePod(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	other := r.runPod(r.podConfig("b"))
	id := r.container(pod, "c", "exec sleep 1000")
	keeps := r.container(other, "c", "exec sleep 1000")
	p, _ := r.mgr.Pod(pod)
	if err := syscall.Kill(p.ShimPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if c := r.await(id); c.ExitCode != 137 || c.Reason != "ShimDied" {
		t.Errorf("container %+v", c)
	}
	if got := r.exec(keeps, "echo hi"); got != "hi" {
		t.Error("another pod is harmed")
	}
	if err := r.mgr.StopPod(r.ctx, pod); err != nil {
		t.Error(err)
	}
	r.clean()
	r.removeAll()
}

func TestHolderDeathIsNotReady(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	id := r.container(pod, "c", "exec sleep 1000")
	events := r.mgr.Subscribe(r.ctx)
	p, _ := r.mgr.Pod(pod)
	if err := syscall.Kill(p.HolderPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for ev := range events {
		if ev.Pod != nil && ev.Container == nil && !ev.Pod.Ready {
			break
		}
	}
	if c, _ := r.mgr.Container(id); c.State() != sandbox.Running {
		t.Errorf("container %+v", c)
	}
	r.removeAll()
}

func TestUpdateLimits(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	id := r.container(pod, "c", "exec sleep 1000", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	})
	if err := r.mgr.UpdateContainer(r.ctx, id, &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	c, _ := r.mgr.Container(id)
	if c.Resources.MemoryLimitInBytes != 128<<20 || c.Resources.CpuShares != 512 {
		t.Errorf("resources %v", c.Resources)
	}
	found := false
	for _, h := range r.m.cgroups.Hierarchies() {
		for _, f := range []string{"memory.limit_in_bytes", "memory.max"} {
			if data, err := os.ReadFile(h.Mount + c.CgroupPath + "/" + f); err == nil {
				found = true
				if got := strings.TrimSpace(string(data)); got != strconv.Itoa(128<<20) {
					t.Errorf("%s is %s", f, got)
				}
			}
		}
	}
	if !found {
		t.Error("no memory limit found")
	}
	r.removeAll()
}
