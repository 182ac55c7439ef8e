package sys

import (
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Feature is something that only some of the kernels we run on have.
type Feature uint

// The features, with the kernel that brought each.
const (
	ExecMemfd     Feature = iota // memfds may be executed: vm.memfd_noexec is not 2, no policy forbids it
	MountOnTree                  // move_mount onto a detached tree, and clones of one: 6.15
	OverlayFDs                   // overlay layers by descriptor, lowerdir+ with fsconfig: 6.13
	OverlayTrees                 // overlay layers that are detached (idmapped) mounts: 6.15
	IdmapTmpfs                   // idmapped mounts of tmpfs: 6.3
	PidfdInfo                    // PIDFD_GET_INFO tells the exit code: 6.15
	ProcPidns                    // procfs takes the PID namespace as an option: 6.18
	OverlayAppend                // overlay layers one by one, lowerdir+ with fsconfig: 6.8
	featureCount
)

// table has, for each feature, the name that KernelEnv knows it by and the kernel it came with.
var table = [featureCount]struct {
	name         string
	major, minor int
}{
	ExecMemfd: {"execmemfd", 0, 0}, MountOnTree: {"mountontree", 6, 15}, OverlayFDs: {"overlayfds", 6, 13}, OverlayTrees: {"overlaytrees", 6, 15},
	IdmapTmpfs: {"idmaptmpfs", 6, 3}, PidfdInfo: {"pidfdinfo", 6, 15}, ProcPidns: {"procpidns", 6, 18}, OverlayAppend: {"overlayappend", 6, 8},
}

// KernelEnv is the environment variable that takes features away: a list of names ("execmemfd",
// "mountontree", …) or a kernel version ("5.15"), for tests of what older kernels need.
const KernelEnv = "CRI_SERVER_KERNEL"

var (
	probeOnce sync.Once
	features  atomic.Uint32
)

// Has reports whether the running kernel has the feature. The first call probes, once per process.
func Has(f Feature) bool {
	probeOnce.Do(Reprobe)
	return features.Load()>>f&1 != 0
}

// Reprobe looks at the kernel and at KernelEnv again: for tests that change the variable.
func Reprobe() { features.Store(uint32(probe(os.Getenv(KernelEnv)))) }

// String is the name that KernelEnv knows the feature by.
func (f Feature) String() string {
	if f < featureCount {
		return table[f].name
	}
	return "unknown"
}

func probe(without string) uint {
	major, minor := kernelVersion()
	if a, b, ok := parseVersion(without); ok {
		major, minor = a, b
	}
	var set uint
	for f, t := range table {
		if major > t.major || major == t.major && minor >= t.minor {
			set |= 1 << f
		}
	}
	if b, err := ReadFile("/proc/sys/vm/memfd_noexec"); err == nil && strings.TrimSpace(string(b)) == "2" {
		set &^= 1 << ExecMemfd
	}
	for _, name := range strings.Split(without, ",") {
		for f, t := range table {
			if strings.TrimPrefix(name, "-") == t.name {
				set &^= 1 << f
			}
		}
	}
	return set
}

// kernelVersion returns the first two numbers of the running kernel's release.
func kernelVersion() (major, minor int) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return 0, 0
	}
	major, minor, _ = parseVersion(unix.ByteSliceToString(u.Release[:]))
	return major, minor
}

// parseVersion reads "6.12" out of "6.12.117-cloud".
func parseVersion(s string) (major, minor int, ok bool) {
	n := [2]int{}
	for i := range n {
		digits := 0
		for digits < len(s) && s[digits] >= '0' && s[digits] <= '9' {
			n[i] = n[i]*10 + int(s[digits]-'0')
			digits++
		}
		if digits == 0 || digits > 6 {
			return 0, 0, false
		}
		s = s[digits:]
		if i == 0 {
			if !strings.HasPrefix(s, ".") {
				return 0, 0, false
			}
			s = s[1:]
		}
	}
	return n[0], n[1], true
}
