package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

func setupSpec(_ *app) ([]flag, func([]string) error) {
	dir, rootless := "", false
	return []flag{
			text(&dir, "bundle b", "DIR", "the bundle's directory (default: the current one)"),
			boolean(&rootless, "rootless", "for an unprivileged user"),
		}, func([]string) error {
			spec := example()
			if rootless {
				unprivileged(spec)
			}
			data, err := json.MarshalIndent(spec, "", "\t")
			if err != nil {
				return err
			}
			f, err := os.OpenFile(filepath.Join(dir, "config.json"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
			if errors.Is(err, fs.ErrExist) {
				return errors.New("File config.json exists. Remove it first") //nolint:staticcheck // runc's words
			}
			if err != nil {
				return err
			}
			_, err = f.Write(append(data, '\n'))
			if e := f.Close(); err == nil {
				err = e
			}
			return err
		}
}

// example is a configuration that runs a shell in ./rootfs on a terminal.
func example() *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	s := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Terminal:        true,
			Args:            []string{"sh"},
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Hostname: "container",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
				"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	list := []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		list = append(list, specs.CgroupNamespace) // on v1 programs expect to see the whole path
	}
	for _, t := range list {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t})
	}
	return s
}

// unprivileged makes a configuration run in a user namespace with the caller as its root: no network of
// its own, sysfs and resolv.conf of the host, no resources.
func unprivileged(s *specs.Spec) {
	var list []specs.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != specs.NetworkNamespace && n.Type != specs.UserNamespace {
			list = append(list, n)
		}
	}
	s.Linux.Namespaces = append(list, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: uint32(os.Geteuid()), ContainerID: 0, Size: 1}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{HostID: uint32(os.Getegid()), ContainerID: 0, Size: 1}}
	for i := range s.Mounts {
		m := &s.Mounts[i]
		switch m.Destination {
		case "/sys":
			*m = specs.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
		case "/dev/pts": // the group is not mapped
			m.Options = []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
		}
	}
	s.Linux.Resources = nil
}

// update's flags are numbers of the resources, "" where they are not given.
type updates struct {
	file, cpus, mems                                                      string
	weight, period, quota, burst, shares, rtPeriod, rtRuntime, idle, pids string
	memory, reservation, swap                                             string
	rdt                                                                   specs.LinuxIntelRdt
}

func setupUpdate(a *app) ([]flag, func([]string) error) {
	var u updates
	var ignored string
	flags := []flag{
		text(&u.file, "resources r", "FILE", "resources of a configuration as JSON, - for standard input; no other flag counts then"),
		text(&u.weight, "blkio-weight", "N", "share of block IO, 10 to 1000"),
		text(&u.period, "cpu-period", "USEC", "period of the CPU limit"),
		text(&u.quota, "cpu-quota", "USEC", "CPU time in a period, -1 for no limit"),
		text(&u.burst, "cpu-burst", "USEC", "CPU time that may be saved up"),
		text(&u.shares, "cpu-share", "N", "share of the CPUs, 1024 by default"),
		text(&u.rtPeriod, "cpu-rt-period", "USEC", "period of the realtime limit"),
		text(&u.rtRuntime, "cpu-rt-runtime", "USEC", "realtime in a period"),
		text(&u.idle, "cpu-idle", "0|1", "run only when nothing else wants to"),
		text(&u.cpus, "cpuset-cpus", "LIST", "CPUs to run on"),
		text(&u.mems, "cpuset-mems", "LIST", "memory nodes to use"),
		text(&u.memory, "memory", "BYTES", "memory limit, -1 for none"),
		text(&u.reservation, "memory-reservation", "BYTES", "memory kept for the container"),
		text(&u.swap, "memory-swap", "BYTES", "limit of memory and swap, -1 for none"),
		text(&u.pids, "pids-limit", "N", "number of tasks, -1 for no limit"),
		text(&u.rdt.L3CacheSchema, "l3-cache-schema", "SCHEMA", "part of the L3 cache, as a line of resctrl's schemata"),
		text(&u.rdt.MemBwSchema, "mem-bw-schema", "SCHEMA", "memory bandwidth, as a line of resctrl's schemata"),
		hidden(text(&ignored, "kernel-memory", "BYTES", "")),
		hidden(text(&ignored, "kernel-memory-tcp", "BYTES", "")),
	}
	return flags, func(args []string) error {
		return a.withGroup(args[0], func(c *container, g *cgroup.Group) error {
			if err := c.lock(); err != nil {
				return err
			}
			if c.status() == statusStopped {
				return errNotRunning
			}
			res, err := u.resources()
			if err != nil {
				return err
			}
			if err := c.update(g, res); err != nil || u.rdt.L3CacheSchema+u.rdt.MemBwSchema == "" {
				return err
			}
			return c.Rdt.Update(&u.rdt)
		})
	}
}

func (u *updates) resources() (*specs.LinuxResources, error) {
	res := &specs.LinuxResources{}
	if u.file != "" {
		in := os.Stdin
		if u.file != "-" {
			f, err := os.Open(u.file)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			in = f
		}
		if err := json.NewDecoder(in).Decode(res); err != nil {
			return nil, fmt.Errorf("resources of %s: %w", u.file, err)
		}
		res.Devices = nil // what a container may open is settled when it is made
		return res, nil
	}
	res.CPU = &specs.LinuxCPU{Cpus: u.cpus, Mems: u.mems}
	res.Memory, res.Pids, res.BlockIO = &specs.LinuxMemory{}, &specs.LinuxPids{}, &specs.LinuxBlockIO{}
	return res, errors.Join(
		value("blkio-weight", u.weight, &res.BlockIO.Weight),
		value("cpu-period", u.period, &res.CPU.Period), value("cpu-quota", u.quota, &res.CPU.Quota),
		value("cpu-burst", u.burst, &res.CPU.Burst), value("cpu-share", u.shares, &res.CPU.Shares),
		value("cpu-rt-period", u.rtPeriod, &res.CPU.RealtimePeriod), value("cpu-rt-runtime", u.rtRuntime, &res.CPU.RealtimeRuntime),
		value("cpu-idle", u.idle, &res.CPU.Idle), value("pids-limit", u.pids, &res.Pids.Limit),
		size("memory", u.memory, &res.Memory.Limit), size("memory-reservation", u.reservation, &res.Memory.Reservation),
		size("memory-swap", u.swap, &res.Memory.Swap),
	)
}

// value reads the number of a flag that was given.
func value[T int64 | uint64 | uint16](name, s string, to **T) error {
	if s == "" {
		return nil
	}
	var v T
	if n, err := fmt.Sscan(s, &v); n != 1 || err != nil || fmt.Sprint(v) != s {
		return fmt.Errorf("invalid value for %s: %q is not a number in range", name, s)
	}
	*to = &v
	return nil
}

// size reads a number of bytes, with a unit of 1024s after it where there is one: 50M, 1.5GiB, 100kb.
func size(name, s string, to **int64) error {
	if s == "" || s == "-1" {
		return value(name, s, to)
	}
	number := strings.TrimRight(s, "bBiIkKmMgGtTpP ")
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s[len(number):])), "b"), "i")
	shift := strings.Index(" kmgtp", unit) * 10
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !(f >= 0) || len(unit) > 1 || shift < 0 || !(f*float64(int64(1)<<max(shift, 0)) < 1<<63) { // not a number is neither
		return fmt.Errorf("invalid value for %s: %q is not a size", name, s)
	}
	if unit == "" {
		shift = 0
	}
	v := int64(f * float64(int64(1)<<shift))
	*to = &v
	return nil
}
