package runtime

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/program"
)

// The hooks in the container's namespaces are run by its program: it clones a child that executes the
// hook, and waits for it. Those in the runtime's namespaces are the launcher's, who is given the time for
// them by Request.Stop.

// hooksPlan is what the program's hooks need.
type hooksPlan struct {
	container, start []specs.Hook
	host             bool     // hooks run while the host's files are there
	late             bool     // the process is made when it only has to exec
	env              []string // of startContainer hooks without one
	out              [2]*os.File
	outFD            [2]program.Arg
	containerState   hookState
	startState       hookState
}

// hookState is a hook's standard input: a file whose text ends where the process's pid belongs, unless
// that is known.
type hookState struct {
	fd   program.Arg
	tail string // what follows the pid, "" when the text is whole
}

// CheckHooks refuses what no hook can be: a relative path, a time limit that is none.
func CheckHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	for _, k := range []struct {
		name string
		list []specs.Hook
	}{
		{"prestart", h.Prestart}, {"createRuntime", h.CreateRuntime}, {"createContainer", h.CreateContainer}, //nolint:staticcheck // prestart is deprecated, and in use
		{"startContainer", h.StartContainer}, {"poststart", h.Poststart}, {"poststop", h.Poststop},
	} {
		for i := range k.list {
			if err := checkHook(&k.list[i]); err != nil {
				return fmt.Errorf("%s hook #%d: %w", k.name, i, err)
			}
		}
	}
	return nil
}

func checkHook(h *specs.Hook) error {
	if !path.IsAbs(h.Path) {
		return errs.New(errs.Invalid, "path %q is not absolute", h.Path)
	}
	if h.Timeout != nil && *h.Timeout <= 0 {
		return errs.New(errs.Invalid, "timeout %d is not above zero", *h.Timeout)
	}
	for _, list := range [][]string{{h.Path}, h.Args, h.Env} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return errs.New(errs.Invalid, "%q has a NUL in it", s)
			}
		}
	}
	return nil
}

// planHooks opens what the hooks read and write.
func (c *compiler) planHooks(o *Options, b *build) error {
	h := o.Spec.Hooks
	if err := CheckHooks(h); err != nil {
		return fmt.Errorf("container %s: %w", o.ID, err)
	}
	c.req.Stop = len(o.Spec.Linux.NetDevices) > 0 // moved from outside, like what the launcher's hooks do
	if h == nil {
		return nil
	}
	p := &b.hooks
	p.container, p.start, p.late = h.CreateContainer, h.StartContainer, b.ns.late()
	p.env = o.Spec.Process.Env
	p.host = len(h.Prestart)+len(h.CreateRuntime)+len(p.container) > 0  //nolint:staticcheck // prestart is deprecated, and in use
	c.req.Stop = c.req.Stop || len(h.Prestart)+len(h.CreateRuntime) > 0 //nolint:staticcheck // prestart is deprecated, and in use
	if p.host && o.Spec.Root == nil {
		return errs.New(errs.Invalid, "container %s: hooks need root.path, where they find the root filesystem", o.ID)
	}
	if p.host && o.HostMounts != nil && b.ns.create&unix.CLONE_NEWUSER != 0 {
		return errs.New(errs.Unsupported, "container %s: hooks before pivot_root in a new user namespace need a launcher in the host's mount namespace", o.ID)
	}
	if p.host && o.HostMounts != nil {
		b.ns.hostMounts = c.files.add(o.HostMounts, false)
		b.ns.unshare |= unix.CLONE_NEWNS
		c.req.Cloneflags &^= unix.CLONE_NEWNS
	}
	if len(p.container)+len(p.start) == 0 {
		return nil
	}
	return c.planHookFiles(o, b)
}

// planHookFiles opens the standard input and output of the program's hooks.
func (c *compiler) planHookFiles(o *Options, b *build) error {
	p := &b.hooks
	for i, name := range []string{"stdout", "stderr"} {
		p.out[i] = o.HookOutput[i]
		if p.out[i] == nil {
			f, err := memfd("hook-" + name)
			if err != nil {
				return err
			}
			p.out[i] = f
			c.files.owned = append(c.files.owned, f)
		}
		p.outFD[i] = num(c.files.add(p.out[i], false))
	}
	var err error
	if len(p.container) > 0 {
		// By the specification's word the container is created by now. A state without a pid is of an earlier one.
		status := specs.ContainerState(specs.StateCreated)
		if p.late {
			status = specs.StateCreating
		}
		if p.containerState, err = c.hookState(o, b, status); err != nil {
			return err
		}
	}
	if len(p.start) > 0 {
		p.startState, err = c.hookState(o, b, specs.StateCreated)
	}
	return err
}

// memfd returns an empty file in memory that every writer appends to.
func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, unix.O_APPEND); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

