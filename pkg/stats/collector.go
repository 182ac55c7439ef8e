package stats

import (
	"path"
	"strings"
	"sync"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
)

const (
	// minWindow is the shortest time a rate is taken over: shorter ones are noise.
	minWindow = time.Second
	// fsAge is how old the size of a writable layer may be; a layer whose walk takes long is walked less
	// often, so that walks never take more than a twentieth of the time.
	fsAge    = 10 * time.Second
	fsFactor = 20
)

// Config is what a Collector works with.
type Config struct {
	Source      Source
	Cgroups     Cgroups
	Filesystems Filesystems
	Proc        string           // "" is /proc
	Sys         string           // "" is /sys
	Now         func() time.Time // nil is time.Now
}

// Collector answers statistics. It is safe for concurrent use and owns no goroutine.
type Collector struct {
	Config

	mu      sync.Mutex
	windows map[string]*window   // by object ID
	layers  map[string]*fsEntry  // by container ID
	devices map[[2]uint64]string // names by number
}

// New returns a Collector.
func New(cfg Config) *Collector {
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Sys == "" {
		cfg.Sys = "/sys"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Collector{Config: cfg, windows: map[string]*window{}, layers: map[string]*fsEntry{}, devices: map[[2]uint64]string{}}
}

// window is the CPU time of one object at two moments.
type window struct {
	prev, last point
}

type point struct {
	at  time.Time
	cpu uint64
}

// rate notes a sample and returns CPU nanoseconds per second since the last one that is old enough, or for
// the first sample since the object started.
func (c *Collector) rate(id string, started time.Time, at time.Time, cpu uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.windows[id]
	if w == nil {
		w = &window{prev: point{at: started}, last: point{at: at, cpu: cpu}}
		c.windows[id] = w
	}
	if at.Sub(w.last.at) >= minWindow {
		w.prev, w.last = w.last, point{at, cpu}
	}
	elapsed := at.Sub(w.prev.at)
	if cpu < w.prev.cpu || elapsed <= 0 {
		*w = window{prev: point{at: started}, last: point{at, cpu}} // another cgroup of the same name
		return 0
	}
	return uint64(float64(cpu-w.prev.cpu) / elapsed.Seconds())
}

// prune forgets objects that are gone.
func (c *Collector) prune(live map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.windows {
		if !live[id] {
			delete(c.windows, id)
		}
	}
	for id := range c.layers {
		if !live[id] {
			delete(c.layers, id)
		}
	}
}

// fsEntry is the size of a writable layer as it was last walked. Its lock makes callers that come during a
// walk wait for that one.
type fsEntry struct {
	mu    sync.Mutex
	usage image.Usage
	at    time.Time
	took  time.Duration
	ok    bool
}

// layer returns the size of a container's writable layer and when it was measured.
func (c *Collector) layer(id string) (image.Usage, time.Time, bool) {
	c.mu.Lock()
	e := c.layers[id]
	if e == nil {
		e = &fsEntry{}
		c.layers[id] = e
	}
	c.mu.Unlock()

	e.mu.Lock()
	defer e.mu.Unlock()
	start := c.Now()
	if e.ok && start.Sub(e.at) < max(fsAge, fsFactor*e.took) {
		return e.usage, e.at, true
	}
	u, err := c.Filesystems.RootfsUsage(id)
	if err != nil {
		return e.usage, e.at, e.ok // the last known, or none
	}
	e.usage, e.at, e.ok, e.took = u, start, true, c.Now().Sub(start)
	return e.usage, e.at, true
}

// podUsage measures a pod as a whole: by its own cgroup where it has one, else as the sum of its holder and
// containers, without what cannot be added.
func (c *Collector) podUsage(p *Pod, containers []*sample) (*Usage, error) {
	if ownCgroup(p) {
		return c.Cgroups.Usage(p.Parent)
	}
	sum := &Usage{
		Memory: Memory{Limit: Unlimited, SwapLimit: Unlimited},
		Pids:   Pids{Limit: Unlimited},
	}
	if p.Holder != "" {
		if u, err := c.Cgroups.Usage(p.Holder); err == nil {
			sum.add(u)
		} else if !errs.Is(err, errs.NotFound) {
			return nil, err
		}
	}
	for _, s := range containers {
		if s.usage != nil {
			sum.add(s.usage)
		}
	}
	return sum, nil
}

// ownCgroup tells a pod's own cgroup, whose name a kubelet ends in the pod's UID and the server in its ID,
// from one that pods share.
func ownCgroup(p *Pod) bool {
	uid := p.Metadata.GetUid()
	leaf := strings.TrimSuffix(path.Base(p.Parent), ".slice")
	if leaf == "pod"+p.ID {
		return true
	}
	if uid == "" || !strings.Contains(leaf, "pod") {
		return false
	}
	return strings.HasSuffix(leaf, uid) || strings.HasSuffix(leaf, strings.ReplaceAll(uid, "-", "_"))
}

// add sums up what adds up.
func (u *Usage) add(o *Usage) {
	u.CPU.Total += o.CPU.Total
	u.CPU.User += o.CPU.User
	u.CPU.System += o.CPU.System
	u.CPU.Periods += o.CPU.Periods
	u.CPU.ThrottledPeriods += o.CPU.ThrottledPeriods
	u.CPU.ThrottledTime += o.CPU.ThrottledTime
	u.Memory.Usage += o.Memory.Usage
	u.Memory.WorkingSet += o.Memory.WorkingSet
	u.Memory.RSS += o.Memory.RSS
	u.Memory.Cache += o.Memory.Cache
	u.Memory.MappedFile += o.Memory.MappedFile
	u.Memory.Kernel += o.Memory.Kernel
	u.Memory.Swap += o.Memory.Swap
	u.Memory.PageFaults += o.Memory.PageFaults
	u.Memory.MajorPageFaults += o.Memory.MajorPageFaults
	u.Memory.Failures += o.Memory.Failures
	u.Pids.Current += o.Pids.Current
	u.OOMKills += o.OOMKills
}
