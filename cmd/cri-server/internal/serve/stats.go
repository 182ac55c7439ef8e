package serve

import (
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/stats"
)

// collector adds the descriptors, which belong to no collector in particular.
type collector struct{ *stats.Collector }

// Descriptors implements server.Stats.
func (collector) Descriptors() []*cri.MetricDescriptor { return stats.Descriptors() }

// source shows pods and containers to pkg/stats as that wants them.
type source struct{ m *sandbox.Manager }

// StatsPods implements stats.Source.
func (s source) StatsPods() []stats.Pod {
	var out []stats.Pod
	for _, p := range s.m.Pods() {
		sp := stats.Pod{ID: p.ID, Metadata: p.Config.GetMetadata(), Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(),
			Parent: p.Cgroup, Holder: p.CgroupPath, CreatedAt: p.CreatedAt,
			HostNetwork: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == cri.NamespaceMode_NODE}
		if p.Ready {
			sp.HolderPid = p.HolderPid
		}
		out = append(out, sp)
	}
	return out
}

// StatsContainers implements stats.Source.
func (s source) StatsContainers() []stats.Container {
	var out []stats.Container
	for _, c := range s.m.Containers() {
		sc := stats.Container{ID: c.ID, PodID: c.PodID, Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
			Image: c.Config.GetImage().GetUserSpecifiedImage(), Cgroup: c.CgroupPath, StartedAt: c.StartedAt, Resources: c.Resources}
		if sc.Image == "" {
			sc.Image = c.Config.GetImage().GetImage()
		}
		if c.State() == sandbox.Running {
			sc.Pid = c.Pid
		}
		out = append(out, sc)
	}
	return out
}
