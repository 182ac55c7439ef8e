package runtime

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/program"
	"github.com/cri-server/cri-server/pkg/sys"
)

// procSlotFD is where a helper leaves the filesystem it made.
const procSlotFD = 250

// compileProc mounts the procfs of a PID namespace that the program has joined but not entered. Kernels
// before 6.17 make a procfs for the maker's own PID namespace only: there a helper enters it, which holds
// nothing and exits at once.
func (c *compiler) compileProc(m *mountPlan) {
	helper, made := c.p.Label(), c.p.Label()
	mnt := c.p.Slot("proc")
	if sys.Has(sys.ProcPidns) {
		ns := c.p.Slot("pidns")
		c.open(num(c.procfs), "self/ns/pid_for_children", unix.O_RDONLY, 0).Save(ns)
		c.p.Call(unix.SYS_FSOPEN, c.p.Str("proc"), num(unix.FSOPEN_CLOEXEC)).Save(c.aux)
		c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_SET_FD), c.p.Str("pidns"), nilp, ns.Val()).Catch(helper, unix.EINVAL)
		c.createProc(m, mnt)
		c.p.Load(num(1), 1).Then(made)
	}
	c.p.Bind(helper)
	c.procHelper(m, mnt)
	c.p.Bind(made)
	c.attach(mnt.Val(), c.dst)
	c.close(mnt)
}

// createProc configures the filesystem context in aux and makes a mount of it.
func (c *compiler) createProc(m *mountPlan, mnt program.Slot) {
	for _, o := range m.opts.data {
		k, v := cutOption(o)
		c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_SET_STRING), c.p.Str(k), c.p.Str(v), num(0))
		c.hint(func(e syscall.Errno) error { return mountError(m, e) })
	}
	if m.opts.flags&unix.MS_RDONLY != 0 {
		c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_SET_FLAG), c.p.Str("ro"), nilp, num(0))
	}
	c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_CMD_CREATE), nilp, nilp, num(0))
	c.hint(func(e syscall.Errno) error { return mountError(m, e) })
	c.p.Call(unix.SYS_FSMOUNT, c.aux.Val(), num(unix.FSMOUNT_CLOEXEC), num(m.opts.set)).Save(mnt)
	c.close(c.aux)
}

// procHelper adds a child in the PID namespace that shares the descriptor table, makes the filesystem and
// is gone.
func (c *compiler) procHelper(m *mountPlan, mnt program.Slot) {
	parent := c.p.Label()
	pid, status := c.p.Slot("helper"), c.p.Slot("status")
	c.p.Call(unix.SYS_CLONE, num(unix.CLONE_FILES|uint64(unix.SIGCHLD)), num(0), num(0), num(0), num(0)).Save(pid).Else(0, parent)
	c.p.Call(unix.SYS_FSOPEN, c.p.Str("proc"), num(unix.FSOPEN_CLOEXEC)).Save(c.aux)
	c.createProc(m, mnt)
	c.p.Call(unix.SYS_DUP3, mnt.Val(), num(procSlotFD), num(unix.O_CLOEXEC))
	c.close(mnt)
	c.p.Exit(0)
	c.p.Bind(parent)
	c.p.Call(unix.SYS_WAIT4, pid.Val(), status.Addr(), num(unix.WALL), nilp)
	c.p.Load(status.Val(), 1<<32-1).Want(0, unix.ECHILD)
	c.p.Load(num(procSlotFD), 1<<32-1).Save(mnt)
}
