package systemd

import (
	"context"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// Path is the unit's cgroup below the mount points. For a user's unit it asks their manager.
func Path(ctx context.Context, u Unit) (string, error) {
	rel, err := u.Cgroup()
	if err != nil || !u.User {
		return rel, err
	}
	c, err := Dial(ctx, true)
	if err != nil {
		return "", err
	}
	defer c.Close()
	base, err := c.Base(ctx)
	return path.Join(base, rel), err
}

// Scope is a container's unit and what it is to have.
type Scope struct {
	Unit
	Description string
	Group       *cgroup.Group // the cgroup at Path
	Resources   *specs.LinuxResources
	Create      cgroup.CreateOptions
	Extra       []Property // beside those of the resources, over them
}

// Prepare makes and limits the group, for a process to be born in it. Who fails after that deletes the group.
func (s *Scope) Prepare() error {
	if err := s.Group.Create(s.Create); err != nil {
		return err
	}
	return s.Group.Apply(Round(s.Resources))
}

// Adopt makes systemd know the scope, with the process pid that was born in its prepared group and must be
// held until Adopt returns. Systemd writes what it knows of the limits, and may turn controllers off and on above
// the group: so they are set once more.
func (s *Scope) Adopt(ctx context.Context, pid int) error {
	c, err := Dial(ctx, s.User)
	if err != nil {
		return err
	}
	defer c.Close()
	version, err := c.Version(ctx)
	if err != nil {
		return err
	}
	props, err := ForScope(s.Resources, s.Group.Mode() == cgroup.V2, version)
	if err != nil {
		return err
	}
	if err := c.StartScope(ctx, s.Unit, s.Description, pid, append(props, s.Extra...)); err != nil {
		return err
	}
	return s.Prepare()
}

// Update changes the limits that res names, in the kernel and in what systemd knows of the unit: both or none.
func Update(ctx context.Context, u Unit, g *cgroup.Group, res *specs.LinuxResources) error {
	if res == nil {
		return nil
	}
	res = Round(g.Complete(res))
	c, err := Dial(ctx, u.User)
	if err != nil {
		return err
	}
	defer c.Close()
	version, err := c.Version(ctx)
	if err != nil {
		return err
	}
	props, err := ForUpdate(res, g.Mode() == cgroup.V2, version)
	if err != nil {
		return err
	}
	if err := g.UpdateWith(res, func() error { return c.SetProperties(ctx, u.Name, props) }); err != nil {
		return err
	}
	return g.Update(res) // systemd has written all that it knows of the controllers
}

// Forget stops the unit and drops what systemd keeps of it. Kill its processes before. A machine whose systemd
// does not answer forgets nothing, and that is no error: the unit ends by itself when its cgroup is empty.
func Forget(ctx context.Context, u Unit) error {
	c, err := Dial(ctx, u.User)
	if errs.Is(err, errs.Unavailable) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Stop(ctx, u.Name)
}

// Active names the units that match the pattern and are started or being so. Without a systemd that answers there
// are none.
func Active(ctx context.Context, user bool, pattern string) (map[string]bool, error) {
	c, err := Dial(ctx, user)
	if errs.Is(err, errs.Unavailable) {
		return map[string]bool{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	list, err := c.List(ctx, pattern)
	active := map[string]bool{}
	for _, u := range list {
		active[u.Name] = u.State != "inactive" && u.State != "failed"
	}
	return active, err
}
