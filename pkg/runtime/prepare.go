package runtime

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/program"
	"github.com/cri-server/cri-server/pkg/runtime/seccomp"
	"github.com/cri-server/cri-server/pkg/sys"
)

// build is what the preparation of a container found out and opened.
type build struct {
	ns      namespaces
	userns  bool // the container's user namespace is not the launcher's
	uidMaps []specs.LinuxIDMapping
	gidMaps []specs.LinuxIDMapping

	rootfs int // child descriptor
	mounts []mountPlan

	devFresh bool // the program mounts a new tmpfs on /dev
	devBound bool // /dev is the configuration's affair
	devDone  bool // /dev comes filled

	bindDevices []device
	filter      seccomp.Filter
	tasks       []int
	extra       []int // child descriptors of the container's own files
	made        []madeUserns
	hooks       hooksPlan
	onHost      bool // the mounts are made in the launcher's mount namespace
}

// Prepare makes a program of a container's configuration and opens what it needs. It does not block on
// anything but the filesystems that sources lie on. On failure nothing stays open.
func Prepare(ctx context.Context, o Options) (*Prepared, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return prepare(machine{}, o)
}

func prepare(h host, o Options) (*Prepared, error) {
	if o.Spec == nil || o.Spec.Linux == nil || o.Spec.Process == nil {
		return nil, errs.New(errs.Invalid, "container %s: the configuration has no linux or no process section", o.ID)
	}
	return newCompiler(o.ID, h).compile("init", func(c *compiler) error {
		b := &build{}
		c.confined = o.Confined
		err := c.plan(&o, b)
		for _, u := range b.made {
			u.file.Close()
		}
		if err != nil {
			return err
		}
		return c.container(&o, b)
	})
}

// plan opens everything and decides everything; what is left is to write it down as operations.
func (c *compiler) plan(o *Options, b *build) error {
	l := o.Spec.Linux
	b.uidMaps, b.gidMaps = l.UIDMappings, l.GIDMappings
	if err := c.planNamespaces(l.Namespaces, o.Namespaces, &b.ns, o.UserFirst); err != nil {
		return fmt.Errorf("container %s: %w", o.ID, err)
	}
	b.onHost = !b.ns.has(unix.CLONE_NEWNS)
	if b.onHost && (!o.HostVisible || b.ns.create&unix.CLONE_NEWUSER != 0) {
		return errs.New(errs.Unsupported, "container %s: a container needs a mount namespace: in the host's its mounts would outlive it", o.ID)
	}
	if b.ns.entered&unix.CLONE_NEWNS != 0 {
		return errs.New(errs.Unsupported, "container %s: a mount namespace cannot be joined together with a new user namespace, who may mount nothing there: make both new, or join both", o.ID)
	}
	c.latePID = b.ns.late()
	if len(l.TimeOffsets) > 0 && !b.ns.has(unix.CLONE_NEWTIME) {
		return errs.New(errs.Invalid, "container %s: time namespace offsets specified, but time namespace isn't enabled in the config", o.ID)
	}
	b.userns = b.ns.all()&unix.CLONE_NEWUSER != 0
	if err := c.planUserns(o.ID, b); err != nil {
		return err
	}
	var err error
	if b.tasks, err = c.planCgroupPlace(o.Cgroup); err != nil {
		return err
	}
	c.req.Held, c.req.Place = o.Place != nil, o.Place
	for _, f := range o.RdtTasks {
		b.tasks = append(b.tasks, c.files.add(f, false))
	}
	if err := CheckNetDevices(l); err != nil {
		return fmt.Errorf("container %s: %w", o.ID, err)
	}
	c.procfsFD = c.files.reserve()
	if err := c.planHooks(o, b); err != nil {
		return err
	}
	if b.filter, err = compileFilter(l.Seccomp); err != nil {
		return fmt.Errorf("container %s: %w", o.ID, err)
	}
	if err := c.planNotify(b.filter, o.Detached && o.Gate && o.Spec.Process.NoNewPrivileges, o.agentState()); err != nil {
		return fmt.Errorf("container %s: %w", o.ID, err)
	}
	if err := c.planRootfs(o, b); err != nil {
		return err
	}
	if err := c.planMounts(o, b); err != nil {
		return err
	}
	for _, f := range o.ExtraFiles {
		b.extra = append(b.extra, c.files.add(f, false))
	}
	return c.planDevices(o, b)
}

// planUserns fills in what a new user namespace needs of the launcher.
func (c *compiler) planUserns(id string, b *build) error {
	if b.ns.create&unix.CLONE_NEWUSER == 0 {
		return nil
	}
	if len(b.uidMaps) == 0 || len(b.gidMaps) == 0 {
		return errs.New(errs.Invalid, "container %s: a new user namespace needs uidMappings and gidMappings", id)
	}
	if !mapped(b.uidMaps) || !mapped(b.gidMaps) {
		return errs.New(errs.Invalid, "container %s: uidMappings and gidMappings must map container ID 0: its user makes the container's mounts", id)
	}
	c.req.UIDMaps, c.req.GIDMaps = launchMaps(b.uidMaps), launchMaps(b.gidMaps)
	c.req.Setgroups = true
	return nil
}

