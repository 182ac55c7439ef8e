package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// tornError is a record that cannot be read: it is replaced whole, so something else wrote to it, or the disk
// lost it.
type tornError struct {
	app   *app
	id    string
	cause error
}

func (e *tornError) Error() string {
	root := ""
	if e.app.rootSet {
		root = " --root " + e.app.root
	}
	return fmt.Sprintf("state of container %s (%s): it is torn: %v. Remove the container with %q",
		e.id, filepath.Join(e.app.root, e.id, stateFile), e.cause, e.app.name+root+" delete --force "+e.id)
}

func (e *tornError) Unwrap() error { return e.cause }

// salvage makes up for a torn record what the configuration beside it tells: the cgroup, by which processes
// are found. Without a configuration, too, nothing but the directory is known of the container.
func (a *app) salvage(id string) (*container, error) {
	c := &container{app: a, dir: filepath.Join(a.root, id)}
	var err error
	if c.file, err = os.Open(c.dir); err != nil {
		return nil, err
	}
	c.ID, c.Boot = id, bootID()
	spec, err := c.spec()
	if err == nil && spec.Linux == nil {
		err = errors.New("it has no linux section")
	}
	if err == nil {
		c.Cgroup = a.chooseCgroup(spec.Linux.CgroupsPath, id)
		if spec.Root != nil {
			c.Rootfs = spec.Root.Path
		}
	} else {
		a.log.warn("container %s: its configuration cannot be read either: %v. Its cgroup and its processes are not known and may be left", id, err)
	}
	c.NoCgroup = c.Cgroup == ""
	return c, nil
}

// deleteTorn removes what is left of a container whose record cannot be read. Its hooks do not run: whether
// they are due is not known.
func (a *app) deleteTorn(torn *tornError, force bool) error {
	if !force {
		return torn
	}
	c, err := a.salvage(torn.id)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.lock(); err != nil {
		return err
	}
	a.log.warn("%v: what its configuration names is removed", torn)
	ctx, cancel := context.WithTimeout(context.Background(), teardown)
	defer cancel()
	if err := c.destroy(ctx); err != nil {
		a.log.warn("container %s: %v", c.ID, err)
	}
	return removeState(c.dir)
}
