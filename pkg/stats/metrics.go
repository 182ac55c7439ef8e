package stats

import (
	"math"
	"slices"
	"strconv"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// measured is one object as the rows of the metrics table see it. A part that was not measured is nil.
type measured struct {
	base    map[string]string // the labels every metric has
	at      time.Time
	started time.Time
	usage   *Usage
	net     []iface
	procs   *processes
	fs      *filesystem
	spec    *cri.LinuxContainerResources // of a container; never nil there
}

// series is one value of a metric with its extra labels in the row's order.
type series struct {
	value  uint64
	labels []string
	at     int64 // when it was gathered, if not now
}

// metric is a row of the table: a descriptor and where its values come from.
type metric struct {
	name   string
	help   string
	kind   cri.MetricType
	extra  []string // names of labels beyond the base, in the order of series.labels
	values func(m *measured) []series

	keys []string // all labels, sorted; filled in by init
}

// baseLabels are cAdvisor's as a kubelet shows them: id is the cgroup, name the container's ID.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// table is every metric, in the order of its parts.
var table = func() []*metric {
	rows := slices.Concat(cpuMetrics, memoryMetrics, pressureMetrics, diskMetrics, networkMetrics, processMetrics, specMetrics)
	for _, m := range rows {
		m.keys = slices.Sorted(slices.Values(slices.Concat(baseLabels, m.extra)))
	}
	return rows
}()

// Descriptors answers ListMetricDescriptors. Label keys are sorted.
func Descriptors() []*cri.MetricDescriptor {
	var out []*cri.MetricDescriptor
	for _, m := range table {
		out = append(out, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Clone(m.keys)})
	}
	return out
}

// Metrics answers ListPodSandboxMetrics: every pod that has a holder with its running containers. A
// metric's label values are in the order of its descriptor's keys.
func (c *Collector) Metrics() ([]*cri.PodSandboxMetrics, error) {
	c.forget(c.Source.StatsContainers())
	var out []*cri.PodSandboxMetrics
	for _, p := range c.Source.StatsPods() {
		if p.HolderPid == 0 {
			continue
		}
		samples, err := c.podSamples(p.ID)
		if err != nil {
			return nil, err
		}
		pm := &cri.PodSandboxMetrics{PodSandboxId: p.ID}
		m, err := c.measurePod(&p, samples)
		if errs.Is(err, errs.NotFound) {
			continue // stopped meanwhile
		}
		if err != nil {
			return nil, err
		}
		pm.Metrics = m.metrics()
		for _, s := range samples {
			pm.ContainerMetrics = append(pm.ContainerMetrics, &cri.ContainerMetrics{
				ContainerId: s.c.ID, Metrics: c.measureContainer(&p, s).metrics(),
			})
		}
		out = append(out, pm)
	}
	return out, nil
}

func (c *Collector) measurePod(p *Pod, samples []*sample) (*measured, error) {
	usage, err := c.podUsage(p, samples)
	if err != nil {
		return nil, err
	}
	id := p.Holder
	if ownCgroup(p) {
		id = p.Parent
	}
	m := &measured{
		base:  podLabels(p, map[string]string{"id": id, "name": p.ID}),
		at:    c.Now(),
		usage: usage, started: p.CreatedAt,
	}
	if !p.HostNetwork {
		m.net, _ = c.interfaces(p.HolderPid) // gone meanwhile, or a kernel without it: no network series
	}
	return m, nil
}

func (c *Collector) measureContainer(p *Pod, s *sample) *measured {
	m := &measured{
		base: podLabels(p, map[string]string{
			"container": s.c.Metadata.GetName(), "id": s.c.Cgroup, "image": s.c.Image, "name": s.c.ID,
		}),
		at: s.at, usage: s.usage, started: s.c.StartedAt, spec: s.c.Resources,
	}
	if m.spec == nil {
		m.spec = &cri.LinuxContainerResources{}
	}
	pids, _ := c.Cgroups.Pids(s.c.Cgroup)
	procs := c.processes(pids, s.c.Pid)
	m.procs = &procs
	m.fs = c.filesystem(s.c.ID)
	if m.fs != nil && len(m.usage.Devices) == 0 {
		m.usage.Devices = []DeviceIO{{Major: m.fs.major, Minor: m.fs.minor}} // nothing read or written yet
	}
	for i := range m.usage.Devices {
		d := &m.usage.Devices[i]
		d.name = c.device(d.Major, d.Minor)
	}
	return m
}

func podLabels(p *Pod, labels map[string]string) map[string]string {
	labels["namespace"], labels["pod"] = p.Metadata.GetNamespace(), p.Metadata.GetName()
	return labels
}

// metrics lays out every row that has values for the object.
func (m *measured) metrics() []*cri.Metric {
	var out []*cri.Metric
	for _, row := range table {
		for _, s := range row.values(m) {
			out = append(out, &cri.Metric{
				Name: row.name, MetricType: row.kind, Timestamp: s.at, Value: value(s.value), LabelValues: row.labels(m.base, s.labels),
			})
		}
	}
	return out
}

func (row *metric) labels(base map[string]string, extra []string) []string {
	values := make([]string, len(row.keys))
	for i, key := range row.keys {
		if n := slices.Index(row.extra, key); n >= 0 {
			values[i] = extra[n]
		} else {
			values[i] = base[key]
		}
	}
	return values
}

// one is a series without extra labels.
func one(v uint64) []series { return []series{{value: v}} }

// seconds turns nanoseconds into the whole seconds that the CRI's integer values can carry.
func seconds(ns uint64) uint64 { return ns / uint64(time.Second) }

// orZero shows a limit that is none as cAdvisor does.
func orZero(limit uint64) uint64 {
	if limit == math.MaxUint64 {
		return 0
	}
	return limit
}

func itoa(v uint64) string { return strconv.FormatUint(v, 10) }
