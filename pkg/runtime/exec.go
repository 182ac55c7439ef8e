package runtime

import (
	"context"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// PrepareExec makes a program that runs a further process in a container: it joins the container's
// namespaces by the pidfd of its process in one call, and becomes what the process section says. What is
// privileged is done before it can be seen inside.
func PrepareExec(ctx context.Context, o ExecOptions) (*Prepared, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return prepareExec(machine{}, o)
}

func prepareExec(h host, o ExecOptions) (*Prepared, error) {
	if o.Spec == nil || o.Spec.Linux == nil || o.Process == nil {
		return nil, errs.New(errs.Invalid, "exec in container %s: the configuration has no linux section, or there is no process", o.ID)
	}
	return newCompiler(o.ID, h).compile("exec", func(c *compiler) error {
		c.confined = o.Confined
		return c.exec(&o)
	})
}

func (c *compiler) exec(o *ExecOptions) error {
	l := o.Spec.Linux
	flags, root, err := c.planTarget(o)
	if err != nil {
		return err
	}
	if f, ok := o.Cgroup.(interface{ Frozen() (bool, error) }); ok {
		// A process that is born in a frozen cgroup stops its launcher, who waits for it to exec.
		if frozen, err := f.Frozen(); err == nil && frozen {
			return errs.New(errs.Conflict, "exec in container %s: it is paused", o.ID)
		}
	}
	tasks, err := c.planCgroupPlace(o.Cgroup)
	if err != nil {
		return err
	}
	c.req.Held, c.req.Place = o.Place != nil, o.Place
	c.procfsFD = c.files.reserve()
	filter, err := compileFilter(l.Seccomp)
	if err == nil {
		err = c.planNotify(filter, false, specs.State{ID: o.ID, Status: specs.StateRunning, Pid: o.Pid, Bundle: o.Bundle, Annotations: o.Spec.Annotations})
	}
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", o.ID, err)
	}
	var extra []int
	for _, f := range o.ExtraFiles {
		extra = append(extra, c.files.add(f, false))
	}
	userns := flags&unix.CLONE_NEWUSER != 0
	if a := o.Process.ExecCPUAffinity; a != nil && a.Initial != "" {
		if err := c.affinity("initial", a.Initial); err != nil {
			return fmt.Errorf("exec in container %s: %w", o.ID, err)
		}
	}
	proc := *o.Process
	if proc.OOMScoreAdj == nil && o.Spec.Process != nil {
		proc.OOMScoreAdj = o.Spec.Process.OOMScoreAdj
	}
	c.begin(tasks)
	c.confinedOOM(proc.OOMScoreAdj)
	if a := o.Process.ExecCPUAffinity; a == nil || a.Initial == "" && a.Final == "" {
		c.anyCPU()
	}
	c.hide()
	if root != 0 { // while it is ours to enter: a user namespace may not be allowed to
		c.p.Subject("enter the container's root")
		c.p.Call(unix.SYS_FCHDIR, num(root))
		c.p.Call(unix.SYS_CHROOT, c.p.Str("."))
	}
	if flags != 0 {
		c.p.Subject("join the container")
		c.p.Call(unix.SYS_SETNS, num(c.target), num(flags))
	}
	if userns {
		c.becomeRoot()
	}
	if proc.Terminal {
		c.openConsole(cwd, &proc, false)
	}
	return c.process(&processPlan{
		proc: &proc, filter: filter, gate: o.Gate, clamp: o.Clamp, userns: userns, uidMaps: l.UIDMappings, gidMaps: l.GIDMappings,
		nested: flags&unix.CLONE_NEWPID != 0, keyring: !o.NoKeyring, extra: extra, stdioOwner: o.StdioOwner, personality: l.Personality, memory: l.MemoryPolicy, cpus: cpus(l),
	})
}

// planTarget opens the container's process, and finds the namespaces that differ from ours: joining one's
// own user namespace is an error, and joining one's own PID namespace would cost a clone. In a mount namespace
// that is ours, the container has but its root: a child descriptor, or 0.
func (c *compiler) planTarget(o *ExecOptions) (flags uintptr, root int, err error) {
	pidfd := o.Pidfd
	ours := pidfd == nil
	if ours {
		fd, err := unix.PidfdOpen(o.Pid, 0)
		if err != nil {
			return 0, 0, errs.New(errs.NotFound, "exec in container %s: its process %d: %w", o.ID, o.Pid, err)
		}
		pidfd = os.NewFile(uintptr(fd), "pidfd")
	}
	c.target = c.files.add(pidfd, ours)
	if flags, err = c.host.foreign(o.Pid, madeNew(o.Spec.Linux.Namespaces)); err != nil {
		return 0, 0, fmt.Errorf("exec in container %s: %w", o.ID, err)
	}
	if flags&unix.CLONE_NEWNS == 0 {
		f, err := c.host.rootOf(o.Pid, pidfd)
		if err != nil {
			return 0, 0, errs.New(errs.NotFound, "exec in container %s: process %d has ended: %w", o.ID, o.Pid, err)
		}
		root = c.files.add(f, true)
	}
	return flags, root, nil
}

// madeNew are the namespaces that were made with the container: they are not ours, or it does no harm to join them again, which
// it does with a user namespace (EINVAL). What the configuration has by a path may be our own.
func madeNew(list []specs.LinuxNamespace) (flags uintptr) {
	for _, n := range list {
		if n.Path == "" {
			flags |= nsFlag(n.Type) &^ unix.CLONE_NEWUSER
		}
	}
	return flags
}
