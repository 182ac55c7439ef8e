package runtime

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// nsFlags are the clone flags of the specification's namespace types.
var nsFlags = []struct {
	name specs.LinuxNamespaceType
	flag uintptr
}{
	{specs.UserNamespace, unix.CLONE_NEWUSER}, {specs.MountNamespace, unix.CLONE_NEWNS}, {specs.PIDNamespace, unix.CLONE_NEWPID},
	{specs.NetworkNamespace, unix.CLONE_NEWNET}, {specs.IPCNamespace, unix.CLONE_NEWIPC}, {specs.UTSNamespace, unix.CLONE_NEWUTS},
	{specs.CgroupNamespace, unix.CLONE_NEWCGROUP}, {specs.TimeNamespace, unix.CLONE_NEWTIME},
}

func nsFlag(t specs.LinuxNamespaceType) uintptr {
	for _, n := range nsFlags {
		if n.name == t {
			return n.flag
		}
	}
	return 0
}

// namespaces says which are made and which are joined.
type namespaces struct {
	create     uintptr // made new
	unshare    uintptr // those of create that the program makes itself; the others come with its process
	joined     uintptr // by the program
	entered    uintptr // by the launcher, before there is a process
	hosts      uintptr // of those that are joined, by a path to the launcher's own
	joins      []join
	hostMounts int      // child descriptor of the mount namespace to start in, 0: the launcher's
	user       *os.File // the user namespace that is joined, when it came so; perhaps a pidfd
}

// join is one setns.
type join struct {
	fd    int // child descriptor
	flags uintptr
}

func (n *namespaces) all() uintptr { return n.create | n.joined }

// has reports whether the process is in a namespace of that type that is not the launcher's.
func (n *namespaces) has(flag uintptr) bool { return (n.all()|n.entered)&flag != 0 }

// private is has, where what is set in the namespace is not set for the launcher, too.
func (n *namespaces) private(flag uintptr) bool { return n.has(flag) && n.hosts&flag == 0 }

// isOwn reports whether f is open on the launcher's own namespace of that type.
func isOwn(f *os.File, t specs.LinuxNamespaceType) bool {
	name := string(t)
	switch t {
	case specs.NetworkNamespace:
		name = "net"
	case specs.MountNamespace:
		name = "mnt"
	}
	own, err := os.Stat("/proc/self/ns/" + name)
	if err != nil {
		return false
	}
	st, err := f.Stat()
	return err == nil && os.SameFile(own, st)
}

// early: the program makes the PID or time namespace, and its child, the first process in it, does the rest.
func (n *namespaces) early() bool {
	return n.unshare&(unix.CLONE_NEWPID|unix.CLONE_NEWTIME) != 0 && !n.late()
}

// late: the program joins a PID namespace where others are. Its child enters it when nothing is left to be
// done that they should not see.
func (n *namespaces) late() bool { return n.joined&unix.CLONE_NEWPID != 0 }

// planNamespaces sorts the configuration's namespaces. Descriptors that are the same file are joined in
// one call, in the kernel's order. The user namespace comes last: before it we are root, and may join
// what another user namespace owns. With userFirst it is the other way round: we are nobody before.
func (c *compiler) planNamespaces(list []specs.LinuxNamespace, byFD map[specs.LinuxNamespaceType]*os.File, ns *namespaces, userFirst bool) error {
	open := map[*os.File]int{}
	var user []join
	for i := range list {
		n := &list[i]
		flag := nsFlag(n.Type)
		if flag == 0 {
			return errs.New(errs.Invalid, "namespace type %q is unknown", n.Type)
		}
		if ns.all()&flag != 0 {
			return errs.New(errs.Invalid, "namespace type %q appears twice", n.Type)
		}
		f, ours := byFD[n.Type], false
		if f == nil && n.Path != "" {
			var err error
			if f, err = os.OpenFile(n.Path, os.O_RDONLY, 0); err != nil {
				return fmt.Errorf("%s namespace: %w", n.Type, err)
			}
			if ours = true; isOwn(f, n.Type) {
				ns.hosts |= flag
			}
		}
		if f == nil {
			ns.create |= flag
			continue
		}
		ns.joined |= flag
		if flag == unix.CLONE_NEWUSER {
			ns.user = f
		}
		if j, ok := open[f]; ok {
			ns.joins[j].flags |= flag
			continue
		}
		entry := join{c.files.add(f, ours), flag}
		if flag == unix.CLONE_NEWUSER && !shared(byFD, f) {
			user = append(user, entry)
			continue
		}
		open[f] = len(ns.joins)
		ns.joins = append(ns.joins, entry)
	}
	if userFirst {
		ns.joins = append(user, ns.joins...)
	} else {
		ns.joins = append(ns.joins, user...)
	}
	c.split(ns)
	return nil
}

// shared reports whether f stands for more than one namespace.
func shared(byFD map[specs.LinuxNamespaceType]*os.File, f *os.File) bool {
	n := 0
	for _, g := range byFD {
		if g == f {
			n++
		}
	}
	return n > 1
}

// split decides who makes the new namespaces: the clone, or the program. In a joined user namespace the
// program does, so that they belong to it. The cgroup namespace is always the program's, who is in its
// cgroup by then. What must be joined from outside a new user namespace, the launcher joins.
func (c *compiler) split(ns *namespaces) {
	ns.unshare = ns.create & unix.CLONE_NEWCGROUP
	if ns.joined&unix.CLONE_NEWUSER != 0 {
		ns.unshare = ns.create
	}
	if ns.create&unix.CLONE_NEWTIME != 0 { // not a flag of clone(2), and entered by children, whom a PID 1 cannot give its own parent
		ns.unshare |= ns.create & (unix.CLONE_NEWTIME | unix.CLONE_NEWPID)
	}
	c.req.Cloneflags = ns.create &^ ns.unshare
	if ns.create&unix.CLONE_NEWUSER == 0 {
		return
	}
	for _, j := range ns.joins {
		c.req.Enter = append(c.req.Enter, launch.Enter{File: c.files.child[j.fd-launch.FirstFD], Type: uint32(j.flags)})
	}
	ns.joins = nil
	ns.entered, ns.joined = ns.joined, 0
}

// joinNamespaces adds the operations that enter and make namespaces.
func (c *compiler) joinNamespaces(ns *namespaces) {
	if ns.hostMounts != 0 {
		c.p.Subject("start in the host's mount namespace")
		c.p.Call(unix.SYS_SETNS, num(ns.hostMounts), num(unix.CLONE_NEWNS))
	}
	for _, j := range ns.joins {
		c.p.Subject("join namespaces")
		c.p.Call(unix.SYS_SETNS, num(j.fd), num(j.flags))
	}
	if ns.joined&unix.CLONE_NEWUSER != 0 {
		c.becomeRoot()
	}
	if ns.unshare != 0 {
		c.p.Subject("make namespaces")
		c.p.Call(unix.SYS_UNSHARE, num(ns.unshare))
	}
}

// becomeRoot makes the process user 0 of the user namespace it has joined: before that its ids have no
// meaning there, and it could own no file. Where the namespace denies setgroups there is nothing to drop.
func (c *compiler) becomeRoot() {
	c.p.Subject("become root of the user namespace")
	c.p.Call(unix.SYS_SETGROUPS, num(0), nilp).Accept(unix.EPERM)
	c.p.Call(unix.SYS_SETRESGID, num(0), num(0), num(0))
	c.p.Call(unix.SYS_SETRESUID, num(0), num(0), num(0))
}
