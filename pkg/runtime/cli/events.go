package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// event is a line of "events": runc's names and units.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data *stats `json:"data,omitempty"`
}

type stats struct {
	CPU     cpuStats                `json:"cpu"`
	CPUSet  map[string]any          `json:"cpuset,omitempty"` // v1's
	Memory  memoryStats             `json:"memory"`
	Pids    pidsStats               `json:"pids"`
	Blkio   blkioStats              `json:"blkio"`
	Hugetlb map[string]hugetlbStats `json:"hugetlb"`
}

type cpuStats struct {
	Usage struct {
		Total     uint64   `json:"total,omitempty"`  // nanoseconds, as the others
		PerCPU    []uint64 `json:"percpu,omitempty"` // v1's
		PerKernel []uint64 `json:"percpu_kernel,omitempty"`
		PerUser   []uint64 `json:"percpu_user,omitempty"`
		Kernel    uint64   `json:"kernel"`
		User      uint64   `json:"user"`
	} `json:"usage"`
	Throttling struct {
		Periods          uint64 `json:"periods,omitempty"`
		ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
		ThrottledTime    uint64 `json:"throttledTime,omitempty"`
	} `json:"throttling"`
	PSI *psi `json:"psi,omitempty"`
}

type memoryEntry struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type memoryStats struct {
	Cache  uint64            `json:"cache,omitempty"`
	Usage  memoryEntry       `json:"usage"`
	Swap   memoryEntry       `json:"swap"`
	Kernel memoryEntry       `json:"kernel"`
	TCP    *memoryEntry      `json:"kernelTCP,omitempty"` // v1's
	Raw    map[string]uint64 `json:"raw,omitempty"`
	PSI    *psi              `json:"psi,omitempty"`
}

type pidsStats struct {
	Current uint64 `json:"current,omitempty"`
	Limit   uint64 `json:"limit,omitempty"` // 0 for none
}

