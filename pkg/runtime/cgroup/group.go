package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Group is one cgroup path in every hierarchy. It holds no descriptor and may be copied, kept and dropped
// freely; the cgroups may or may not exist at any moment.
type Group struct {
	host *Host
	path string // relative, clean
}

// CreateOptions say how a group is made.
type CreateOptions struct {
	// Owner, when not nil, is the host's user ID that gets the group's v2 directory and the files that the
	// kernel lists in /sys/kernel/cgroup/delegate, so that a user-namespaced container with a cgroup
	// namespace and a writable cgroup mount can divide its group.
	Owner *uint32
	// KeepMode tells that the caller's umask takes nothing from the mode of directories, 0755: it is set again otherwise.
	KeepMode bool
}

// wanted are the controllers a v2 group is to have, in the order they are enabled.
var wanted = []string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma"}

// Create makes the group at path, below the mount point of every hierarchy, with its missing parents. On
// v2 it enables the controllers down the path as far as the kernel lets it: a controller that stays off
// shows when a limit asks for it. On v1 the cpusets on the path get their parents' processors and memory
// nodes where they have none. Groups that exist are fine and keep their values. When it fails, what it made
// is gone again. ".." in the path is errs.Invalid.
func (h *Host) Create(path string, opts CreateOptions) (*Group, error) {
	clean, err := cleanPath(path)
	if err != nil {
		return nil, err
	}
	var made []func()
	for _, t := range h.trees {
		if err = h.make(t, clean, opts.KeepMode, &made); err != nil {
			break
		}
	}
	g := &Group{h, clean}
	if err == nil && opts.Owner != nil {
		err = g.chown(*opts.Owner)
	}
	if err != nil {
		for _, undo := range slices.Backward(made) {
			undo()
		}
		return nil, fmt.Errorf("create cgroup %s: %w", g.Path(), err)
	}
	return g, nil
}

// Create makes the group as Host.Create does.
func (g *Group) Create(opts CreateOptions) error {
	_, err := g.host.Create(g.path, opts)
	return err
}

// Mode is how the group's machine has its controllers mounted.
func (g *Group) Mode() Mode { return g.host.mode }

// make makes the path in one hierarchy and appends to made what removes it.
func (h *Host) make(t *hierarchy, path string, keep bool, made *[]func()) error {
	cur, parts, err := h.base(t, path)
	if err != nil {
		return err
	}
	defer func() { cur.close() }()
	cpuset := slices.Contains(t.Controllers, "cpuset") && !t.Unified
	for i, part := range parts {
		if t.Unified {
			enable(cur)
		}
		ok, err := cur.mkdir(part, keep)
		if err != nil {
			return err
		}
		if ok {
			rel := cur.pathOf(part)
			*made = append(*made, func() { _ = unix.Unlinkat(t.root, rel, unix.AT_REMOVEDIR) })
		}
		if ok && i == len(parts)-1 && !cpuset { // what was there already has to be a directory
			return nil
		}
		next, err := cur.sub(part)
		if err != nil {
			return err
		}
		if cpuset {
			err = inheritCpuset(cur, next, ok)
		}
		cur.close()
		cur = next
		if err != nil {
			return err
		}
	}
	return nil
}

// base opens where the making of a path begins, and returns what is left of it: the group's parent, if that is there and
// has nothing to be set up, otherwise the root.
func (h *Host) base(t *hierarchy, path string) (dir, []string, error) {
	parts := strings.Split(path, "/")
	if last := len(parts) - 1; last > 0 && !t.Unified && !slices.Contains(t.Controllers, "cpuset") {
		if parent, err := h.at(t, strings.Join(parts[:last], "/")); err == nil {
			return parent, parts[last:], nil
		}
	}
	root, err := openat(t.root, ".", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return dir{}, nil, &os.PathError{Op: "open", Path: t.Mount, Err: err}
	}
	return dir{root, t, h, ""}, parts, nil
}

// enable turns on, in a v2 group, the wanted controllers for its children. What cannot be enabled is
// left: a group with processes in it refuses all (no internal processes), and a realtime process can
// keep cpu off. One write for all, then one each, since a single refusal rejects the whole write.
func enable(d dir) {
	on, err := d.read("cgroup.subtree_control")
	if err != nil {
		return
	}
	have := strings.Fields(on)
	if containsAll(have, wanted) {
		return
	}
	can, err := d.read("cgroup.controllers")
	if err != nil {
		return
	}
	var missing []string
	for _, c := range wanted {
		if !slices.Contains(have, c) && slices.Contains(strings.Fields(can), c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 {
		return
	}
	// One at a time, a group with processes would take the controllers that can divide threads, and so
	// become the root of a threaded tree, whose children no process can enter.
	err = d.write("cgroup.subtree_control", strings.Join(missing, " "))
	if err == nil || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) || len(missing) == 1 {
		return
	}
	for _, m := range missing {
		_ = d.write("cgroup.subtree_control", m) // explained by missing() when it matters
	}
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// inheritCpuset gives a v1 cpuset its parent's processors and memory nodes where it has none: no process
// can enter it before. A new one has none, or by cgroup.clone_children its parent's.
func inheritCpuset(parent, d dir, fresh bool) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if !fresh {
			own, err := d.get(file)
			if err != nil {
				return err
			}
			if own != "" {
				continue
			}
		}
		value, err := parent.get(file)
		if err != nil {
			return err
		}
		if err := d.write(file, value); err != nil {
			return err
		}
	}
	return nil
}

