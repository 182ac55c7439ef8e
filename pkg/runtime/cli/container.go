package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/cli/internal/decode"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
	"github.com/cri-server/cri-server/pkg/sys"
)

// What callers look for in the texts of these is runc's wording, which drivers of runc match.
var (
	errNotExist   = errors.New("container does not exist")
	errExist      = errors.New("container with given ID already exists")
	errInvalidID  = errors.New("invalid container ID format")
	errNotRunning = errors.New("container not running")
)

// Statuses of a container, as runtime-spec names them; paused is runc's.
const (
	statusCreating = "creating"
	statusCreated  = "created"
	statusRunning  = "running"
	statusPaused   = "paused"
	statusStopped  = "stopped"
)

// Files of a state directory. Each is written once, and appears whole: to replace one would make some filesystems write
// it out at once.
const (
	stateFile   = "state.json"   // the record, before anything else is made
	processFile = "process.json" // the process, when there is one
)

// process is what process.json holds.
type process struct {
	Pid   int    `json:"pid,omitempty"`   // 0 while creating
	Start uint64 `json:"start,omitempty"` // start time of Pid, in the kernel's ticks

	Stdio []string `json:"stdio,omitempty"` // what it is, as /proc/self/fd shows it; none with a terminal
}

// record is what the two files hold.
type record struct {
	Version     int               `json:"version"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Boot        string            `json:"boot"`               // boot ID: pids of another boot are nobody's
	Cgroup      string            `json:"cgroup"`             // named before it is made
	Unit        *systemd.Unit     `json:"unit,omitempty"`     // with systemd: the scope whose cgroup it is
	NoCgroup    bool              `json:"noCgroup,omitempty"` // it is in its creator's
	Above       []string          `json:"above,omitempty"`    // groups above it that create makes too
	process
	OwnPID bool `json:"ownPid,omitempty"` // PID 1 of a namespace of its own, which its end ends

	// What the program was made with beside the configuration.
	NoPivot   bool `json:"noPivot,omitempty"`
	NoKeyring bool `json:"noNewKeyring,omitempty"`
	NoProcess bool `json:"noProcess,omitempty"` // there is nothing to start
	Extra     int  `json:"preserved,omitempty"` // descriptors

	// Without a mount namespace of its own: how many mounts were at Rootfs before ours.
	OnHost  bool `json:"onHost,omitempty"`
	Stacked int  `json:"stacked,omitempty"`

	Rdt *runtime.Rdt `json:"rdt,omitempty"` // resctrl groups, named before they are made
}

// recordVersion is that of the format; a reader refuses what is newer.
const recordVersion = 1

// container is an existing state directory.
type container struct {
	app  *app
	dir  string
	file *os.File // the directory, which carries the lock
	record
}

// checkID refuses what is no file name or could confuse a reader of lists.
func checkID(id string) error {
	if id == "" {
		return errors.New("container id cannot be empty")
	}
	if id == "." || id == ".." || len(id) > 1024 ||
		strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.") != "" {
		return errInvalidID
	}
	return nil
}

// load opens a container by its name. Without a record there is none, whatever else there is.
func (a *app) load(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	c := &container{app: a, dir: filepath.Join(a.root, id)}
	data, err := sys.ReadFile(filepath.Join(c.dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNotExist
	}
	if err != nil {
		return nil, err
	}
	if err := decode.JSON(data, &c.record); err != nil {
		return nil, &tornError{a, id, err}
	}
	if c.ID != id {
		return nil, &tornError{a, id, fmt.Errorf("it is of container %q", c.ID)}
	}
	if c.Version > recordVersion {
		return nil, fmt.Errorf("state of container %s: version %d was written by a newer %s", id, c.Version, a.name)
	}
	if err := c.loadProcess(); err != nil {
		return nil, fmt.Errorf("state of container %s: %w", id, err)
	}
	if c.file, err = sys.Open(c.dir, os.O_RDONLY, 0); err != nil {
		return nil, errNotExist
	}
	return c, nil
}

// loadProcess reads who the process is, of a container that has got that far.
func (c *container) loadProcess() error {
	data, err := sys.ReadFile(filepath.Join(c.dir, processFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c.process = process{}
	return decode.JSON(data, &c.process)
}

// close lets go of the directory, and of the lock.
func (c *container) close() {
	if c.file != nil {
		c.file.Close()
	}
}

// lock keeps other commands that change the container away. It waits for them.
func (c *container) lock() error {
	for {
		err := unix.Flock(int(c.file.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			return os.NewSyscallError("flock", err)
		}
	}
}

// locked reports whether another command is at it.
func (c *container) locked() bool {
	if err := unix.Flock(int(c.file.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return true
	}
	unix.Flock(int(c.file.Fd()), unix.LOCK_UN)
	return false
}

// save writes the record.
func (c *container) save() error {
	data, err := c.record.encode()
	if err != nil {
		return err
	}
	return c.write(stateFile, data)
}

// saveProcess writes who the process is.
func (c *container) saveProcess() error {
	return c.write(processFile, c.process.encode())
}

// write makes a file of the state directory whole.
func (c *container) write(name string, data []byte) error {
	tmp := filepath.Join(c.dir, "."+name)
	if err := sys.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	if err := fault.At("runtime/" + name); err != nil {
		return err
	}
	to := filepath.Join(c.dir, name)
	if err := unix.Rename(tmp, to); err != nil {
		return &os.LinkError{Op: "rename", Old: tmp, New: to, Err: err}
	}
	return nil
}

// spec is the configuration that the container was created with, whatever the bundle holds now.
func (c *container) spec() (*specs.Spec, error) {
	data, err := sys.ReadFile(filepath.Join(c.dir, "config.json"))
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	err = decode.JSON(data, &s)
	if s.Process == nil {
		s.Process = idle()
	}
	return &s, err
}

// group is the container's cgroup, and the hierarchies it is in.
func (c *container) group() (*cgroup.Group, *cgroup.Host, error) {
	if c.NoCgroup {
		h := cgroup.Disabled()
		g, err := h.At(c.ID)
		return g, h, err
	}
	h, err := c.app.hierarchies()
	if err != nil {
		return nil, nil, err
	}
	g, err := h.At(c.Cgroup)
	return g, h, err
}

// hierarchies are the machine's cgroup hierarchies, looked for once and open until the command ends.
func (a *app) hierarchies() (h *cgroup.Host, err error) {
	if a.cgroups == nil {
		a.cgroups, err = cgroup.Probe()
	}
	return a.cgroups, err
}

// withGroup loads a container and calls do with it and its cgroup.
func (a *app) withGroup(id string, do func(*container, *cgroup.Group) error) error {
	c, err := a.load(id)
	if err != nil {
		return err
	}
	defer c.close()
	g, _, err := c.group()
	if err != nil {
		return err
	}
	if c.NoCgroup {
		return fmt.Errorf("container %s has no cgroup: it was created with --cgroup-manager=%s, or without root in a cgroup that is not its user's", c.ID, managerNone)
	}
	return do(c, g)
}

// where is the container's cgroup as a place for processes: none where it has none.
func (c *container) where(g *cgroup.Group) runtime.Cgroup {
	if c.NoCgroup {
		return nil
	}
	return g
}

// pidfd opens the container's process. errNotRunning: it has ended, or there never was one.
func (c *container) pidfd() (*os.File, error) {
	if c.Pid == 0 || c.Boot != bootID() {
		return nil, errNotRunning
	}
	fd, err := unix.PidfdOpen(c.Pid, 0)
	if err != nil {
		return nil, errNotRunning
	}
	// What the pid names now is what we hold; it is ours when it began when ours did.
	if start, zombie, err := procStat(c.Pid); err != nil || start != c.Start || zombie {
		unix.Close(fd)
		return nil, errNotRunning
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// status asks the kernel.
func (c *container) status() string {
	status, pidfd := c.look()
	if pidfd != nil {
		pidfd.Close()
	}
	return status
}

// look is status with the process that was looked at, nil where there is none. The caller closes it.
func (c *container) look() (string, *os.File) {
	if c.Pid == 0 {
		if c.locked() {
			return statusCreating, nil
		}
		return statusStopped, nil // its creation was cut short
	}
	pidfd, err := c.pidfd()
	if err != nil {
		return statusStopped, nil
	}
	if g, _, err := c.group(); err == nil {
		if frozen, err := g.Frozen(); err == nil && frozen {
			return statusPaused, pidfd
		}
	}
	if c.gated() {
		return statusCreated, pidfd
	}
	return statusRunning, pidfd
}

// gated reports whether the container's process still waits at its gate: it alone reads that fifo.
func (c *container) gated() bool {
	fd, err := unix.Open(filepath.Join(c.dir, launch.GateFifo), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// destroy kills what is left of the container and removes all it holds, its record last. It works from
// what exists, and may be repeated.
func (c *container) destroy(ctx context.Context) error {
	g, h, err := c.group()
	if err != nil {
		return err
	}
	if err := c.removeGroup(ctx, g); err != nil {
		return err
	}
	if err := c.Rdt.Remove(); err != nil {
		return err
	}
	if err := c.unmount(); err != nil {
		return err
	}
	if err := c.prune(ctx, h); err != nil {
		return err
	}
	return removeState(c.dir)
}

// removeState removes a state directory so that the record goes last.
func removeState(dir string) error {
	f, err := sys.Open(dir, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	list, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(n string) bool { return n == stateFile || n == processFile })
	for _, name := range append(list, processFile, stateFile) {
		err := unix.Unlinkat(int(f.Fd()), name, 0)
		if err == unix.EISDIR {
			err = os.RemoveAll(filepath.Join(dir, name))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &os.PathError{Op: "unlink", Path: filepath.Join(dir, name), Err: err}
		}
	}
	return os.RemoveAll(dir)
}

// bootID tells this run of the kernel from others.
var bootID = sync.OnceValue(func() string {
	b, _ := sys.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// procStat reads a process's start time and whether it has ended.
func procStat(pid int) (start uint64, zombie bool, err error) {
	b, err := sys.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, err
	}
	// The name in parentheses may contain anything; what follows the last one is numbers.
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, false, fmt.Errorf("/proc/%d/stat is not as expected", pid)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0] == "Z" || f[0] == "X", err
}
