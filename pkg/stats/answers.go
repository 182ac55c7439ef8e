package stats

import (
	"maps"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// sample is one container, measured.
type sample struct {
	c     *Container
	at    time.Time
	usage *Usage // nil when it does not run
}

// Container answers ContainerStats: one that does not run has the size of its writable layer only. One
// that ended meanwhile is NotFound.
func (c *Collector) Container(ctr *Container) (*cri.ContainerStats, error) {
	s, err := c.sample(ctr)
	if err != nil {
		return nil, err
	}
	return c.containerStats(s), nil
}

// sample measures a container. Its usage is nil when it does not run.
func (c *Collector) sample(ctr *Container) (*sample, error) {
	s := &sample{c: ctr, at: c.Now()}
	if !ctr.Running() {
		return s, nil
	}
	var err error
	s.usage, err = c.Cgroups.Usage(ctr.Cgroup)
	return s, err
}

func (c *Collector) containerStats(s *sample) *cri.ContainerStats {
	out := &cri.ContainerStats{
		Attributes: &cri.ContainerAttributes{
			Id: s.c.ID, Metadata: s.c.Metadata, Labels: maps.Clone(s.c.Labels), Annotations: maps.Clone(s.c.Annotations),
		},
	}
	if u := s.usage; u != nil {
		out.Cpu = c.cpu(s.c.ID, s.c.StartedAt, s.at, u)
		out.Memory = memory(s.at, u)
		out.Swap = swap(s.at, u)
		out.Io = ioUsage(s.at, u)
	}
	if u, at, ok := c.layer(s.c.ID); ok {
		out.WritableLayer = &cri.FilesystemUsage{
			Timestamp: at.UnixNano(), FsId: &cri.FilesystemIdentifier{Mountpoint: u.Mountpoint},
			UsedBytes: value(u.Bytes), InodesUsed: value(u.Inodes),
		}
	}
	return out
}

// Pod answers PodSandboxStats for a pod and the running ones of its containers; without a holder it has
// attributes only. A pod that was stopped meanwhile is NotFound.
func (c *Collector) Pod(p *Pod, containers []Container) (*cri.PodSandboxStats, error) {
	out := &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{
			Id: p.ID, Metadata: p.Metadata, Labels: maps.Clone(p.Labels), Annotations: maps.Clone(p.Annotations),
		},
		Linux: &cri.LinuxPodSandboxStats{},
	}
	samples, err := c.podSamples(containers)
	if err != nil {
		return nil, err
	}
	for _, s := range samples {
		out.Linux.Containers = append(out.Linux.Containers, c.containerStats(s))
	}
	if p.HolderPid == 0 {
		return out, nil
	}
	at := c.Now()
	u, err := c.podUsage(p, samples)
	if err != nil {
		return nil, err
	}
	out.Linux.Cpu = c.cpu(p.ID, p.CreatedAt, at, u)
	out.Linux.Memory = memory(at, u)
	out.Linux.Io = ioUsage(at, u)
	out.Linux.Process = &cri.ProcessUsage{Timestamp: at.UnixNano(), ProcessCount: value(c.processCount(samples))}
	if !p.HostNetwork {
		out.Linux.Network = c.network(p.HolderPid, at)
	}
	return out, nil
}

// podSamples measures the running ones of a pod's containers.
func (c *Collector) podSamples(containers []Container) ([]*sample, error) {
	var out []*sample
	for i := range containers {
		if !containers[i].Running() {
			continue
		}
		s, err := c.sample(&containers[i])
		switch {
		case err == nil:
			out = append(out, s)
		case !errs.Is(err, errs.NotFound):
			return nil, err
		}
	}
	return out, nil
}

// processCount counts the processes of a pod's containers; the holder is ours and not counted.
func (c *Collector) processCount(samples []*sample) uint64 {
	var n uint64
	for _, s := range samples {
		pids, _ := c.Cgroups.Pids(s.c.Cgroup)
		n += uint64(len(pids))
	}
	return n
}

// network is nil where there is no interface but loopback: a kubelet expects a default one in the message.
func (c *Collector) network(pid int, at time.Time) *cri.NetworkUsage {
	list, err := c.interfaces(pid)
	if err != nil || len(list) == 0 {
		return nil
	}
	var all []*cri.NetworkInterfaceUsage
	for _, i := range list {
		all = append(all, &cri.NetworkInterfaceUsage{
			Name: i.name, RxBytes: value(i.rxBytes), RxErrors: value(i.rxErrors), TxBytes: value(i.txBytes), TxErrors: value(i.txErrors),
		})
	}
	return &cri.NetworkUsage{Timestamp: at.UnixNano(), DefaultInterface: all[0], Interfaces: slices.Clone(all[1:])}
}

func (c *Collector) cpu(id string, started, at time.Time, u *Usage) *cri.CpuUsage {
	return &cri.CpuUsage{
		Timestamp:            at.UnixNano(),
		UsageCoreNanoSeconds: value(u.CPU.Total),
		UsageNanoCores:       value(c.rate(id, started, at, u.CPU.Total)),
		Psi:                  psi(u.CPUPressure),
	}
}

func memory(at time.Time, u *Usage) *cri.MemoryUsage {
	m := &u.Memory
	out := &cri.MemoryUsage{
		Timestamp: at.UnixNano(), WorkingSetBytes: value(m.WorkingSet), UsageBytes: value(m.Usage), RssBytes: value(m.RSS),
		PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults), Psi: psi(u.MemoryPressure),
	}
	if m.Limit != Unlimited {
		out.AvailableBytes = value(m.Limit - min(m.Limit, m.WorkingSet))
	}
	return out
}

func swap(at time.Time, u *Usage) *cri.SwapUsage {
	m := &u.Memory
	out := &cri.SwapUsage{Timestamp: at.UnixNano(), SwapUsageBytes: value(m.Swap)}
	if m.SwapLimit != Unlimited {
		out.SwapAvailableBytes = value(m.SwapLimit - min(m.SwapLimit, m.Swap))
	}
	return out
}

func ioUsage(at time.Time, u *Usage) *cri.IoUsage {
	return &cri.IoUsage{Timestamp: at.UnixNano(), Psi: psi(u.IOPressure)}
}

func psi(p *Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l PressureLine) *cri.PsiData {
		return &cri.PsiData{Total: l.Total, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &cri.PsiStats{Some: line(p.Some), Full: line(p.Full)}
}

func value(v uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: v} }