// Open returns the group at path when at least one hierarchy has it; errs.NotFound otherwise.
func (h *Host) Open(path string) (*Group, error) {
	clean, err := cleanPath(path)
	if err != nil {
		return nil, err
	}
	g := &Group{h, clean}
	if !g.Exists() {
		return nil, errs.New(errs.NotFound, "open cgroup %s: no hierarchy has it", g.Path())
	}
	return g, nil
}

// At names the group at path, whether it exists or not. ".." in the path is errs.Invalid.
func (h *Host) At(path string) (*Group, error) {
	clean, err := cleanPath(path)
	if err != nil {
		return nil, err
	}
	return &Group{h, clean}, nil
}

// Exists reports whether at least one hierarchy has the group.
func (g *Group) Exists() bool {
	for _, t := range g.host.trees {
		if d, err := g.host.at(t, g.path); err == nil {
			d.close()
			return true
		}
	}
	return false
}

// Path is the group's path below the mount points, with a leading slash.
func (g *Group) Path() string { return "/" + g.path }

// Child names the group below this one; name is one component.
func (g *Group) Child(name string) (*Group, error) {
	if strings.Contains(name, "/") {
		return nil, errs.New(errs.Invalid, "cgroup name %q: it contains a slash", name)
	}
	return g.host.At(g.path + "/" + name)
}

// dirs opens the group's directory in every hierarchy that has it.
func (g *Group) dirs() ([]dir, error) {
	var out []dir
	for _, t := range g.host.trees {
		d, err := g.host.at(t, g.path)
		switch {
		case gone(err):
			continue
		case err != nil:
			closeAll(out)
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func closeAll(dirs []dir) {
	for _, d := range dirs {
		d.close()
	}
}

// controller opens the group's directory of the hierarchy with the controller. The error says why the
// machine or the group lacks it.
func (g *Group) controller(name string) (dir, error) {
	t := g.host.tree(name)
	if t == nil {
		return dir{}, errs.New(errs.Unsupported, "the %s controller is not available on this machine", name)
	}
	return g.host.at(t, g.path)
}

// TaskFiles opens the "tasks" file of every v1 hierarchy for writing. A process with one thread that
// writes "0" to each places itself without the grace period that placing another process costs. The caller
// closes the files. On v2 there are none.
func (g *Group) TaskFiles() ([]*os.File, error) {
	var out []*os.File
	for _, t := range g.host.trees {
		if t.Unified {
			continue
		}
		name := g.path + "/tasks"
		fd, err := openat(t.root, name, unix.O_WRONLY)
		if err != nil {
			for _, f := range out {
				f.Close()
			}
			return nil, &os.PathError{Op: "open", Path: t.Mount + "/" + name, Err: err}
		}
		out = append(out, os.NewFile(uintptr(fd), t.Mount+"/"+name))
	}
	return out, nil
}

// Dir opens the group's directory of the unified hierarchy, for CLONE_INTO_CGROUP; nil on a machine
// without one. The caller closes it.
func (g *Group) Dir() (*os.File, error) {
	t := g.host.unified()
	if t == nil {
		return nil, nil
	}
	fd, err := openat(t.root, g.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &os.PathError{Op: "open cgroup", Path: t.Mount + "/" + g.path, Err: err}
	}
	return os.NewFile(uintptr(fd), t.Mount+"/"+g.path), nil
}

// Enter moves a process with all its threads into the group, in every hierarchy. On v1 it may block for
// some milliseconds per hierarchy (an RCU grace period); TaskFiles and Dir do not.
func (g *Group) Enter(pid int) error {
	dirs, err := g.dirs()
	if err != nil {
		return err
	}
	defer closeAll(dirs)
	if len(dirs) == 0 {
		return errs.New(errs.NotFound, "enter cgroup %s: no hierarchy has it", g.Path())
	}
	for _, d := range dirs {
		if err := d.write("cgroup.procs", fmt.Sprint(pid)); err != nil {
			return err
		}
	}
	return nil
}

// delegated names the files that go with a group to its owner.
const delegated = "/sys/kernel/cgroup/delegate"

// chown hands the v2 directory over.
func (g *Group) chown(uid uint32) error {
	t := g.host.unified()
	if t == nil {
		return nil
	}
	d, err := g.host.at(t, g.path)
	if err != nil {
		return err
	}
	defer d.close()
	files := []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"}
	if text, err := os.ReadFile(delegated); err == nil { // since Linux 4.15
		files = strings.Fields(string(text))
	}
	if err := unix.Fchownat(d.fd, "", int(uid), -1, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "chown", Path: d.name(""), Err: err}
	}
	for _, f := range files {
		err := unix.Fchownat(d.fd, f, int(uid), -1, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.ENOENT) { // of a controller that is off
			return &os.PathError{Op: "chown", Path: d.name(f), Err: err}
		}
	}
	return nil
}