// hookState writes the state that hooks at one point are given. The pid is the one that the container
// knows: 1 in a new PID namespace, and before the process is in a shared one none yet.
func (c *compiler) hookState(o *Options, b *build, status specs.ContainerState) (hookState, error) {
	state, err := json.Marshal(specs.State{Version: specs.Version, ID: o.ID, Status: status, Bundle: o.Bundle, Annotations: o.Spec.Annotations})
	if err != nil {
		return hookState{}, err
	}
	f, err := memfd("hook-state")
	if err != nil {
		return hookState{}, err
	}
	s := hookState{fd: num(c.files.add(f, true))}
	text := string(state)
	switch {
	case b.ns.create&unix.CLONE_NEWPID != 0:
		text = `{"pid":1,` + text[1:]
	case b.ns.late() && status == specs.StateCreating:
	default:
		text, s.tail = `{"pid":`, ","+text[1:]
	}
	_, err = f.WriteString(text)
	return s, err
}

// tellPid completes a state with the pid that the launcher knows.
func (c *compiler) tellPid(s hookState) {
	if s.tail == "" {
		return
	}
	c.p.Subject("tell hooks the pid")
	c.readPid(c.procfs(), "self", s, func(*program.Op) {})
	c.p.Call(unix.SYS_WRITE, s.fd, c.p.Str(s.tail), num(len(s.tail))).Want(uint64(len(s.tail)), unix.EIO)
}

// tellNestedPid is tellPid for a process in a shared PID namespace: it has but the container's own /proc to
// learn from, and where that is none, it is 0.
func (c *compiler) tellNestedPid(s hookState) {
	c.p.Subject("tell hooks the pid")
	none, told := c.p.Label(), c.p.Label()
	c.readPid(cwd, "/proc/self", s, func(op *program.Op) { op.Catch(none) })
	c.p.Load(num(1), 1).Then(told)
	c.p.Bind(none)
	c.p.Call(unix.SYS_WRITE, s.fd, c.p.Str("0"), num(1)).Want(1, unix.EIO)
	c.p.Bind(told)
	c.p.Call(unix.SYS_WRITE, s.fd, c.p.Str(s.tail), num(len(s.tail))).Want(uint64(len(s.tail)), unix.EIO)
}

// readPid adds the copy of the link that names the process in a procfs.
func (c *compiler) readPid(at program.Arg, self string, s hookState, also func(*program.Op)) {
	const digits = 32
	n := c.p.Slot("digits")
	also(c.p.Call(unix.SYS_READLINKAT, at, c.p.Str(self), c.p.Scratch(digits), num(digits)).Save(n))
	c.p.Call(unix.SYS_WRITE, s.fd, c.p.Scratch(digits), n.Val())
}

// hooksOutside adds what happens between the mounts and the change of root: the stop for the launcher's
// hooks, and the container's own, which see the host's files and run in the root filesystem.
func (c *compiler) hooksOutside(b *build) {
	p := &b.hooks
	if c.req.Stop {
		c.p.Subject("wait for hooks")
		kind := uint64(launch.RecordGate)
		if p.late {
			kind = launch.RecordStop
		}
		c.p.Report(num(launch.ReportFD), kind)
		c.p.Token(num(launch.GateFD))
	}
	if len(p.start) > 0 && !p.late {
		c.tellPid(p.startState)
	}
	if len(p.container) == 0 {
		return
	}
	c.tellPid(p.containerState)
	c.p.Subject("enter the root filesystem for hooks")
	c.p.Call(unix.SYS_FCHDIR, num(b.rootfs))
	for i := range p.container {
		c.hook(fmt.Sprintf("createContainer hook #%d", i), p.container[i], p, p.containerState.fd, num(launch.ReportFD))
	}
}

// keepHooks moves what startContainer hooks need out of the way of everything that closes descriptors.
func (c *compiler) keepHooks(p *hooksPlan) {
	c.p.Subject("keep the files of hooks")
	up := func(fd program.Arg, name string) program.Arg {
		s := c.p.Slot(name)
		c.p.Call(unix.SYS_FCNTL, fd, num(unix.F_DUPFD_CLOEXEC), num(highFD)).Save(s)
		return s.Val()
	}
	p.startState.fd = up(p.startState.fd, "hook-state")
	p.outFD = [2]program.Arg{up(p.outFD[0], "hook-stdout"), up(p.outFD[1], "hook-stderr")}
}

// startHooks adds the hooks between the gate and the user's program.
func (c *compiler) startHooks(p *hooksPlan, report program.Arg) {
	if p.late {
		c.tellNestedPid(p.startState)
	}
	for i := range p.start {
		h := p.start[i]
		if h.Env == nil {
			h.Env = p.env
		}
		c.hook(fmt.Sprintf("startContainer hook #%d", i), h, p, p.startState.fd, report)
	}
}

