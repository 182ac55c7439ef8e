package runtime

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/program"
	"github.com/cri-server/cri-server/pkg/runtime/seccomp"
)

// processPlan is what the second half of a program, from the working directory to the execve, is made of.
type processPlan struct {
	proc             *specs.Process
	filter           seccomp.Filter
	uidMaps, gidMaps []specs.LinuxIDMapping
	extra            []int // child descriptors of what becomes 3 and up
	personality      *specs.LinuxPersonality
	memory           *specs.LinuxMemoryPolicy
	hooks            *hooksPlan // nil or with startContainer hooks
	cpus             string     // that the container is limited to, "" for all

	gate, clamp, keyring, stdioOwner bool
	userns                           bool // in a user namespace that is not the launcher's
	nested                           bool // the process is a child in another PID namespace
	create                           bool // the container's first process: a missing working directory is made

	report, gateFD program.Arg
	caps           capabilities
	chdirDone      program.Slot
}

// process adds everything from the working directory on. The container's files are in place by now, and
// nothing but the process itself is left to be made.
func (c *compiler) process(pl *processPlan) error {
	if err := pl.check(); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	var err error
	if pl.caps, err = c.planCaps(pl.proc.Capabilities, pl.clamp && !pl.userns, pl.userns); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	pl.report, pl.gateFD = num(launch.ReportFD), num(launch.GateFD)
	c.owner(pl)
	c.enterCwd(pl, true)
	c.labels(pl.proc)
	c.req.Gate = pl.gate
	rlimits, err := c.limits(pl)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := c.scheduling(pl); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := c.attributes(pl); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if pl.hooked() {
		c.keepHooks(pl.hooks)
	}
	c.closeFiles(pl)
	c.rlimits(rlimits)
	if !pl.nested {
		c.session(pl)
	}
	if !pl.proc.NoNewPrivileges {
		c.seccomp(pl, pl.nested)
	}
	c.credentials(pl)
	c.enterCwd(pl, false)
	c.find(pl)
	tail := func() {
		if pl.nested {
			c.session(pl)
		}
		c.finish(pl)
	}
	if !pl.nested {
		tail()
		return nil
	}
	c.req.Nested = true
	c.p.Subject("enter the PID namespace")
	c.p.Nest(pl.report, tail)
	return nil
}

// hooked reports whether there are startContainer hooks.
func (pl *processPlan) hooked() bool { return pl.hooks != nil && len(pl.hooks.start) > 0 }

// check refuses what no kernel or no user would take.
func (pl *processPlan) check() error {
	p := pl.proc
	switch {
	case len(p.Args) == 0:
		return errs.New(errs.Invalid, "process: no arguments: there is nothing to run")
	case !path.IsAbs(p.Cwd):
		return errs.New(errs.Invalid, "process: cwd %q is not an absolute path", p.Cwd)
	case p.User.UID == 1<<32-1 || p.User.GID == 1<<32-1:
		return errs.New(errs.Invalid, "process: user %d:%d is out of range", p.User.UID, p.User.GID)
	case len(p.User.AdditionalGids) > 65536:
		return errs.New(errs.Invalid, "process: %d additional groups, the kernel takes 65536", len(p.User.AdditionalGids))
	}
	for _, list := range [][]string{p.Args, p.Env, {p.Cwd}} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return errs.New(errs.Invalid, "process: %q has a NUL in it", s)
			}
		}
	}
	return nil
}

// owner lets the launcher give stdio pipes to the container's user, as the host numbers it.
func (c *compiler) owner(pl *processPlan) {
	if !pl.stdioOwner || pl.proc.Terminal {
		return
	}
	u := pl.proc.User
	if c.confined { // the launcher may give nothing away, but we are root of a user namespace
		c.ownStdio(u)
		return
	}
	if uid, gid := hostID(pl.uidMaps, u.UID), hostID(pl.gidMaps, u.GID); uid != 0 || gid != 0 {
		c.req.StdioOwner = &launch.Owner{UID: uid, GID: gid}
	}
}

// ownStdio adds what gives pipes to the container's user; ids that the namespace lacks get none.
func (c *compiler) ownStdio(u specs.User) {
	if u.UID == 0 && u.GID == 0 {
		return
	}
	const mode = 24 // of statx: the upper half of a word
	c.p.Subject("give standard input and output to the container's user")
	for fd := range 3 {
		other := c.p.Label()
		c.p.Call(unix.SYS_STATX, num(fd), c.p.Str(""), empty, num(unix.STATX_TYPE), c.buf.Addr(0))
		c.p.Load(c.buf.Word(mode), unix.S_IFMT<<32).Else(unix.S_IFIFO<<32, other)
		c.p.Call(unix.SYS_FCHOWN, num(fd), num(u.UID), num(u.GID)).Accept()
		c.p.Bind(other)
	}
}

// labels sets what the security modules shall make of the exec.
func (c *compiler) labels(proc *specs.Process) {
	if proc.ApparmorProfile != "" {
		c.p.Subject("set the AppArmor profile " + proc.ApparmorProfile)
		c.apparmor("exec", proc.ApparmorProfile)
	}
	if proc.SelinuxLabel != "" {
		c.writeProc("set the SELinux label "+proc.SelinuxLabel, "self/attr/exec", proc.SelinuxLabel)
	}
}

