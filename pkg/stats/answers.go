package stats

import (
	"maps"
	"slices"
	"strings"
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

// Container answers ContainerStats for an ID, running or not. NotFound when there is none.
func (c *Collector) Container(id string) (*cri.ContainerStats, error) {
	for _, ctr := range c.Source.StatsContainers() {
		if ctr.ID == id {
			s, err := c.sample(&ctr)
			if err != nil && !errs.Is(err, errs.NotFound) {
				return nil, err
			}
			return c.containerStats(s), nil
		}
	}
	return nil, errs.New(errs.NotFound, "container %s: not found", id)
}

// Containers answers ListContainerStats: running containers, in the source's order.
func (c *Collector) Containers(filter *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	all := c.Source.StatsContainers()
	c.forget(all)
	var out []*cri.ContainerStats
	for i := range all {
		ctr := &all[i]
		if !ctr.Running() || !matches(filter.GetId(), ctr.ID) || !matches(filter.GetPodSandboxId(), ctr.PodID) || !selects(filter.GetLabelSelector(), ctr.Labels) {
			continue
		}
		s, err := c.sample(ctr)
		if errs.Is(err, errs.NotFound) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, c.containerStats(s))
	}
	return out, nil
}

// Pod answers PodSandboxStats. NotFound when there is none.
func (c *Collector) Pod(id string) (*cri.PodSandboxStats, error) {
	for _, p := range c.Source.StatsPods() {
		if p.ID == id {
			return c.podStats(&p)
		}
	}
	return nil, errs.New(errs.NotFound, "pod sandbox %s: not found", id)
}

// Pods answers ListPodSandboxStats: pods that have a holder, in the source's order.
func (c *Collector) Pods(filter *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	c.forget(c.Source.StatsContainers())
	var out []*cri.PodSandboxStats
	for _, p := range c.Source.StatsPods() {
		if p.HolderPid == 0 || !matches(filter.GetId(), p.ID) || !selects(filter.GetLabelSelector(), p.Labels) {
			continue
		}
		s, err := c.podStats(&p)
		if errs.Is(err, errs.NotFound) {
			continue // stopped meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// matches compares with a filter's ID, which crictl shortens.
func matches(want, id string) bool { return strings.HasPrefix(id, want) }

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// forget drops what is remembered of objects that are gone.
func (c *Collector) forget(containers []Container) {
	live := make(map[string]bool, 2*len(containers))
	for i := range containers {
		live[containers[i].ID] = true
	}
	for _, p := range c.Source.StatsPods() {
		live[p.ID] = true
	}
	c.prune(live)
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

func (c *Collector) podStats(p *Pod) (*cri.PodSandboxStats, error) {
	out := &cri.PodSandboxStats{
		Attributes: &cri.PodSandboxAttributes{
			Id: p.ID, Metadata: p.Metadata, Labels: maps.Clone(p.Labels), Annotations: maps.Clone(p.Annotations),
		},
		Linux: &cri.LinuxPodSandboxStats{},
	}
	samples, err := c.podSamples(p.ID)
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
	out.Linux.Process = &cri.ProcessUsage{Timestamp: at.UnixNano(), ProcessCount: value(c.processCount(p, samples))}
	if !p.HostNetwork {
		out.Linux.Network = c.network(p.HolderPid, at)
	}
	return out, nil
}

// podSamples measures a pod's running containers.
func (c *Collector) podSamples(podID string) ([]*sample, error) {
	var out []*sample
	all := c.Source.StatsContainers()
	for i := range all {
		if all[i].PodID != podID || !all[i].Running() {
			continue
		}
		s, err := c.sample(&all[i])
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
func (c *Collector) processCount(p *Pod, samples []*sample) uint64 {
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
