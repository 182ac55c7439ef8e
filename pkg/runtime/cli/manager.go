package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
)

// Who manages the cgroup of a container.
const (
	managerFiles   = "cgroupfs" // we alone
	managerSystemd = "systemd"  // systemd knows a scope of it
	managerNone    = "disabled" // it stays in the caller's
)

// managerFlags are runc's and crun's ways to say it.
func (a *app) managerFlags() []flag {
	return []flag{
		{names: []string{"systemd-cgroup"}, usage: "let systemd know of cgroups: cgroupsPath is slice:prefix:name", set: func(v string) error {
			if v == "true" {
				a.manager = managerSystemd
			}
			return nil
		}},
		{names: []string{"cgroup-manager"}, arg: "NAME", usage: "who manages cgroups: cgroupfs, systemd or disabled", set: func(v string) error {
			switch v {
			case managerFiles, managerSystemd, managerNone:
				a.manager = v
				return nil
			}
			return errors.New("it is cgroupfs, systemd or disabled")
		}},
	}
}

// place settles where the container's cgroup will be, and who else is to know of it.
func (cr *creation) place() error {
	l := cr.config.Linux
	switch cr.app.manager {
	case managerNone:
		return nil
	case managerSystemd:
	default:
		cr.cgroup = cr.app.chooseCgroup(l.CgroupsPath, cr.id)
		return nil
	}
	if !systemd.Booted() {
		return errors.New("systemd not running on this host, cannot use systemd cgroups manager")
	}
	user := os.Geteuid() != 0 || cr.app.confined && cr.app.loose && systemd.Session(context.Background())
	unit, err := systemd.ParsePath(l.CgroupsPath, cr.id, user)
	if err != nil {
		return err
	}
	if cr.properties, err = systemd.Annotations(cr.config.Annotations); err != nil {
		return err
	}
	cr.unit = &unit
	cr.cgroup, err = systemd.Path(context.Background(), unit)
	return err
}

// limit makes the cgroup and sets its limits. The process is born in it, whoever manages it, or held before its first step until
// it has been moved there: so it is never without.
func (cr *creation) limit() error {
	if cr.app.manager == managerNone {
		return nil
	}
	if cr.c.NoCgroup {
		return cr.without()
	}
	opts := cgroup.CreateOptions{KeepMode: umask()&0o755 == 0}
	if owner, ok := delegate(cr.config); ok && !cr.app.confined {
		opts.Owner = &owner
	}
	res := cr.config.Linux.Resources
	if cr.app.confined {
		res = withoutDevices(res)
	}
	if cr.unit != nil {
		cr.scope = &systemd.Scope{
			Unit: *cr.unit, Description: "libcontainer container " + cr.unit.Container, // as runc has it
			Group: cr.group, Resources: res, Create: opts, Extra: cr.properties,
		}
		return cr.scope.Prepare()
	}
	if _, err := cr.host.Create(cr.c.Cgroup, opts); err != nil {
		return err
	}
	if cr.app.confined {
		return cr.group.Update(res)
	}
	return cr.group.Apply(res)
}

// umask is that of this process, where nobody makes files meanwhile.
func umask() int {
	old := unix.Umask(0)
	unix.Umask(old)
	return old
}

// hierarchiesOf are the hierarchies as a mount of them in a container needs them; nil where the mount table says more.
func hierarchiesOf(h *cgroup.Host) []runtime.Hierarchy {
	if !h.Usual() {
		return nil
	}
	list := h.Hierarchies()
	out := make([]runtime.Hierarchy, len(list))
	for i, c := range list {
		out[i] = runtime.Hierarchy{Mount: c.Mount, Unified: c.Unified}
		switch {
		case len(c.Controllers) > 0 && !c.Unified:
			out[i].Options = strings.Join(c.Controllers, ",")
		case !c.Unified:
			out[i].Options = "none,name=" + c.Name
		}
	}
	return out
}

// placing is how the process comes into the scope of an ordinary user, who may not have it born there wherever he is: it waits
// before its first step, and his systemd takes it from where it is.
func (cr *creation) placing() func(int, bool) error {
	if !cr.c.held() {
		return nil
	}
	return func(pid int, _ bool) error {
		if err := fault.At("runtime/held"); err != nil {
			return err
		}
		return cr.adoptScope(pid)
	}
}

// held: processes of the container wait before their first step for systemd to move them.
func (c *container) held() bool {
	return c.Unit != nil && c.Unit.User && !c.NoCgroup
}

// adopt makes systemd know the scope of the process, which waits at its first gate, unless it does already.
func (cr *creation) adopt(pid int) error {
	if cr.scope == nil || cr.prep != nil && cr.prep.Request.Held {
		return nil
	}
	return cr.adoptScope(pid)
}

func (cr *creation) adoptScope(pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), teardown)
	defer cancel()
	err := cr.scope.Adopt(ctx, pid)
	if err == nil {
		err = fault.At("runtime/adopted")
	}
	return err
}

// removeGroup kills what is in the container's cgroup and removes it. Systemd forgets its scope.
func (c *container) removeGroup(ctx context.Context, g *cgroup.Group) error {
	if c.NoCgroup {
		if err := c.end(ctx); err != nil {
			return err
		}
		return c.dismiss(ctx)
	}
	if c.Unit != nil {
		if err := g.Kill(ctx); err != nil {
			return err
		}
		if c.held() { // and not there yet
			if err := c.dismiss(ctx); err != nil {
				return err
			}
		}
		if err := systemd.Forget(ctx, *c.Unit); err != nil {
			return err
		}
	}
	return g.Vanish(ctx)
}

// prune removes those groups above the container's that create made and that are nobody's: a slice that systemd
// has started is its own.
func (c *container) prune(ctx context.Context, h *cgroup.Host) error {
	var active map[string]bool
	for i := len(c.Above) - 1; i >= 0; i-- {
		up, err := h.At(c.Above[i])
		if err != nil || !up.Exists() {
			continue
		}
		if c.Unit != nil {
			if active == nil {
				if active, err = systemd.Active(ctx, c.Unit.User, "*.slice"); err != nil {
					return err
				}
			}
			if active[filepath.Base(c.Above[i])] {
				continue
			}
		}
		up.Prune() // another container may be below it by now
	}
	return nil
}

// end kills a container's first process where no cgroup says what else there is, and waits for its end.
func (c *container) end(ctx context.Context) error {
	pidfd, err := c.pidfd()
	if errors.Is(err, errNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pidfd.Close()
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, 100)
		if n > 0 || err != nil && err != unix.EINTR {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("kill process %d: %w", c.Pid, ctx.Err())
		}
	}
}

// update changes limits, where systemd manages the cgroup in what it knows too.
func (c *container) update(g *cgroup.Group, res *specs.LinuxResources) error {
	if c.Unit == nil {
		return g.Update(res)
	}
	ctx, cancel := context.WithTimeout(context.Background(), teardown)
	defer cancel()
	return systemd.Update(ctx, *c.Unit, g, res)
}
