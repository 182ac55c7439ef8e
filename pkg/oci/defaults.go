package oci

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultCapabilities are those of an unprivileged container: the set containerd and Docker give, which
// images are built for.
func DefaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// NewDefaults returns the choices of a server whose operator made none.
func NewDefaults() *Defaults {
	return &Defaults{
		Capabilities:  DefaultCapabilities(),
		MaskedPaths:   append(slices.Clone(defaultMaskedPaths), thermalThrottle()...),
		ReadonlyPaths: slices.Clone(defaultReadonlyPaths),
	}
}

// thermalThrottle lists a directory of every processor that has one: its counters, too, tell what others run.
func thermalThrottle() []string {
	found, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
	return found
}

// ProbeHost reads what the machine and the daemon's own privileges allow. What cannot be read is taken for
// absent, but for capabilities and limits, which are then not narrowed: the kernel has the last word.
func ProbeHost() *HostFacts {
	h := &HostFacts{OOMScoreAdjMin: -1000}
	h.Hostname, _ = os.Hostname()
	var fs unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &fs) == nil {
		h.CgroupV2 = fs.Type == unix.CGROUP2_SUPER_MAGIC
	}
	h.Swap = probeSwap(h.CgroupV2)
	h.Capabilities = boundingSet("/proc/self/status")
	if h.Capabilities != nil && !h.Capabilities["CAP_SYS_RESOURCE"] {
		h.HardLimits = hardLimits()
		if own, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
			h.OOMScoreAdjMin, _ = strconv.Atoi(strings.TrimSpace(string(own)))
		}
	}
	h.AppArmor = fileSays("/sys/module/apparmor/parameters/enabled", "Y")
	h.AppArmorLoaded = appArmorLoaded
	_, err := os.Stat("/sys/fs/selinux/enforce")
	h.SELinux = err == nil
	// An invalid descriptor tells a kernel that knows the call (EBADF) from one that does not (ENOSYS).
	h.RRO = unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}) != unix.ENOSYS
	return h
}

func probeSwap(v2 bool) bool {
	if !v2 {
		_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
		return err == nil
	}
	// The root group has no memory.swap.max; our own or any child has.
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	dir := strings.TrimSpace(strings.TrimPrefix(string(own), "0::"))
	for _, dir := range []string{dir, "/kubepods", "/kubepods.slice", "/system.slice", "/init.scope"} {
		if _, err := os.Stat("/sys/fs/cgroup" + dir + "/memory.swap.max"); err == nil {
			return true
		}
	}
	return false
}

func fileSays(path, want string) bool {
	b, err := os.ReadFile(path)
	return err == nil && strings.HasPrefix(string(b), want)
}

// boundingSet reads CapBnd of a status file, nil when there is none.
func boundingSet(path string) map[string]bool {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		hex, ok := strings.CutPrefix(sc.Text(), "CapBnd:")
		if !ok {
			continue
		}
		bits, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			return nil
		}
		set := make(map[string]bool)
		for name, n := range capabilityBits {
			if bits&(1<<n) != 0 {
				set[name] = true
			}
		}
		return set
	}
	return nil
}

// hardLimits are the daemon's own, which its children cannot exceed.
func hardLimits() map[string]uint64 {
	limits := make(map[string]uint64)
	for name, resource := range rlimitNumbers {
		var r unix.Rlimit
		if unix.Getrlimit(resource, &r) == nil && r.Max != math.MaxUint64 {
			limits[name] = r.Max
		}
	}
	return limits
}

var rlimitNumbers = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}
