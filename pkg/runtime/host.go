package runtime

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// host is what preparation asks of the machine. Tests of compilation have another, which needs no root.
type host interface {
	openTree(path string, recursive bool) (*os.File, error)
	openDevice(d *device) (*os.File, error)
	newMount(fstype string, options []sys.MountOption) (*os.File, error)
	setMount(mnt *os.File, recursive bool, attr unix.MountAttr) error
	mknod(dir *os.File, name string, d *device) error
	chown(dir *os.File, name string, uid, gid uint32) error
	procfs() (*os.File, error)
	caps() (hostCaps, error)
	hardLimit(resource int) (uint64, error)
	oomScoreAdj() (int, error)
	hierarchies() ([]Hierarchy, error)
	foreign(pid int, known uintptr) (uintptr, error)
	rootOf(pid int, pidfd *os.File) (*os.File, error)
	pinned() bool
	isUserns(f *os.File) bool
	newUserns(uids, gids []specs.LinuxIDMapping) (*os.File, error)
}

// machine is the host that the process runs on.
type machine struct{}

func (machine) openTree(path string, recursive bool) (*os.File, error) {
	return sys.OpenTree(nil, path, recursive)
}

// openDevice clones the host's node, which must be the device asked for.
func (machine) openDevice(d *device) (*os.File, error) {
	tree, err := sys.OpenTree(nil, "/"+d.dest, false)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(tree.Fd()), &st)
	if err == nil && (st.Mode&unix.S_IFMT != d.kind || d.kind != unix.S_IFIFO && st.Rdev != unix.Mkdev(uint32(d.major), uint32(d.minor))) {
		err = errs.New(errs.Invalid, "the host has another device there, not %d:%d", d.major, d.minor)
	}
	if err != nil {
		tree.Close()
		return nil, err
	}
	return tree, nil
}

func (machine) newMount(fstype string, options []sys.MountOption) (*os.File, error) {
	return sys.NewMount(fstype, options, 0)
}

func (machine) setMount(mnt *os.File, recursive bool, attr unix.MountAttr) error {
	return sys.SetMount(mnt, recursive, attr)
}

func (machine) mknod(dir *os.File, name string, d *device) error {
	if err := unix.Mknodat(int(dir.Fd()), name, d.kind|d.mode, int(unix.Mkdev(uint32(d.major), uint32(d.minor)))); err != nil {
		return os.NewSyscallError("mknodat", err)
	}
	// The umask is the whole process's, so it is not ours to set. Nobody else sees this tree yet.
	return os.NewSyscallError("fchmodat", unix.Fchmodat(int(dir.Fd()), name, d.mode, 0))
}

func (machine) chown(dir *os.File, name string, uid, gid uint32) error {
	return os.NewSyscallError("fchownat", unix.Fchownat(int(dir.Fd()), name, int(uid), int(gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW))
}

func (machine) procfs() (*os.File, error)         { return procRoot() }
func (machine) caps() (hostCaps, error)           { return ownCaps() }
func (machine) hierarchies() ([]Hierarchy, error) { return mounted() }

func (machine) hardLimit(resource int) (uint64, error) {
	var own unix.Rlimit
	err := unix.Prlimit(0, resource, nil, &own)
	return own.Max, os.NewSyscallError("prlimit64", err)
}

func (machine) oomScoreAdj() (int, error) {
	b, err := sys.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// procRoot is a procfs of our own, mounted nowhere: whatever a container does to its /proc, it is not
// this one. It shows the processes of this process's PID namespace, which has the program's below it.
// Who may not mount one for that PID namespace, having no privileges or those of a user namespace, takes the
// one at /proc: what it shows is the launcher's own business then.
var procRoot = sync.OnceValues(func() (*os.File, error) {
	f, err := sys.NewMount("proc", nil, 0)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return f, err
	}
	if f, err = os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Fstatfs(int(f.Fd()), &fs) != nil || fs.Type != unix.PROC_SUPER_MAGIC || unix.Fstat(int(f.Fd()), &st) != nil || st.Ino != procRootInode {
		f.Close()
		return nil, errors.New("/proc is not the root of a proc filesystem")
	}
	return f, nil
})

// procRootInode is the kernel's PROC_ROOT_INO.
const procRootInode = 1

// hostCaps is what this process could give away.
type hostCaps struct {
	bounding uint64
	last     int
}

// has reports whether capability n is in the bounding set.
func (h hostCaps) has(n int) bool { return h.bounding>>n&1 != 0 }

// ownCaps asks for the process's capabilities, once: the first that the kernel does not know is one beyond the last.
var ownCaps = sync.OnceValues(func() (hostCaps, error) {
	var h hostCaps
	for n := range 64 {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0)
		if err == unix.EINVAL && n > 0 {
			h.last = n - 1
			return h, nil
		}
		if err != nil {
			return h, os.NewSyscallError("prctl", err)
		}
		h.bounding |= uint64(has) << n
	}
	h.last = 63
	return h, nil
})