// hook adds one hook, with no environment but its own: the image has a say in the container's, LD_PRELOAD included,
// and createContainer hooks are programs of the host, with its rights (CVE-2025-23266). A child
// executes it, and its end is waited for.
func (c *compiler) hook(name string, h specs.Hook, p *hooksPlan, state, report program.Arg) {
	parent := c.p.Label()
	pid, status := c.p.Slot("hook"), c.p.Slot("status")
	flags, ptid := uint64(unix.SIGCHLD), nilp
	var poll program.Buf
	c.p.Subject(name)
	for _, fd := range p.outFD {
		c.p.Call(unix.SYS_FTRUNCATE, fd, num(0))
	}
	if h.Timeout != nil {
		poll = c.p.Buf("poll", 8)
		flags, ptid = flags|unix.CLONE_PIDFD, poll.Addr(0)
		const events = unix.POLLIN << 32
		c.p.Load(num(events), 1<<64-1).Save(poll.Slot(0)) // the clone fills in the descriptor
	}
	c.p.Call(unix.SYS_CLONE, num(flags), nilp, ptid, nilp, nilp).Save(pid).Else(0, parent)
	c.hookChild(name, &h, p, state)
	c.p.Bind(parent)
	if h.Timeout != nil {
		c.hookTimeout(name, &h, poll, pid, status)
	}
	c.p.Call(unix.SYS_WAIT4, pid.Val(), status.Addr(), num(unix.WALL), nilp)
	good, bad := c.p.Label(), c.p.Label()
	failed, tell := c.p.Failure(c.p.Len())
	c.p.Load(status.Val(), 1<<32-1).Save(failed).Else(0, bad)
	c.hint(func(e syscall.Errno) error {
		return fmt.Errorf("error running %s: %s, stdout: %s, stderr: %s", name, exitText(launch.WaitStatus(e)), readBack(p.out[0]), readBack(p.out[1]))
	})
	c.p.Load(num(1), 1).Then(good)
	c.p.Bind(bad)
	tell(report)
	c.p.Exit(program.ExitFailed)
	c.p.Bind(good)
}

// hookChild adds what the child does.
func (c *compiler) hookChild(name string, h *specs.Hook, p *hooksPlan, state program.Arg) {
	c.p.Call(unix.SYS_LSEEK, state, num(0), num(unix.SEEK_SET))
	for fd, from := range []program.Arg{state, p.outFD[0], p.outFD[1]} {
		c.p.Call(unix.SYS_DUP3, from, num(fd), num(0))
	}
	c.p.Call(unix.SYS_CLOSE_RANGE, num(3), num(1<<32-1), num(unix.CLOSE_RANGE_CLOEXEC))
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	c.p.Call(unix.SYS_EXECVE, c.p.Str(h.Path), c.p.Strs(args), c.p.Strs(h.Env))
	c.hint(func(e syscall.Errno) error { return fmt.Errorf("error running %s: fork/exec %s: %w", name, h.Path, e) })
}

// hookTimeout adds the wait for a hook that may take so long only.
func (c *compiler) hookTimeout(name string, h *specs.Hook, poll program.Buf, pid, status program.Slot) {
	late, ended := c.p.Label(), c.p.Label()
	c.p.Call(unix.SYS_PPOLL, poll.Addr(0), num(1), c.p.Words(uint64(*h.Timeout), 0), nilp).Else(1, late)
	c.p.Load(num(1), 1).Then(ended)
	c.p.Bind(late)
	c.p.Call(unix.SYS_KILL, pid.Val(), num(unix.SIGKILL))
	c.p.Call(unix.SYS_WAIT4, pid.Val(), status.Addr(), num(unix.WALL), nilp)
	c.p.Load(num(0), 1).Want(1, unix.ETIMEDOUT)
	c.hint(func(e syscall.Errno) error {
		return fmt.Errorf("error running %s: %w: hook ran past specified timeout of %.1fs", name, e, float64(*h.Timeout))
	})
	c.p.Bind(ended)
	c.p.Call(unix.SYS_CLOSE, poll.Word(0)) // the kernel reads the descriptor's 32 bits only
}

func exitText(ws launch.WaitStatus) string {
	if ws.Signaled() {
		return "signal: " + ws.Signal().String()
	}
	return fmt.Sprintf("exit status %d", ws.ExitStatus())
}

// readBack reads what a hook has written.
func readBack(f *os.File) string {
	const most = 16 << 10
	b, err := io.ReadAll(io.NewSectionReader(f, 0, most))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// hostRoot is where the root filesystem is attached for hooks that see the host's files.
func hostRoot(o *Options) (string, error) {
	p, err := hostPath(o.Bundle, o.Spec.Root.Path)
	return filepath.Clean(p), err
}
