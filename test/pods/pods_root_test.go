//go:build root

package pods

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podConfig is a small pod with an address of its own.
func (n *node) podConfig(name string, edit ...func(*cri.PodSandboxConfig)) *cri.PodSandboxConfig {
	c := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name, LogDirectory: filepath.Join(n.logs, name),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	}
	for _, e := range edit {
		e(c)
	}
	return c
}

// sharedPID makes the containers of a pod share one PID namespace.
func sharedPID(c *cri.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
}

// within puts the pod below a cgroup of the client's.
func within(parent string) func(*cri.PodSandboxConfig) {
	return func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = parent }
}

// containerConfig is a container of the pod that runs a script.
func containerConfig(pod *cri.PodSandboxConfig, name, script string, edit ...func(*cri.ContainerConfig)) *cri.ContainerConfig {
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: busybox}, Command: []string{"sh", "-c", script}, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: pod.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
	}
	for _, e := range edit {
		e(c)
	}
	return c
}

func (n *node) tryPod(config *cri.PodSandboxConfig) (string, error) {
	ctx, cancel := context.WithTimeout(n.ctx, long)
	defer cancel()
	r, err := n.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	return r.GetPodSandboxId(), err
}

func (n *node) pod(config *cri.PodSandboxConfig) string {
	n.t.Helper()
	id, err := n.tryPod(config)
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) tryCreate(pod string, config *cri.ContainerConfig, podConfig *cri.PodSandboxConfig) (string, error) {
	ctx, cancel := context.WithTimeout(n.ctx, long)
	defer cancel()
	r, err := n.rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: podConfig})
	return r.GetContainerId(), err
}

func (n *node) create(pod string, config *cri.ContainerConfig, podConfig *cri.PodSandboxConfig) string {
	n.t.Helper()
	id, err := n.tryCreate(pod, config, podConfig)
	if err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) tryStart(id string) error {
	ctx, cancel := context.WithTimeout(n.ctx, long)
	defer cancel()
	_, err := n.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
	return err
}

func (n *node) start(id string) {
	n.t.Helper()
	if err := n.tryStart(id); err != nil {
		n.t.Fatal(err)
	}
}

// run creates and starts a container that runs a script.
func (n *node) run(pod string, podConfig *cri.PodSandboxConfig, name, script string, edit ...func(*cri.ContainerConfig)) string {
	n.t.Helper()
	id := n.create(pod, containerConfig(podConfig, name, script, edit...), podConfig)
	n.start(id)
	return id
}

func (n *node) status(id string) *cri.ContainerStatus {
	n.t.Helper()
	r, err := n.rt.ContainerStatus(n.ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Status
}

func (n *node) podStatus(id string) *cri.PodSandboxStatus {
	n.t.Helper()
	r, err := n.rt.PodSandboxStatus(n.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Status
}

// ended waits for the container to exit.
func (n *node) ended(id string) *cri.ContainerStatus {
	n.t.Helper()
	var s *cri.ContainerStatus
	eventually(n.t, "container "+id+" has exited", func() bool {
		s = n.status(id)
		return s.State == cri.ContainerState_CONTAINER_EXITED
	})
	return s
}

// exec runs a script in the container, which must succeed, and returns what it said.
func (n *node) exec(id, script string) string {
	n.t.Helper()
	r, err := n.rt.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
	if err != nil || r.ExitCode != 0 {
		n.t.Fatalf("exec %q: exit code %d, %v: %s%s", script, r.GetExitCode(), err, r.GetStdout(), r.GetStderr())
	}
	return strings.TrimSpace(string(r.Stdout))
}

func (n *node) log(id string) string {
	n.t.Helper()
	b, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// containers and pods list what the server has.
func (n *node) containers() []*cri.Container {
	n.t.Helper()
	r, err := n.rt.ListContainers(n.ctx, &cri.ListContainersRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Containers
}

func (n *node) pods() []*cri.PodSandbox {
	n.t.Helper()
	r, err := n.rt.ListPodSandbox(n.ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Items
}

func (n *node) stopPod(id string) {
	n.t.Helper()
	if _, err := n.rt.StopPodSandbox(n.ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		n.t.Errorf("stop pod: %v", err)
	}
}

func (n *node) removePod(id string) {
	n.t.Helper()
	if _, err := n.rt.RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		n.t.Errorf("remove pod: %v", err)
	}
}

// removeAll removes every pod and holds the machine to having nothing of them.
func (n *node) removeAll() {
	n.t.Helper()
	for _, p := range n.pods() {
		n.removePod(p.Id)
	}
	n.clean()
}
