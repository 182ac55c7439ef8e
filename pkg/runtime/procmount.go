package runtime

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/program"
	"github.com/cri-server/cri-server/pkg/sys"
)

// nobody is the user that helpers run as: nothing on the host belongs to it.
const nobody = 65534

// procContexts makes, before anything is joined, the filesystem contexts for the procfs mounts of a program
// that joins a PID namespace. Kernels before 6.18 make a procfs for the maker's own PID namespace only, so
// that somebody has to enter it, among processes that may be allowed to trace it. Whoever enters must have
// nothing: no descriptor, no privilege on the host, no host user, no root directory but the container's.
func (c *compiler) procContexts(b *build) {
	if sys.Has(sys.ProcPidns) {
		return
	}
	for _, m := range b.mounts {
		if m.kind == mountFS && m.fstype == "proc" {
			c.contexts = append(c.contexts, c.procContext(b))
		}
	}
}

// procContext adds a helper that stays outside, strips itself and starts a child inside, which shares its
// descriptors: those are the context that the child makes and the socket that it goes home by.
func (c *compiler) procContext(b *build) program.Slot {
	c.p.Subject("make a procfs of the PID namespace")
	parent, pid, end := c.p.Label(), c.p.Slot("helper"), c.p.Slot("end")
	pair, theirs, ours := c.p.Buf("pair", 16), c.p.Slot("theirs"), c.p.Slot("ours")
	const low = 1<<32 - 1
	c.p.Call(unix.SYS_SOCKETPAIR, num(unix.AF_UNIX), num(unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC), num(0), pair.Addr(0))
	c.p.Load(pair.Word(0), low).Save(theirs)
	c.p.Load(pair.Word(4), low).Save(ours)
	c.p.Call(unix.SYS_CLONE, num(unix.SIGCHLD), num(0), num(0), num(0), num(0)).Save(pid).Else(0, parent)
	for _, j := range b.ns.joins {
		if j.flags&unix.CLONE_NEWPID != 0 {
			c.p.Call(unix.SYS_SETNS, num(j.fd), num(unix.CLONE_NEWPID))
		}
	}
	c.strip(b, theirs)
	c.contextInside()
	c.p.Bind(parent)
	c.close(theirs) // or its end would not be heard
	context, receive := c.p.RecvFD()
	receive(ours.Val())
	c.hint(func(e syscall.Errno) error {
		return wrapErrno(e, "make a procfs of the PID namespace: the helper failed. Has the namespace's first process ended?")
	})
	c.close(ours)
	c.p.Call(unix.SYS_WAIT4, pid.Val(), end.Addr(), num(unix.WALL), nilp)
	return context
}

// strip makes the helper nobody, with nothing but the socket, as descriptor 0. It keeps the right to make
// mounts, in a mount namespace of a user namespace of its own; where those are switched off it keeps
// CAP_SYS_ADMIN alone.
func (c *compiler) strip(b *build, socket program.Slot) {
	c.p.Call(unix.SYS_FCHDIR, num(b.rootfs))
	c.p.Call(unix.SYS_SETGROUPS, num(0), nilp).Accept(unix.EPERM)
	c.p.Call(unix.SYS_PRCTL, num(unix.PR_SET_KEEPCAPS), num(1), num(0), num(0), num(0))
	// EINVAL: a launcher in a user namespace that does not have this user.
	c.p.Call(unix.SYS_SETRESGID, num(nobody), num(nobody), num(nobody)).Accept(unix.EINVAL)
	c.p.Call(unix.SYS_SETRESUID, num(nobody), num(nobody), num(nobody)).Accept(unix.EINVAL)
	const admin = 1 << unix.CAP_SYS_ADMIN
	c.p.Call(unix.SYS_CAPSET, c.p.Words(unix.LINUX_CAPABILITY_VERSION_3), c.p.Words(admin|admin<<32, 0, 0))
	c.p.Call(unix.SYS_UNSHARE, num(unix.CLONE_NEWUSER|unix.CLONE_NEWNS)).Accept(unix.ENOSPC, unix.EPERM, unix.EINVAL)
	c.p.Call(unix.SYS_CHROOT, c.p.Str(".")).Accept(unix.EPERM, unix.EACCES)
	c.hide()
	c.p.Subject("make a procfs of the PID namespace")
	c.p.Call(unix.SYS_DUP3, socket.Val(), num(0), num(0))
	c.p.Call(unix.SYS_CLOSE_RANGE, num(1), num(1<<32-1), num(0))
}

// contextInside is the rest of the helper's life: its child makes the context, it sends it.
func (c *compiler) contextInside() {
	outside, pid, status := c.p.Label(), c.p.Slot("inside"), c.p.Slot("status")
	c.p.Call(unix.SYS_CLONE, num(unix.CLONE_FILES|uint64(unix.SIGCHLD)), num(0), num(0), num(0), num(0)).Save(pid).Else(0, outside)
	c.p.Call(unix.SYS_FSOPEN, c.p.Str("proc"), num(0)).Want(1, unix.EBADF)
	c.p.Exit(0)
	c.p.Bind(outside)
	c.p.Call(unix.SYS_WAIT4, pid.Val(), status.Addr(), num(unix.WALL), nilp)
	c.p.Load(status.Val(), 1<<32-1).Want(0, unix.ECHILD)
	fd, send := c.p.SendFD()
	c.p.Load(num(1), 1).Save(fd)
	send(num(0))
	c.p.Exit(0)
}

// compileProc mounts the procfs of a PID namespace that the program has joined but not entered.
func (c *compiler) compileProc(m *mountPlan) {
	mnt := c.p.Slot("proc")
	if sys.Has(sys.ProcPidns) {
		ns := c.p.Slot("pidns")
		c.open(c.procfs(), "self/ns/pid_for_children", unix.O_RDONLY, 0).Save(ns)
		c.p.Call(unix.SYS_FSOPEN, c.p.Str("proc"), num(unix.FSOPEN_CLOEXEC)).Save(c.aux)
		c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_SET_FD), c.p.Str("pidns"), nilp, ns.Val())
		c.close(ns)
	} else {
		c.p.Load(c.contexts[0].Val(), 1<<32-1).Save(c.aux)
		c.contexts = c.contexts[1:]
	}
	c.createProc(m, mnt)
	c.attach(mnt.Val(), c.dst)
	c.close(mnt)
}

// createProc configures the filesystem context in aux and makes a mount of it.
func (c *compiler) createProc(m *mountPlan, mnt program.Slot) {
	c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_SET_STRING), c.p.Str("source"), c.p.Str(m.source), num(0))
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