// mounted are the host's cgroup hierarchies, read once: they do not change while it is up.
var mounted = sync.OnceValues(func() ([]Hierarchy, error) {
	b, err := sys.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseHierarchies(string(b)), nil
})

// isUserns reports whether f, which may be nil, is open on a user namespace.
func (machine) isUserns(f *os.File) bool {
	if f == nil {
		return false
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	return err == nil && kind == unix.CLONE_NEWUSER
}

func (machine) newUserns(uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	return UsernsFD(uids, gids)
}

// pinned reports whether this process may not run on every processor that is online.
func (machine) pinned() bool { return onFew() }

var onFew = sync.OnceValue(func() bool {
	online, err := sys.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return true
	}
	all, err := cpuMask(string(online))
	if err != nil {
		return true
	}
	var own [maxCPUs / 8]byte
	_, _, e := unix.RawSyscall(unix.SYS_SCHED_GETAFFINITY, 0, uintptr(len(own)), uintptr(unsafe.Pointer(&own[0])))
	for i := range own {
		if all[i]&^own[i] != 0 {
			return true
		}
	}
	return e != 0
})

// nsLinks are the namespaces' names under /proc/<pid>/ns.
var nsLinks = []struct {
	link string
	flag uintptr
}{
	{"user", unix.CLONE_NEWUSER}, {"mnt", unix.CLONE_NEWNS}, {"pid", unix.CLONE_NEWPID}, {"net", unix.CLONE_NEWNET},
	{"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}, {"cgroup", unix.CLONE_NEWCGROUP}, {"time", unix.CLONE_NEWTIME},
}

// rootOf opens the root directory of a process. What the pid named was that of pidfd when that lives on.
func (machine) rootOf(pid int, pidfd *os.File) (*os.File, error) {
	f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err != nil {
		f.Close()
		return nil, os.NewSyscallError("pidfd_send_signal", err)
	}
	return f, nil
}

// foreign returns the namespaces of a process that are not this process's, with those that are known not to be.
func (machine) foreign(pid int, known uintptr) (uintptr, error) {
	flags := known
	dir := "/proc/" + strconv.Itoa(pid) + "/ns/"
	for _, n := range nsLinks {
		if known&n.flag != 0 {
			continue
		}
		theirs, err := os.Readlink(dir + n.link)
		if errors.Is(err, os.ErrNotExist) && n.flag == unix.CLONE_NEWTIME {
			continue // a kernel without time namespaces
		}
		if err != nil {
			return 0, errs.New(errs.NotFound, "process %d has ended: %w", pid, err)
		}
		mine, err := os.Readlink("/proc/self/ns/" + n.link)
		if err != nil {
			return 0, err
		}
		if theirs != mine {
			flags |= n.flag
		}
	}
	return flags, nil
}
