//go:build root

package pods

import (
	"strings"
	"sync"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// observed is a pod in which containers see each other's processes, and how the observer gets to see them.
type observed struct {
	name string
	pod  func(*cri.PodSandboxConfig)
	into func(victim string) func(*cri.ContainerConfig) // the observer's container
}

func asIs(string) func(*cri.ContainerConfig) { return func(*cri.ContainerConfig) {} }

func targeting(victim string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: victim}
	}
}

func userNamespace(c *cri.PodSandboxConfig) {
	ids := []*cri.IDMapping{{HostId: 200000, Length: 65536}}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
}

var observedPods = []observed{
	{"pod", sharedPID, asIs},
	{"target", func(*cri.PodSandboxConfig) {}, targeting},
	{"user namespace", func(c *cri.PodSandboxConfig) { sharedPID(c); userNamespace(c) }, asIs},
}

func traces(c *cri.ContainerConfig) {
	c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_PTRACE"}}
}

// TestNothingOfTheHostIsSeenInASharedPIDNamespace has a container with CAP_SYS_PTRACE look at everything that /proc tells of
// every process, while commands are executed and containers started beside it.
func TestNothingOfTheHostIsSeenInASharedPIDNamespace(t *testing.T) {
	n := newNode(t)
	for _, o := range observedPods {
		t.Run(o.name, func(t *testing.T) {
			n.t = t
			config := n.podConfig("seen", o.pod)
			pod := n.pod(config)
			victim := n.run(pod, config, "victim", "exec sleep 1000")
			watch := n.observe(pod, config, o.into(victim))
			n.execs(victim, 500)
			for range 20 {
				id := n.run(pod, config, "started", "exec true", o.into(victim))
				n.ended(id)
				n.remove(id)
			}
			n.execs(watch, 20)
			log := n.observed(watch)
			if strings.Contains(log, "FINDING") || !strings.Contains(log, "busybox:") {
				t.Errorf("the observer says:\n%s", log)
			}
			t.Log(log[strings.LastIndex(log, "done:"):])
			n.removeAll()
		})
		n.t = t
	}
}

// TestObserver shows that the observer sees what there is to see.
func TestObserver(t *testing.T) {
	n := newNode(t)
	config := n.podConfig("seen", sharedPID)
	pod := n.pod(config)
	n.run(pod, config, "open", "exec 9</etc/passwd; exec sleep 1000")
	n.run(pod, config, "mount", "mkdir /other; cd /other; exec sleep 1000", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: "/bin", ContainerPath: "/host"}, {HostPath: "/lib64", ContainerPath: "/lib64"}, {HostPath: "/lib", ContainerPath: "/lib"}}
		c.Command = []string{"/host/sleep", "1000"}
	})
	watch := n.observe(pod, config, func(*cri.ContainerConfig) {})
	n.execs(watch, 1)
	log := n.observed(watch)
	for _, want := range []string{"descriptor 9 is /etc/passwd", "executable /host/sleep", "it has /host/sleep mapped"} {
		if !strings.Contains(log, want) {
			t.Errorf("it does not see %q:\n%s", want, log)
		}
	}
	n.removeAll()
}

// observe starts the observer.
func (n *node) observe(pod string, config *cri.PodSandboxConfig, edit func(*cri.ContainerConfig)) string {
	n.t.Helper()
	id := n.run(pod, config, "observer", "", edit, traces, func(c *cri.ContainerConfig) { c.Command = []string{"/bin/observer", n.dir} })
	eventually(n.t, "the observer observes", func() bool { return strings.Contains(n.log(id), "observing") })
	return id
}

// observed ends the observer and returns what it saw.
func (n *node) observed(id string) string {
	n.t.Helper()
	n.stop(id)
	if s := n.status(id); s.ExitCode != 0 {
		n.t.Errorf("the observer: exit code %d: %s", s.ExitCode, n.log(id))
	}
	return n.log(id)
}

// execs executes a command in the container, some at a time.
func (n *node) execs(id string, count int) {
	n.t.Helper()
	todo := make(chan int)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range todo {
				r, err := n.rt.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 60})
				if err != nil || r.ExitCode != 0 {
					n.t.Errorf("exec: %+v, %v", r, err)
				}
			}
		})
	}
	for i := range count {
		todo <- i
	}
	close(todo)
	wg.Wait()
}

// stop stops the container, with a grace period that nobody needs.
func (n *node) stop(id string) {
	n.t.Helper()
	if _, err := n.rt.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 60}); err != nil {
		n.t.Errorf("stop container: %v", err)
	}
}

func (n *node) remove(id string) {
	n.t.Helper()
	if _, err := n.rt.RemoveContainer(n.ctx, &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		n.t.Errorf("remove container: %v", err)
	}
}
