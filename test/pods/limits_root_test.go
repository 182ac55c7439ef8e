//go:build root

package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func limits(pids, memory int64) *specs.LinuxResources {
	return &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}, Memory: &specs.LinuxMemory{Limit: &memory, Swap: &memory}}
}

// memoryBomb doubles a variable until there is no memory.
const memoryBomb = "echo before; x=0123456789abcdef; while :; do x=$x$x; done"

// forkBomb starts processes until there are no more, tells, and ends with a code of its own.
const forkBomb = `echo before; i=0; while [ $i -lt 50 ]; do (sleep 1000 &) 2>/dev/null; i=$((i+1)); done; echo after; exit 9`

// TestBombs are pods in a cgroup of the client's with little room, which is all that limits them.
func TestBombs(t *testing.T) {
	n := newNode(t)
	other := n.bystander()
	for name, mode := range map[string]func(*cri.PodSandboxConfig){"own": func(*cri.PodSandboxConfig) {}, "shared": sharedPID} {
		config := n.podConfig("bombs-"+name, mode, within(n.limitedParent(name)))
		pod := n.pod(config)
		shim := n.podPids(pod).ShimPid
		quiet := n.run(pod, config, "quiet", "exec sleep 1000", func(c *cri.ContainerConfig) {
			c.Linux.Resources = &cri.LinuxContainerResources{OomScoreAdj: -1}
		})
		for i := range 3 {
			memory := n.run(pod, config, fmt.Sprint("memory", i), memoryBomb)
			if s := n.ended(memory); s.ExitCode != 137 || s.Reason != "OOMKilled" {
				t.Errorf("memory bomb: exit code %d, reason %s", s.ExitCode, s.Reason)
			}
			if log := n.log(memory); !strings.HasSuffix(log, "stdout F before\n") || strings.Count(log, "\n") != 1 {
				t.Errorf("memory bomb: log %q", log)
			}
			forks := n.run(pod, config, fmt.Sprint("forks", i), forkBomb)
			s := n.ended(forks)
			if s.ExitCode != 9 && s.ExitCode != 2 || s.Reason != "Error" { // 2: busybox's shell cannot fork
				t.Errorf("fork bomb: exit code %d, reason %s, log %q", s.ExitCode, s.Reason, n.log(forks))
			}
			if log := n.log(forks); !strings.Contains(log, "stdout F before\n") || s.ExitCode == 9 && !strings.Contains(log, "stdout F after\n") {
				t.Errorf("fork bomb: log %q", log)
			}
			if n.podPids(pod).ShimPid != shim || gone(shim, 0) {
				t.Fatal("the shim died")
			}
			n.check()
			n.remove(memory)
			n.remove(forks)
		}
		if s := n.podStatus(pod); s.State != cri.PodSandboxState_SANDBOX_READY {
			t.Error("the pod is not ready any more")
		}
		if s := n.status(quiet); s.State != cri.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the quiet container of the pod: exit code %d, reason %s", s.ExitCode, s.Reason)
		}
		other.unharmed()
		n.stopPod(pod)
		n.check()
		n.removePod(pod)
	}
	n.removeAll()
}

// TestForkBombDoesNotEnd is one that goes on: it is stopped, and everything it started.
func TestForkBombDoesNotEnd(t *testing.T) {
	n := newNode(t)
	other := n.bystander()
	config := n.podConfig("bomb", within(n.limitedParent("limited")))
	pod := n.pod(config)
	id := n.run(pod, config, "c", `mkfifo /tmp/p; exec 3<>/tmp/p; trap '' TERM; (while :; do sleep 1000 & done) 2>/dev/null & while :; do read x <&3; done`)
	eventually(t, "the bomb has no more room", func() bool {
		for _, file := range []string{"pids/" + config.Linux.CgroupParent, config.Linux.CgroupParent} {
			if b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", file, "pids.current")); err == nil {
				current, _ := strconv.Atoi(strings.TrimSpace(string(b)))
				return current >= 19 // what found no room has ended
			}
		}
		return false
	})
	other.unharmed()
	n.check()
	if _, err := n.rt.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Error(err)
	}
	if s := n.ended(id); s.ExitCode != 137 {
		t.Errorf("exit code %d, reason %s", s.ExitCode, s.Reason)
	}
	other.unharmed()
	n.removeAll()
}
