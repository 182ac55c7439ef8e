package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Unlimited is the limit of what has none.
const Unlimited = math.MaxUint64

// Stats is what the kernel counted for a group and everything below it. A controller that the group lacks
// leaves its part zero. Counters only grow while the group exists.
type Stats struct {
	CPU     CPUStats
	Memory  MemoryStats
	Pids    PidsStats
	IO      IOStats
	Hugetlb []HugetlbStats
}

// CPUStats counts processor time in nanoseconds.
type CPUStats struct {
	Usage, User, System uint64
	Periods             uint64 // of the bandwidth limit that have passed with something to run
	Throttled           uint64 // periods in which the limit was hit
	ThrottledTime       uint64 // nanoseconds, the sum over processors
	Bursts, BurstTime   uint64
	Pressure            Pressure
}

// MemoryStats are bytes where nothing else is said.
type MemoryStats struct {
	Usage, Limit, Peak uint64
	WorkingSet         uint64 // Usage without the page cache that can go at once
	RSS                uint64 // anonymous memory
	Cache, Mapped      uint64
	InactiveFile       uint64
	ActiveFile         uint64
	Kernel             uint64
	Faults             uint64 // count
	MajorFaults        uint64 // count
	Failures           uint64 // how often the limit was hit
	SwapUsage          uint64
	SwapLimit          uint64 // of swap alone on v2, of memory and swap on v1
	OOMKills           uint64 // count
	Pressure           Pressure
}

// PidsStats counts tasks, that is threads.
type PidsStats struct{ Current, Limit uint64 }

// IOStats counts block IO by device.
type IOStats struct {
	Devices  []IODevice
	Pressure Pressure
}

// IODevice is one device's share: bytes and operations.
type IODevice struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64
}

// HugetlbStats is the use of one size of huge pages, in bytes.
type HugetlbStats struct {
	PageSize       string // "2MB"
	Usage, Peak    uint64
	Limit, Failure uint64
}

// Pressure is what PSI says of one resource. On hybrid machines it is of the unified hierarchy. Known is
// false where the kernel does not measure it.
type Pressure struct {
	Known      bool
	Some, Full Stall
}

// Stall is the share of time, in percent over the last 10, 60 and 300 seconds, and the total in
// microseconds, in which some or all tasks waited.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// Stats reads what the kernel counts. A group that does not exist, or goes while it is read, is an error
// that wraps ENOENT or ENODEV.
func (g *Group) Stats() (*Stats, error) {
	dirs, err := g.dirs()
	if err == nil && len(dirs) == 0 {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, fmt.Errorf("read statistics of cgroup %s: %w", g.Path(), err)
	}
	defer closeAll(dirs)
	s := &Stats{Memory: MemoryStats{Limit: Unlimited, SwapLimit: Unlimited}, Pids: PidsStats{Limit: Unlimited}}
	for _, d := range dirs {
		read := s.read1
		if d.tree.Unified {
			read = s.read2
			err = s.pressure(d)
		}
		for _, c := range d.tree.Controllers {
			if err == nil {
				err = read(c, d)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read statistics of cgroup %s: %w", g.Path(), err)
		}
	}
	return s, nil
}

// MemoryStat reads all of the kernel's memory.stat, by its names; nil where there is no memory controller.
func (g *Group) MemoryStat() (map[string]uint64, error) {
	d, err := g.controller("memory")
	if err != nil {
		if errs.Is(err, errs.Unsupported) {
			return nil, nil
		}
		return nil, err
	}
	defer d.close()
	out := map[string]uint64{}
	return out, d.pairs("memory.stat", func(k string, v uint64) { out[k] = v })
}

// read1 reads what a controller on v1 counts.
func (s *Stats) read1(controller string, d dir) error {
	switch controller {
	case "cpu":
		return s.cpu1(d)
	case "cpuacct":
		return s.cpuacct(d)
	case "memory":
		return s.memory1(d)
	case "pids":
		return s.pids(d)
	case "blkio":
		return s.blkio(d)
	case "hugetlb":
		return s.hugetlb1(d)
	}
	return nil
}

// read2 reads what a controller on v2 counts.
func (s *Stats) read2(controller string, d dir) error {
	switch controller {
	case "cpu":
		return s.cpu2(d)
	case "memory":
		return s.memory2(d)
	case "pids":
		return s.pids(d)
	case "io":
		return s.io2(d)
	case "hugetlb":
		return s.hugetlb2(d)
	}
	return nil
}

// pairs calls f for every line "key value" of a file; one that is not there has none.
func (d dir) pairs(file string, f func(key string, value uint64)) error {
	text, err := d.read(file)
	if err != nil {
		if unset(err) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		return err
	}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(v, 10, 64); ok && err == nil {
			f(k, n)
		}
	}
	return nil
}

// number reads a file with one number into where; one that is not there leaves it.
func (d dir) number(file string, where *uint64) error {
	n, err := d.uint(file)
	switch {
	case err == nil:
		*where = n
	case !unset(err) && !errors.Is(err, unix.EOPNOTSUPP):
		return err
	}
	return nil
}

// numbers reads several such files.
func (d dir) numbers(list map[string]*uint64) error {
	for file, where := range list {
		if err := d.number(file, where); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stats) pids(d dir) error {
	return d.numbers(map[string]*uint64{"pids.current": &s.Pids.Current, "pids.max": &s.Pids.Limit})
}

func (s *Stats) pressure(d dir) error {
	for file, p := range map[string]*Pressure{
		"cpu.pressure": &s.CPU.Pressure, "memory.pressure": &s.Memory.Pressure, "io.pressure": &s.IO.Pressure,
	} {
		text, err := d.read(file)
		if unset(err) || errors.Is(err, unix.EOPNOTSUPP) { // off at boot, or in this group
			continue
		}
		if err != nil {
			return err
		}
		*p = parsePressure(text)
	}
	return nil
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the line of full.
func parsePressure(text string) Pressure {
	p := Pressure{Known: true}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) < 5 {
			continue
		}
		st := &p.Some
		if w[0] == "full" {
			st = &p.Full
		}
		for _, kv := range w[1:] {
			k, v, _ := strings.Cut(kv, "=")
			f, _ := strconv.ParseFloat(v, 64)
			switch k {
			case "avg10":
				st.Avg10 = f
			case "avg60":
				st.Avg60 = f
			case "avg300":
				st.Avg300 = f
			case "total":
				st.Total, _ = strconv.ParseUint(v, 10, 64)
			}
		}
	}
	return p
}

var (
	hugeOnce  sync.Once
	hugeSizes []string
)

// hugePageSizes are the kernel's, as the files are named.
func hugePageSizes() []string {
	hugeOnce.Do(func() {
		list, err := os.ReadDir("/sys/kernel/mm/hugepages")
		if err != nil {
			return
		}
		for _, e := range list {
			kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
			if err == nil {
				hugeSizes = append(hugeSizes, hugeName(kb))
			}
		}
	})
	return hugeSizes
}

// hugeName is the name the hugetlb controller gives a size.
func hugeName(kb uint64) string {
	switch {
	case kb >= 1<<20:
		return strconv.FormatUint(kb>>20, 10) + "GB"
	case kb >= 1<<10:
		return strconv.FormatUint(kb>>10, 10) + "MB"
	}
	return strconv.FormatUint(kb, 10) + "KB"
}
