// Package rootless prepares containers for a caller who is not the machine's root: an ordinary user, or root
// in a user namespace.
//
// Preparation opens mounts, and nobody may do that but in a mount namespace of his own, as root of the user
// namespace it belongs to. So Prepare starts a helper, which is this executable again, in both: in the
// container's new user namespace, in the one that the container joins, or in the caller's. A program (as
// containers are) makes the namespaces, waits for its mappings, becomes root and executes the helper. The
// helper does what runtime.Prepare does and sends the result: request, descriptors, warnings. It stays to
// explain a failure until the Prepared is closed, and ends with its caller.
//
// The caller launches what it received. It is the container's parent, runs its hooks, owns its state and its
// cgroup, all with no more privileges than it had.
package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/program"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Verb is the first argument of a helper: who links this package calls Main for it.
const Verb = "prepare-rootless"

// Confined reports whether this process is not the machine's root.
func Confined() bool { return os.Geteuid() != 0 || runtime.InUserNamespace() }

// order is what a helper is told. The descriptors follow the fixed ones in the order of the fields.
type order struct {
	ID, Bundle   string
	Spec         *specs.Spec
	Gate         bool
	NoPivot      bool
	NoKeyring    bool
	StdioOwner   bool
	Detached     bool
	InOrder      bool
	Held         bool   // the caller has a Place
	Unprivileged bool   // the caller has no capabilities
	User         bool   // the helper is in the user namespace of the container
	CgroupPath   string // "": no cgroup
	CgroupDir    bool
	Tasks, Rdt   int
	Hooks        [2]bool
	Extra        int
}

// A helper's descriptors.
const (
	socketFD = launch.FirstFD + iota // to the caller
	orderFD                          // JSON
	exeFD                            // of the helper
	nextFD                           // the namespace to join, or the order's
)

// Prepare is runtime.Prepare for a confined caller. Options.Rootfs, MountFDs, Namespaces and HostMounts are
// for who holds such descriptors, and not supported. The helper lives until the Prepared is closed.
func Prepare(ctx context.Context, o runtime.Options) (*runtime.Prepared, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.Spec == nil || o.Spec.Linux == nil {
		return nil, errs.New(errs.Invalid, "container %s: the configuration has no linux section", o.ID)
	}
	h, err := start(&o)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", o.ID, err)
	}
	p, err := h.receive(&o)
	if err != nil {
		h.close()
		return nil, err
	}
	return p, nil
}

// helper is a running one.
type helper struct {
	proc *launch.Process
	sock *os.File
}

func (h *helper) close() {
	h.sock.Close() // which ends it
	_, _ = h.proc.Wait()
	h.proc.Close()
}

// user finds the container's user namespace in its configuration.
func user(l *specs.Linux) *specs.LinuxNamespace {
	for i := range l.Namespaces {
		if l.Namespaces[i].Type == specs.UserNamespace {
			return &l.Namespaces[i]
		}
	}
	return nil
}

// check refuses what cannot be without privileges, in runc's words.
func check(l *specs.Linux) error {
	ns := user(l)
	switch {
	case os.Geteuid() != 0 && ns == nil:
		return errs.New(errs.Invalid, "rootless container requires user namespaces: add one to the configuration, with mappings (spec --rootless writes such a configuration)")
	case ns == nil || ns.Path != "":
		return nil
	case len(l.UIDMappings) == 0:
		return errs.New(errs.Invalid, "rootless containers requires at least one UID mapping")
	case len(l.GIDMappings) == 0:
		return errs.New(errs.Invalid, "rootless containers requires at least one GID mapping")
	case !hasRoot(l.UIDMappings) || !hasRoot(l.GIDMappings):
		return errs.New(errs.Invalid, "uidMappings and gidMappings must map container ID 0: its user makes the container's mounts")
	}
	return nil
}

// start starts a helper, and gives it its user namespace.
func start(o *runtime.Options) (h *helper, err error) {
	l := o.Spec.Linux
	if err := check(l); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	h = &helper{sock: os.NewFile(uintptr(pair[0]), "helper")}
	theirs := []*os.File{os.NewFile(uintptr(pair[1]), "caller")}
	defer func() {
		sys.CloseAll(theirs)
		if err != nil {
			h.sock.Close()
		}
	}()
	ord := newOrder(o)
	passed, err := ord.files(o, &theirs)
	if err != nil {
		return nil, err
	}
	ns := user(l)
	if ns != nil && ns.Path != "" {
		f, err := os.Open(ns.Path)
		if err != nil {
			return nil, fmt.Errorf("user namespace: %w", err)
		}
		theirs = append(theirs, f)
		passed = append(passed, f) // last: the helper has no use for it
	}
	self, err := os.OpenFile("/proc/self/exe", unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, self)
	text, err := ord.seal()
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, text)
	files := append([]*os.File{theirs[0], text, self}, passed...)
	h.proc, err = spawn(l, ns, files)
	return h, err
}