type blkioEntry struct {
	Major uint64 `json:"major,omitempty"`
	Minor uint64 `json:"minor,omitempty"`
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

type blkioStats struct {
	Bytes []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
	Ops   []blkioEntry `json:"ioServicedRecursive,omitempty"`
	PSI   *psi         `json:"psi,omitempty"`
}

type hugetlbStats struct {
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type psi struct {
	Some stall `json:"some"`
	Full stall `json:"full"`
}

type stall struct {
	Avg10  float64 `json:"avg10"`
	Avg60  float64 `json:"avg60"`
	Avg300 float64 `json:"avg300"`
	Total  uint64  `json:"total"`
}

func pressure(p cgroup.Pressure) *psi {
	if !p.Known {
		return nil
	}
	return &psi{stall(p.Some), stall(p.Full)}
}

// convert puts what the kernel counts under runc's names.
func convert(s *cgroup.Stats) *stats {
	out := &stats{Hugetlb: map[string]hugetlbStats{}}
	c := &out.CPU
	c.Usage.Total, c.Usage.Kernel, c.Usage.User = s.CPU.Usage, s.CPU.System, s.CPU.User
	c.Throttling.Periods, c.Throttling.ThrottledPeriods, c.Throttling.ThrottledTime = s.CPU.Periods, s.CPU.Throttled, s.CPU.ThrottledTime
	c.PSI = pressure(s.CPU.Pressure)
	m := s.Memory
	out.Memory = memoryStats{
		Cache:  m.Cache,
		Usage:  memoryEntry{m.Limit, m.Usage, m.Peak, m.Failures},
		Swap:   memoryEntry{Limit: m.SwapLimit, Usage: m.SwapUsage},
		Kernel: memoryEntry{Limit: cgroup.Unlimited, Usage: m.Kernel},
		PSI:    pressure(m.Pressure),
	}
	if out.Pids.Current = s.Pids.Current; s.Pids.Limit != cgroup.Unlimited {
		out.Pids.Limit = s.Pids.Limit
	}
	for _, d := range s.IO.Devices {
		out.Blkio.Bytes = append(out.Blkio.Bytes, blkioEntry{d.Major, d.Minor, "Read", d.ReadBytes}, blkioEntry{d.Major, d.Minor, "Write", d.WriteBytes})
		out.Blkio.Ops = append(out.Blkio.Ops, blkioEntry{d.Major, d.Minor, "Read", d.Reads}, blkioEntry{d.Major, d.Minor, "Write", d.Writes})
	}
	out.Blkio.PSI = pressure(s.IO.Pressure)
	for _, h := range s.Hugetlb {
		out.Hugetlb[h.PageSize] = hugetlbStats{h.Usage, h.Peak, h.Failure}
	}
	return out
}

func setupEvents(a *app) ([]flag, func([]string) error) {
	interval, once := 5*time.Second, false
	return []flag{
			{names: []string{"interval"}, arg: "DURATION", usage: "time between two statistics (5s)", set: func(v string) (err error) {
				if interval, err = time.ParseDuration(v); err == nil && interval <= 0 {
					err = errors.New("duration interval must be greater than 0")
				}
				return err
			}},
			boolean(&once, "stats", "print the statistics once"),
		}, func(args []string) error {
			return a.withGroup(args[0], func(c *container, g *cgroup.Group) error {
				pidfd, err := c.pidfd()
				if err != nil {
					return fmt.Errorf("container with id %s is not running", c.ID)
				}
				defer pidfd.Close()
				if once {
					return c.printStats(g)
				}
				return c.follow(g, pidfd, interval)
			})
		}
}

func (c *container) printStats(g *cgroup.Group) error {
	s, err := g.Stats()
	if err != nil {
		return err
	}
	out := convert(s)
	if out.Memory.Raw, err = g.MemoryStat(); err != nil {
		return err
	}
	detail, err := g.Detail()
	if err != nil {
		return err
	}
	if detail != nil {
		out.add(detail)
	}
	return json.NewEncoder(os.Stdout).Encode(event{"stats", c.ID, out})
}

// add completes statistics with what v1 alone has.
func (s *stats) add(d *cgroup.Detail) {
	u := &s.CPU.Usage
	u.PerCPU, u.PerUser, u.PerKernel = d.PerCPU, d.PerCPUUser, d.PerCPUSystem
	m := &s.Memory
	entry := func(c cgroup.Counter) memoryEntry { return memoryEntry{c.Limit, c.Usage, c.Peak, c.Failures} }
	if d.Memory != (cgroup.Counter{}) { // else the controller is v2's: its numbers are there
		tcp := entry(d.TCP)
		m.Usage, m.Swap, m.Kernel, m.TCP = entry(d.Memory), entry(d.Swap), entry(d.Kernel), &tcp
	}
	s.CPUSet = map[string]any{}
	for name, value := range d.CPUSet {
		if name == "cpus" || name == "mems" {
			s.CPUSet[name] = numbers(value)
		} else if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			s.CPUSet[name] = n
		}
	}
}

// numbers are those of a list as the kernel writes it: "0-2,7".
func numbers(list string) []uint16 {
	out := []uint16{}
	for _, r := range cgroup.ParseList(list) {
		for n := r[0]; n <= r[1]; n++ {
			out = append(out, uint16(n))
		}
	}
	return out
}

// follow prints statistics at intervals, and OOM kills as they happen, until the container has ended.
func (c *container) follow(g *cgroup.Group, pidfd *os.File, interval time.Duration) error {
	w, err := g.WatchOOM()
	if err != nil {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	if w != nil {
		defer w.Close()
		fds = append(fds, unix.PollFd{Fd: int32(w.Event.Fd()), Events: unix.POLLIN})
	}
	killed, err := g.OOMKills()
	if err != nil {
		return err
	}
	next, look := time.Now().Add(interval), 0
	for {
		wait := max(0, time.Until(next))
		if look > 0 { // an event on v1 comes before the kill that it tells of is counted
			look--
			wait = min(wait, 10*time.Millisecond)
		}
		_, err := unix.Poll(fds, int(wait.Milliseconds()))
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if w != nil {
			if fds[1].Revents != 0 {
				look = 20
				_, _ = unix.Read(int(fds[1].Fd), make([]byte, 4096)) // what it says is in the counter
			}
			killed = c.printKills(w, killed)
		}
		if fds[0].Revents != 0 {
			return nil
		}
		if time.Now().Before(next) {
			continue
		}
		if err := c.printStats(g); err != nil {
			return err
		}
		next = time.Now().Add(interval)
	}
}

// printKills prints a line when the counter has grown: other events wake the watch too.
func (c *container) printKills(w *cgroup.OOMWatch, before uint64) uint64 {
	buf := make([]byte, 4096)
	n, _ := w.Counter.ReadAt(buf, 0)
	if n == 0 { // the group is gone
		return before
	}
	now := cgroup.ParseOOMKills(buf[:n])
	if now > before {
		_ = json.NewEncoder(os.Stdout).Encode(event{Type: "oom", ID: c.ID})
	}
	return max(now, before)
}