// mapped reports whether the namespace has a user (or group) 0.
func mapped(maps []specs.LinuxIDMapping) bool {
	return slices.ContainsFunc(maps, func(m specs.LinuxIDMapping) bool { return m.ContainerID == 0 && m.Size > 0 })
}

func launchMaps(maps []specs.LinuxIDMapping) []launch.IDMap {
	out := make([]launch.IDMap, len(maps))
	for i, m := range maps {
		out[i] = launch.IDMap{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Size}
	}
	return out
}

// planCgroupPlace opens what places the process: the v2 directory for the clone itself, and the tasks
// files of v1, where the program moves itself with the one write that costs no grace period.
func (c *compiler) planCgroupPlace(g Cgroup) ([]int, error) {
	if g == nil {
		return nil, nil
	}
	dir, err := g.Dir()
	if err != nil {
		return nil, err
	}
	if dir != nil {
		c.req.Cgroup = c.files.keep(dir, true)
	}
	list, err := g.TaskFiles()
	if err != nil {
		return nil, err
	}
	fds := make([]int, len(list))
	for i, f := range list {
		fds[i] = c.files.add(f, true)
	}
	return fds, nil
}

// procfs is the descriptor that everything below /proc is written through.
func (c *compiler) procfs() program.Arg {
	c.wantsProcfs = true
	return num(c.procfsFD)
}

// fillProcfs opens the procfs for a program that writes to it. Few need one, and to give one up waits for all
// processors. The others have their own image at its number.
func (c *compiler) fillProcfs() error {
	if c.procfsFD == 0 {
		return nil
	}
	at := c.req.Program
	if c.wantsProcfs {
		f, err := c.host.procfs()
		if err != nil {
			return fmt.Errorf("mount a procfs of our own: %w", err)
		}
		at = c.files.keep(f, false)
	}
	c.files.child[c.procfsFD-launch.FirstFD] = at
	return nil
}

