package host

import (
	"context"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
)

// Paths say who manages a cgroup: one that ends in .scope is a unit of systemd's, and so is one in .slice. So what was
// made with one driver can be removed with the other.

// unitAt is the scope or slice at a cgroup path.
func unitAt(p string) (systemd.Unit, bool) {
	name := path.Base(p)
	if !strings.HasSuffix(name, ".scope") && !strings.HasSuffix(name, ".slice") {
		return systemd.Unit{}, false
	}
	return systemd.Unit{Name: name, Slice: path.Base(path.Dir(p))}, true
}

// scopeAt is the scope at a cgroup path; false for a cgroup of ours alone.
func scopeAt(p string) (systemd.Unit, bool) {
	u, ok := unitAt(p)
	return u, ok && strings.HasSuffix(u.Name, ".scope")
}

// description marks the units of this server, for Audit.
func (m *Machine) description() string { return "cri-server (" + m.cfg.CgroupRoot + "): " }

// adopt makes systemd know the scope of a process that waits at its gate. What a pod says of itself has no part in
// it: its properties are those of the limits (CVE-2024-3154).
func (m *Machine) adopt(ctx context.Context, u systemd.Unit, g *cgroup.Group, what string, pid int, res *specs.LinuxResources) error {
	s := systemd.Scope{Unit: u, Description: m.description() + what, Group: g, Resources: res}
	return s.Adopt(ctx, pid)
}

// forget makes systemd let go of the unit at a path, if it is one.
func (m *Machine) forget(ctx context.Context, p string) error {
	u, ok := unitAt(p)
	if !ok || !systemd.Booted() {
		return nil
	}
	return systemd.Forget(ctx, u)
}

// units looks for units of this server that no pod or container has.
func (a *audit) units(ctx context.Context) error {
	if !systemd.Booted() {
		return nil
	}
	c, err := systemd.Dial(ctx, false)
	if errs.Is(err, errs.Unavailable) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := c.List(ctx, "cri-*.scope")
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for p := range a.cgroups {
		known[path.Base(p)] = true
	}
	for _, u := range list {
		if strings.HasPrefix(u.Description, a.m.description()) && !known[u.Name] {
			a.bad("unit", u.Name, "systemd has it (%s), and no pod or container does", u.State)
		}
	}
	return nil
}
