package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Apply limits a group that was just made. What a nil pointer or empty list of the resources leaves open
// stays as the kernel made it, except devices: they are denied but for the default ones (DefaultDevices)
// and those the resources allow. res may be nil. A failure leaves the group half limited: it is to be
// deleted.
func (g *Group) Apply(res *specs.LinuxResources) error {
	if res == nil {
		res = &specs.LinuxResources{}
	}
	return g.set(res, false, true, nil)
}

// Update changes the limits that res names, of a group with or without processes, and leaves the others.
// When it fails the former values are in force again. Devices change only when res.Devices is not nil.
func (g *Group) Update(res *specs.LinuxResources) error { return g.UpdateWith(res, nil) }

// UpdateWith is Update that calls also once the values are in force: when that fails, the former ones are
// restored and its error is returned.
func (g *Group) UpdateWith(res *specs.LinuxResources, also func() error) error {
	if res == nil {
		res = &specs.LinuxResources{}
	}
	return g.set(res, true, res.Devices != nil, also)
}

// set runs the writers of the parts that res names. The order is the kernel's reading order for none of
// them depends on another, but unified comes last: it overrides.
func (g *Group) set(res *specs.LinuxResources, update, devices bool, also func() error) error {
	t := &txn{group: g, update: update}
	defer t.close()
	steps := []struct {
		on  bool
		run func(*txn, *specs.LinuxResources) error
	}{
		{devices, setDevices},
		{res.CPU != nil, setCPU},
		{res.CPU != nil && (res.CPU.Cpus != "" || res.CPU.Mems != ""), setCpuset},
		{res.Memory != nil, setMemory},
		{res.Pids != nil && res.Pids.Limit != nil, setPids},
		{len(res.HugepageLimits) > 0, setHugetlb},
		{res.BlockIO != nil, setIO},
		{len(res.Rdma) > 0, setRdma},
		{res.Network != nil, setNetwork},
		{len(res.Unified) > 0, setUnified},
		{also != nil, func(*txn, *specs.LinuxResources) error { return also() }},
	}
	for _, s := range steps {
		if !s.on {
			continue
		}
		if err := s.run(t, res); err != nil {
			err = fmt.Errorf("limit cgroup %s: %w", g.Path(), err)
			if undone := t.rollback(); undone != nil {
				return fmt.Errorf("%w (and restoring the former values: %w)", err, undone)
			}
			return err
		}
	}
	return nil
}

// txn is one change of several files. In an update it remembers what they held.
type txn struct {
	group  *Group
	update bool
	open   []dir
	fds    []int // to be closed at the end
	undo   []func() error
}

func (t *txn) close() {
	closeAll(t.open)
	closeFDs(t.fds)
}

// rollback restores what was written, last first.
func (t *txn) rollback() error {
	var failed []error
	for _, u := range slices.Backward(t.undo) {
		if err := u(); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// dir opens the group's directory of a controller, once for the transaction.
func (t *txn) dir(controller string) (dir, error) {
	tree := t.group.host.tree(controller)
	for _, d := range t.open {
		if d.tree == tree {
			return d, nil
		}
	}
	d, err := t.group.controller(controller)
	if err == nil {
		t.open = append(t.open, d)
	}
	return d, err
}

// set writes one file that holds one value.
func (t *txn) set(d dir, file, value string) error {
	if !t.update {
		return t.explain(d, file, d.write(file, value))
	}
	old, err := d.get(file)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a file that cannot be read now can still be written
		return t.explain(d, file, err)
	}
	if err == nil && old == value {
		return nil
	}
	if err := d.write(file, value); err != nil {
		return err
	}
	if err == nil {
		t.undo = append(t.undo, func() error { return d.write(file, old+"\n") }) // a bare newline empties a cpuset
	}
	return nil
}

// setKeyed writes the entry of one key of a file that holds a line for each, as "key value". Without is
// what such an entry is when the file has none.
func (t *txn) setKeyed(d dir, file, key, value, without string) error {
	if t.update {
		text, err := d.read(file)
		if err != nil {
			return t.explain(d, file, err)
		}
		old := without
		for line := range strings.Lines(text) {
			if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
				old = v
			}
		}
		if old == value {
			return nil
		}
		t.undo = append(t.undo, func() error { return d.write(file, key+" "+old) })
	}
	return t.explain(d, file, d.write(file, key+" "+value))
}

// explain says of a file that is not there why.
func (t *txn) explain(d dir, file string, err error) error {
	if !errors.Is(err, unix.ENOENT) || !d.tree.Unified {
		return err
	}
	name, _, _ := strings.Cut(file, ".")
	return fmt.Errorf("%w: %w", err, d.missing(name))
}

// missing finds out why a v2 group lacks a controller, by asking its parent to enable it once more.
func (d dir) missing(controller string) error {
	if !slices.Contains(d.tree.Controllers, controller) {
		return errs.New(errs.Unsupported, "the %s controller is not available on this machine", controller)
	}
	above := ""
	if i := strings.LastIndexByte(d.path, '/'); i >= 0 {
		above = d.path[:i]
	}
	parent := dir{tree: d.tree, host: d.host, path: above}
	fd, err := openat(d.tree.root, "./"+above, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	parent.fd = fd
	defer parent.close()
	on, err := parent.read("cgroup.subtree_control")
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(on), controller) {
		return errs.New(errs.Unsupported, "this kernel's %s controller has no such file", controller)
	}
	switch err := parent.write("cgroup.subtree_control", "+"+controller); {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EOPNOTSUPP):
		return errs.New(errs.Conflict, "the %s controller is off: the parent group /%s has processes of its own, and such a group cannot divide a controller. Move them to a group below it", controller, above)
	case errors.Is(err, unix.ENOENT):
		return errs.New(errs.Conflict, "the %s controller is off in a group above /%s", controller, above)
	case err != nil:
		return err
	}
	return errs.New(errs.Unavailable, "the %s controller was off in /%s and is on now. Try again", controller, above)
}

// unset reports that a file's absence may be overlooked, since what was asked for is what a machine
// without it does.
func unset(err error) bool { return errors.Is(err, os.ErrNotExist) }