// apparmor writes a request to AppArmor's own file, or to the shared one of kernels before 5.8.
func (c *compiler) apparmor(what, profile string) {
	have := c.p.Label()
	value := what + " " + profile
	file := "exec"
	if what != "exec" {
		file = "current"
	}
	const rules = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV
	c.open(c.procfs(), "self/attr/apparmor/"+file, unix.O_WRONLY, rules).Save(c.dst).Accept(unix.ENOENT).Then(have)
	c.open(c.procfs(), "self/attr/"+file, unix.O_WRONLY, rules).Save(c.dst)
	c.p.Bind(have)
	c.p.Call(unix.SYS_WRITE, c.dst.Val(), c.p.Str(value), num(len(value))).Want(uint64(len(value)), unix.EIO)
	c.close(c.dst)
}

// attributes sets what is the process's own and survives the exec.
func (c *compiler) attributes(pl *processPlan) error {
	if pl.keyring {
		c.p.Subject("join the session keyring")
		c.p.Call(unix.SYS_KEYCTL, num(unix.KEYCTL_JOIN_SESSION_KEYRING), c.p.Str("_ses."+c.id), nilp, nilp, nilp).Accept(unix.ENOSYS)
	}
	if err := c.setPersonality(pl.personality); err != nil {
		return err
	}
	if err := c.memoryPolicy(pl.memory); err != nil {
		return err
	}
	umask := uint32(0o022)
	if u := pl.proc.User.Umask; u != nil {
		umask = *u & 0o777
	}
	c.p.Subject("set the umask")
	c.p.Call(unix.SYS_UMASK, num(umask))
	return nil
}

// closeFiles closes everything that neither the user's program nor the rest of this one needs. What stays
// is stdio, the report pipe and the gate, which close on exec, and the caller's extra files.
func (c *compiler) closeFiles(pl *processPlan) {
	c.p.Subject("close descriptors")
	if len(pl.extra) > 0 {
		c.moveFiles(pl)
		return
	}
	last, most := launch.ReportFD, uint32(1<<32-1)
	if c.req.Gated() || c.req.Notify != nil {
		last = launch.GateFD
	}
	if pl.hooked() {
		most = highFD - 1
	}
	c.p.Call(unix.SYS_CLOSE_RANGE, num(last+1), num(most), num(0))
	c.p.Call(unix.SYS_CLOSE_RANGE, num(launch.ReportFD), num(last), num(unix.CLOSE_RANGE_CLOEXEC))
}

// highFD is where descriptors go that must not be in the way.
const highFD = 512

// moveFiles makes room for the container's own descriptors from 3 on.
func (c *compiler) moveFiles(pl *processPlan) {
	up := func(fd int, s program.Slot) {
		c.p.Call(unix.SYS_FCNTL, num(fd), num(unix.F_DUPFD_CLOEXEC), num(highFD)).Save(s)
	}
	up(launch.ReportFD, c.p.ReportFrom())
	pl.report = c.p.ReportFrom().Val()
	if c.req.Gated() || c.req.Notify != nil {
		s := c.p.Slot("gate")
		up(launch.GateFD, s)
		pl.gateFD = s.Val()
	}
	slots := make([]program.Slot, len(pl.extra))
	for i := range pl.extra {
		slots[i] = c.p.Slot("extra" + strconv.Itoa(i))
		up(pl.extra[i], slots[i])
	}
	c.p.Call(unix.SYS_CLOSE_RANGE, num(3), num(highFD-1), num(0))
	for i, s := range slots {
		c.p.Call(unix.SYS_DUP3, s.Val(), num(3+i), num(0))
		c.close(s)
	}
}

// session makes the process the leader of a session, with its terminal.
func (c *compiler) session(pl *processPlan) {
	c.p.Subject("start a session")
	c.p.Call(unix.SYS_SETSID)
	if pl.proc.Terminal {
		c.p.Subject("take the terminal")
		c.p.Call(unix.SYS_IOCTL, num(0), num(unix.TIOCSCTTY), num(0))
	}
}

// seccomp adds the load of the filter. maker: the process that has it so far is not the one that execs.
func (c *compiler) seccomp(pl *processPlan, maker bool) {
	if pl.filter.Off() {
		return
	}
	c.p.Subject("load the seccomp filter")
	const setModeFilter = 1
	if !pl.filter.Notify {
		c.p.Call(unix.SYS_SECCOMP, num(setModeFilter), num(pl.filter.Flags), c.p.Filter(pl.filter.Bytes()))
		return
	}
	kind := uint64(launch.RecordListener)
	if maker {
		kind = launch.RecordMakerListener
	}
	listener, report := c.p.ReportValue(kind)
	c.p.Call(unix.SYS_SECCOMP, num(setModeFilter), num(pl.filter.Flags), c.p.Filter(pl.filter.Bytes())).Save(listener)
	c.p.Subject("hand the seccomp listener over")
	report(pl.report)
	c.p.Token(pl.gateFD)
}

