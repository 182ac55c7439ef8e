package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

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

// Session reports whether the manager that the environment names is that of a user who is not root: as root of a user
// namespace is, unless it is a machine of its own with a systemd for it.
func Session(ctx context.Context) bool {
	c, err := Dial(ctx, true)
	if err != nil {
		return false
	}
	defer c.Close()
	base, err := c.Base(ctx)
	return err == nil && ofUser(base)
}

// ofUser: the cgroup is that of the manager of a user who is not root.
func ofUser(base string) bool {
	name, ok := strings.CutPrefix(path.Base(base), "user@")
	uid, unit := strings.CutSuffix(name, ".service")
	return ok && unit && uid != "0"
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
	if s.User { // whom the kernel lets filter no devices
		return s.Group.Update(Round(s.Resources))
	}
	return s.Group.Apply(Round(s.Resources))
}

// Adopt makes systemd know the scope, with the process pid that must be held until Adopt returns. It was born in the
// prepared group; to a user's, where he may not give birth, systemd moves it. Systemd writes what it knows of the limits,
// and may turn controllers off and on above the group: so they are set once more.
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
	err = c.StartScope(ctx, s.Unit, s.Description, pid, append(props, s.Extra...))
	if s.User {
		err = settled(pid, s.Group.Path(), err)
	}
	if err != nil {
		return err
	}
	return s.Prepare()
}

// Attach has systemd move the process into the unit's cgroup, which is at group, or into the one at the path below that.
func Attach(ctx context.Context, u Unit, group, below string, pid int) error {
	c, err := Dial(ctx, u.User)
	if err != nil {
		return err
	}
	defer c.Close()
	return settled(pid, path.Join(group, below), c.Attach(ctx, u.Name, below, pid))
}

// settled looks whether systemd, who answered with err, has moved the process to the group. Its own log alone may know why not.
func settled(pid int, group string, err error) error {
	at, e := unified(pid)
	if e != nil {
		return errors.Join(err, e)
	}
	if at == group {
		return err
	}
	if err == nil {
		err = errors.New("systemd says that it did")
	}
	return fmt.Errorf("move process %d from cgroup %s to %s: %w. A user's systemd needs the system's bus to move what is not below it: "+
		"without, have it start this command, by systemd-run --user --wait --pipe", pid, at, group, err)
}

// unified is the process's cgroup in the v2 hierarchy.
func unified(pid int) (string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if at, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return at, nil
		}
	}
	return "", nil
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