// spawn runs the program that becomes the helper.
func spawn(l *specs.Linux, ns *specs.LinuxNamespace, files []*os.File) (*launch.Process, error) {
	fresh := ns != nil && ns.Path == ""
	p := entrance(ns, launch.FirstFD+len(files)-1)
	sealed, err := p.Seal("helper")
	if err != nil {
		return nil, err
	}
	defer sealed.Close()
	req := &launch.Request{Name: "cri-runtime", Cgroup: -1, Gate: fresh, Files: make([]int, len(files))}
	for i := range files {
		req.Files[i] = i + 1
	}
	explain := func(err error) error {
		var op *launch.OpError
		if !errors.As(err, &op) {
			return err
		}
		what, call := p.What(op.Index)
		return refusal(what, call, op.Errno)
	}
	proc, err := launch.Start(req, append([]*os.File{sealed}, files...), [3]*os.File{nil, nil, os.Stderr})
	if err != nil {
		return nil, explain(err)
	}
	if !fresh {
		return proc, nil
	}
	if err = writeMaps(proc.Pid, l); err == nil {
		err = explain(proc.Release())
	}
	if err != nil {
		_ = proc.Kill(unix.SIGKILL)
		_, _ = proc.Wait()
		proc.Close()
		return nil, err
	}
	return proc, nil
}

// refusal says what a machine forbids that has no user namespaces for everybody.
func refusal(what, call string, e syscall.Errno) error {
	next := ""
	switch {
	case what != makeUser:
	case e == unix.ENOSPC:
		next = ". The machine allows no more of them: see the sysctl user.max_user_namespaces"
	case e == unix.EPERM:
		next = ". The machine does not let its users make any: see the sysctls kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
	case e == unix.EINVAL:
		next = ". The kernel has none"
	}
	return fmt.Errorf("%s: %s: %w%s", what, call, e, next)
}

const makeUser = "make a user namespace"

// entrance is the program that becomes a helper: in its namespaces, as root of its user namespace.
func entrance(ns *specs.LinuxNamespace, join int) *program.Program {
	p := program.New()
	num := program.Int[int]
	switch {
	case ns == nil:
	case ns.Path == "":
		p.Subject(makeUser)
		p.Call(unix.SYS_UNSHARE, num(unix.CLONE_NEWUSER))
		p.Subject("wait for the mappings")
		p.Gate(num(launch.ReportFD), num(launch.GateFD))
	default:
		p.Subject("join user namespace " + ns.Path)
		p.Call(unix.SYS_SETNS, num(join), num(unix.CLONE_NEWUSER))
	}
	if ns != nil {
		p.Subject("become root of the user namespace")
		p.Call(unix.SYS_SETRESGID, num(0), num(0), num(0))
		p.Call(unix.SYS_SETRESUID, num(0), num(0), num(0))
	}
	p.Subject("make a mount namespace")
	p.Call(unix.SYS_UNSHARE, num(unix.CLONE_NEWNS))
	p.Call(unix.SYS_MOUNT, num(0), p.Str("/"), num(0), num(unix.MS_REC|unix.MS_SLAVE), num(0))
	p.Subject("execute the helper")
	for _, fd := range []int{launch.ReportFD, launch.GateFD} {
		p.Call(unix.SYS_FCNTL, num(fd), num(unix.F_SETFD), num(unix.FD_CLOEXEC)).Accept(unix.EBADF)
	}
	p.Report(num(launch.ReportFD), launch.RecordReady)
	argv := p.Strs([]string{"cri-runtime", Verb})
	p.Call(unix.SYS_EXECVEAT, num(exeFD), p.Str(""), argv, p.Strs(os.Environ()), num(unix.AT_EMPTY_PATH))
	return p
}

func newOrder(o *runtime.Options) *order {
	return &order{
		ID: o.ID, Bundle: o.Bundle, Spec: o.Spec, Gate: o.Gate, NoPivot: o.NoPivot, NoKeyring: o.NoKeyring, StdioOwner: o.StdioOwner,
		Detached: o.Detached, InOrder: o.InOrder, Held: o.Place != nil, Unprivileged: os.Geteuid() != 0, User: user(o.Spec.Linux) != nil,
		Rdt: len(o.RdtTasks), Extra: len(o.ExtraFiles),
	}
}

// files lists what the helper needs open, and adds to owned what is open for it alone.
func (ord *order) files(o *runtime.Options, owned *[]*os.File) (list []*os.File, err error) {
	if o.Cgroup != nil {
		ord.CgroupPath = o.Cgroup.Path()
		dir, err := o.Cgroup.Dir()
		if err != nil {
			return nil, err
		}
		if ord.CgroupDir = dir != nil; ord.CgroupDir {
			list = append(list, dir)
		}
		tasks, err := o.Cgroup.TaskFiles()
		ord.Tasks = len(tasks)
		list = append(list, tasks...)
		*owned = append(*owned, list...)
		if err != nil {
			return nil, err
		}
	}
	list = append(list, o.RdtTasks...)
	for i, f := range o.HookOutput {
		if ord.Hooks[i] = f != nil; f != nil {
			list = append(list, f)
		}
	}
	return append(list, o.ExtraFiles...), nil
}

// seal writes the order to a file that the helper reads.
func (ord *order) seal() (*os.File, error) {
	data, err := json.Marshal(ord)
	if err != nil {
		return nil, err
	}
	return memory("order", data)
}

// memory is a file in memory, to be read from its start.
func memory(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:"+name)
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// options are what the helper prepares with. The user namespace is its own, whatever the configuration says
// of how it came to be.
func (ord *order) options() runtime.Options {
	o := runtime.Options{
		ID: ord.ID, Spec: ord.Spec, Bundle: ord.Bundle, Gate: ord.Gate, NoPivot: ord.NoPivot, NoKeyring: ord.NoKeyring, StdioOwner: ord.StdioOwner,
		Detached: ord.Detached, InOrder: ord.InOrder, Confined: true, UserFirst: ord.Unprivileged,
		Namespaces: map[specs.LinuxNamespaceType]*os.File{},
	}
	if ord.Held {
		o.Place = func(int, bool) error { return nil } // the caller starts the program, with his own
	}
	return o
}
