package server

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/stats"
)

// Snapshots hands the pods and containers of a sandbox manager to pkg/stats: it is a stats.Source.
type Snapshots struct {
	Sandboxes interface {
		Pods() []*sandbox.Pod
		Containers() []*sandbox.Container
	}
}

// StatsPods lists the pods there are now. One that is not ready has no holder to be measured by.
func (s Snapshots) StatsPods() []stats.Pod {
	var out []stats.Pod
	for _, p := range s.Sandboxes.Pods() {
		out = append(out, statsPod(p))
	}
	return out
}

// StatsContainers lists the containers there are now, running or not.
func (s Snapshots) StatsContainers() []stats.Container {
	var out []stats.Container
	for _, c := range s.Sandboxes.Containers() {
		out = append(out, statsContainer(c))
	}
	return out
}

func statsPod(p *sandbox.Pod) stats.Pod {
	out := stats.Pod{
		ID: p.ID, Metadata: p.Config.GetMetadata(), Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(),
		Parent: p.Cgroup, Holder: p.CgroupPath, CreatedAt: p.CreatedAt,
		HostNetwork: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE,
	}
	if p.Ready {
		out.HolderPid = p.HolderPid
	}
	return out
}

func statsContainer(c *sandbox.Container) stats.Container {
	out := stats.Container{
		ID: c.ID, PodID: c.PodID, Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		Image: c.Config.GetImage().GetUserSpecifiedImage(), Cgroup: c.CgroupPath, StartedAt: c.StartedAt, Resources: c.Resources,
	}
	if out.Image == "" {
		out.Image = c.ImageRef
	}
	if c.State() == sandbox.Running {
		out.Pid = c.Pid
	}
	return out
}