// candidates are the paths that a program's name may stand for, and whether it was looked up.
func candidates(proc *specs.Process) (list []string, looked bool) {
	name := proc.Args[0]
	if strings.Contains(name, "/") {
		return []string{name}, false
	}
	for _, e := range proc.Env {
		search, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		list = nil // the last one counts, as in execvp
		for _, dir := range strings.Split(search, ":") {
			if dir == "" {
				dir = "."
			}
			list = append(list, strings.TrimSuffix(dir, "/")+"/"+name)
		}
	}
	if name == "" {
		return nil, true
	}
	return list, true
}

// find ends a program whose executable is not there while it can still be told from a created container:
// as the user, who is the one that may or may not execute it.
func (c *compiler) find(pl *processPlan) {
	list, looked := candidates(pl.proc)
	name := pl.proc.Args[0]
	c.p.Subject(fmt.Sprintf("exec: %q", name))
	found := c.p.Label()
	if len(list) == 0 {
		c.p.Call(unix.SYS_CLOSE, num(-1))
		c.hint(notFound(name))
		return
	}
	for i, p := range list {
		op := c.p.Call(unix.SYS_FACCESSAT2, cwd, c.p.Str(p), num(unix.X_OK), num(unix.AT_EACCESS)).Then(found)
		if i < len(list)-1 {
			op.Accept()
			continue
		}
		// A filter that is loaded by now may not know this call: then the execve tells.
		op.Accept(unix.ENOSYS, unix.EPERM)
		if looked {
			c.hint(notFound(name))
		} else {
			c.hint(execError(name))
		}
	}
	c.p.Bind(found)
}

func notFound(name string) hint {
	return func(e syscall.Errno) error {
		if e == unix.EBADF || e == unix.EACCES || e == unix.ENOTDIR {
			e = unix.ENOENT
		}
		return failedExec(e, fmt.Sprintf("exec: %q: executable file not found in $PATH", name))
	}
}

func execError(name string) hint {
	return func(e syscall.Errno) error {
		if e == unix.ENOENT {
			return failedExec(e, fmt.Sprintf("exec: %q: stat %s: no such file or directory", name, name))
		}
		return failedExec(e, fmt.Sprintf("exec: %q: %v", name, e))
	}
}

// failedExec tells a command that is not there, and one that is none, from a machine that cannot run it.
func failedExec(e syscall.Errno, text string) error {
	err := &execFailure{text, e}
	switch e {
	case unix.ENOENT:
		return errs.With(errs.NotFound, err)
	case unix.EACCES, unix.ENOEXEC, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.E2BIG:
		return errs.With(errs.Invalid, err)
	}
	return err
}

// execFailure is an error whose text is complete without its errno.
type execFailure struct {
	text  string
	errno syscall.Errno
}

func (e *execFailure) Error() string { return e.text }
func (e *execFailure) Unwrap() error { return e.errno }

// finish waits at the gate and becomes the user's program.
func (c *compiler) finish(pl *processPlan) {
	if c.req.Gated() {
		c.p.Subject("wait at the gate")
		if pl.gate { // others may wish it to end meanwhile
			c.p.EndOn(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
		}
		c.p.Gate(pl.report, pl.gateFD)
	}
	// Last of all, but not after hooks: they are of the container, and under its filter.
	if pl.proc.NoNewPrivileges && pl.hooked() {
		c.seccomp(pl, false)
	}
	if pl.hooked() {
		c.startHooks(pl.hooks, pl.report)
	}
	c.p.Subject("report ready")
	c.p.Report(pl.report, launch.RecordReady)
	if pl.proc.NoNewPrivileges && !pl.hooked() {
		c.seccomp(pl, false)
	}
	name := pl.proc.Args[0]
	c.p.Subject(fmt.Sprintf("exec: %q", name))
	list, looked := candidates(pl.proc)
	argv, envp := c.p.Strs(pl.proc.Args), c.p.Strs(pl.proc.Env)
	for i, p := range list {
		op := c.p.Call(unix.SYS_EXECVE, c.p.Str(p), argv, envp)
		if i < len(list)-1 {
			op.Accept(unix.ENOENT, unix.ENOTDIR, unix.EACCES)
			continue
		}
		if looked {
			c.hint(lookedExec(name))
		} else {
			c.hint(interpreterError(name))
		}
	}
}

// interpreterError words the failure of a file that was found: what is missing then is its interpreter.
func interpreterError(name string) hint {
	return func(e syscall.Errno) error {
		if e == unix.ENOENT {
			return &execFailure{fmt.Sprintf("exec %s: no such file or directory", name), e}
		}
		return execError(name)(e)
	}
}

// lookedExec words the failure of the last candidate.
func lookedExec(name string) hint {
	return func(e syscall.Errno) error {
		if e == unix.ENOENT || e == unix.EACCES || e == unix.ENOTDIR {
			return notFound(name)(e)
		}
		return execError(name)(e)
	}
}