// planRootfs takes the caller's tree, or clones the directory that the configuration names.
func (c *compiler) planRootfs(o *Options, b *build) error {
	tree := o.Rootfs
	if tree == nil {
		if o.Spec.Root == nil {
			return errs.New(errs.Invalid, "container %s: the configuration has no root", o.ID)
		}
		path, err := hostPath(o.Bundle, o.Spec.Root.Path)
		if err != nil {
			return fmt.Errorf("root filesystem (container %s): %w", o.ID, err)
		}
		if tree, err = c.host.openTree(path, true); err != nil {
			return fmt.Errorf("root filesystem (container %s): %w", o.ID, sourceError(path, err))
		}
		c.files.owned = append(c.files.owned, tree)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(tree.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errs.New(errs.Invalid, "root filesystem (container %s): it is not a directory", o.ID)
	}
	// A clone of a shared mount is its peer: what we mount in it would appear on the host.
	prop, _ := propagation(o.Spec.Linux.RootfsPropagation)
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if prop == unix.MS_SLAVE {
		attr.Propagation = unix.MS_SLAVE
	}
	if err := c.host.setMount(tree, true, attr); err != nil {
		return fmt.Errorf("root filesystem (container %s): %w", o.ID, err)
	}
	b.rootfs = c.files.add(tree, false)
	return nil
}

// planDevices opens the nodes that a container in a user namespace cannot make.
func (c *compiler) planDevices(o *Options, b *build) error {
	if b.devBound {
		return nil
	}
	if (b.userns || c.confined) && !b.devDone {
		list, err := devices(o.Spec)
		if err != nil {
			return err
		}
		return c.planBoundDevices(list, b)
	}
	return c.planBoundDevices(b.bindDevices, b)
}

// container writes the program of a container.
func (c *compiler) container(o *Options, b *build) error {
	c.begin(b.tasks)
	c.confinedOOM(o.Spec.Process.OOMScoreAdj)
	c.anyCPU()
	if b.ns.late() {
		c.hide()
		c.procContexts(b)
	}
	c.joinNamespaces(&b.ns)
	c.clocks(o.Spec, &b.ns)
	if !b.ns.early() {
		return c.contents(o, b)
	}
	// Nobody else is in the PID namespace yet, so that everything is done by its first process.
	c.req.Nested = true
	c.p.Subject("enter the PID namespace")
	var err error
	c.p.Nest(num(launch.ReportFD), func() { err = c.contents(o, b) })
	return err
}

// cpus are the processors that the configuration limits a container to.
func cpus(l *specs.Linux) string {
	if l.Resources == nil || l.Resources.CPU == nil {
		return ""
	}
	return l.Resources.CPU.Cpus
}

// hide keeps the process, and its child until the exec, from those it will be among: they may not trace it
// or look at its files.
func (c *compiler) hide() {
	c.p.Subject("hide the process")
	c.p.Call(unix.SYS_PRCTL, num(unix.PR_SET_DUMPABLE), num(0), num(0), num(0), num(0))
}

// contents writes what comes after the namespaces are there.
func (c *compiler) contents(o *Options, b *build) error {
	spec, l := o.Spec, o.Spec.Linux
	if err := c.identity(spec, &b.ns); err != nil {
		return fmt.Errorf("container %s: %w", o.ID, err)
	}
	c.loopback(&b.ns)
	if err := c.sysctls(l.Sysctl, &b.ns); err != nil {
		return fmt.Errorf("container %s: %w", o.ID, err)
	}
	if err := c.filesystem(o, b); err != nil {
		return fmt.Errorf("container %s: %w", o.ID, err)
	}
	if !b.onHost && !spec.Process.Terminal {
		c.ownNull(num(b.rootfs))
	}
	return c.process(&processPlan{
		proc: spec.Process, filter: b.filter, gate: o.Gate, clamp: o.Clamp, userns: b.userns, uidMaps: b.uidMaps, gidMaps: b.gidMaps,
		nested: b.ns.late(), keyring: !o.NoKeyring, extra: b.extra, stdioOwner: o.StdioOwner,
		personality: l.Personality, memory: l.MemoryPolicy, create: true, hooks: &b.hooks, cpus: cpus(l),
	})
}

// begin starts every program: nothing inherited but what the request names, files with the modes they are
// made with, and the process where it belongs before it does anything else.
func (c *compiler) begin(tasks []int) {
	c.p.Subject("start")
	last := launch.FirstFD + len(c.files.child) // the console socket, when there is one
	c.p.Call(unix.SYS_CLOSE_RANGE, num(last+1), num(1<<32-1), num(0))
	c.p.Call(unix.SYS_UMASK, num(0))
	if slack := sys.TimerSlack(); slack != 0 { // what we would have handed on, had we not changed it
		c.p.Call(unix.SYS_PRCTL, num(unix.PR_SET_TIMERSLACK), num(slack), num(0), num(0), num(0))
	}
	if c.req.Held { // before any namespace is made: that of cgroups has its root where we are
		c.p.Subject("wait for the cgroup")
		c.p.Report(num(launch.ReportFD), launch.RecordStop)
		c.p.Token(num(launch.GateFD))
	}
	for _, fd := range tasks {
		// "0" is the writer itself: a single thread that moves itself need not wait for anybody.
		c.p.Subject("join the cgroup")
		c.p.Call(unix.SYS_WRITE, num(fd), c.p.Str("0"), num(1)).Want(1, unix.EIO)
	}
}

// identity names the host.
func (c *compiler) identity(spec *specs.Spec, ns *namespaces) error {
	if (spec.Hostname != "" || spec.Domainname != "") && !ns.private(unix.CLONE_NEWUTS) {
		return errs.New(errs.Invalid, "a host name needs a UTS namespace: without one it would be the host's")
	}
	if spec.Hostname != "" {
		c.p.Subject("set the host name to " + spec.Hostname)
		c.p.Call(unix.SYS_SETHOSTNAME, c.p.Str(spec.Hostname), num(len(spec.Hostname)))
	}
	if spec.Domainname != "" {
		c.p.Subject("set the domain name to " + spec.Domainname)
		c.p.Call(unix.SYS_SETDOMAINNAME, c.p.Str(spec.Domainname), num(len(spec.Domainname)))
	}
	return nil
}

// loopback sets up the loopback device of a new network namespace, as other runtimes do.
func (c *compiler) loopback(ns *namespaces) {
	if ns.create&unix.CLONE_NEWNET == 0 {
		return
	}
	const name = 'l' | 'o'<<8 // of struct ifreq: 16 bytes of name, flags, 40 bytes in all
	c.p.Subject("set up the loopback device")
	c.p.Call(unix.SYS_SOCKET, num(unix.AF_UNIX), num(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), num(0)).Save(c.aux)
	c.p.Call(unix.SYS_IOCTL, c.aux.Val(), num(unix.SIOCSIFFLAGS), c.p.Words(name, 0, unix.IFF_UP|unix.IFF_RUNNING, 0, 0))
	c.close(c.aux)
}

// clocks sets the offsets of a new time namespace, which nobody is in yet.
func (c *compiler) clocks(spec *specs.Spec, ns *namespaces) {
	if ns.create&unix.CLONE_NEWTIME == 0 {
		return
	}
	clocks := make([]string, 0, len(spec.Linux.TimeOffsets))
	for clock := range spec.Linux.TimeOffsets {
		clocks = append(clocks, clock)
	}
	sort.Strings(clocks)
	for _, clock := range clocks {
		off := spec.Linux.TimeOffsets[clock]
		c.writeProc("set the offset of clock "+clock, "self/timens_offsets", fmt.Sprintf("%s %d %d", clock, off.Secs, off.Nanosecs))
	}
}

// writeProc adds the write of a file below our own procfs.
func (c *compiler) writeProc(subject, path, value string) {
	c.p.Subject(subject)
	c.open(c.procfs(), path, unix.O_WRONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV).Save(c.dst)
	c.p.Call(unix.SYS_WRITE, c.dst.Val(), c.p.Str(value), num(len(value))).Want(uint64(len(value)), unix.EIO)
	c.close(c.dst)
}

// wrapErrno is an error that reads "text: errno" and is the errno.
func wrapErrno(e syscall.Errno, format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, e)...)
}
