package runtime

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/program"
)

// Hierarchy is a cgroup hierarchy that is mounted on the host, from its root on.
type Hierarchy struct {
	Mount   string // mount point
	Unified bool   // cgroup v2
	Options string // mount options that name a v1 hierarchy: "cpu,cpuacct", "none,name=systemd"
}

// name is that of its directory beside the others: "cpu,cpuacct", "systemd", "unified". "" where it is alone.
func (h *Hierarchy) name() string {
	if h.Mount == "/sys/fs/cgroup" {
		return ""
	}
	return path.Base(h.Mount)
}

func parseHierarchies(mountinfo string) []Hierarchy {
	var list []Hierarchy
	seen := map[string]bool{}
	for _, line := range strings.Split(mountinfo, "\n") {
		before, after, ok := strings.Cut(line, " - ")
		if !strings.HasPrefix(after, "cgroup") { // a node has hundreds of others
			continue
		}
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 3 || !strings.HasPrefix(tail[0], "cgroup") || head[3] != "/" {
			continue
		}
		h := Hierarchy{Mount: head[4], Unified: tail[0] == "cgroup2"}
		key := "v2"
		if !h.Unified {
			h.Options = hierarchyName(tail[2])
			key = h.Options
		}
		if !seen[key] {
			seen[key] = true
			list = append(list, h)
		}
	}
	return list
}

// hierarchyName keeps of a v1 superblock's options those that say which hierarchy it is.
func hierarchyName(super string) string {
	var keep []string
	named := false
	for _, o := range strings.Split(super, ",") {
		switch o {
		case "rw", "ro", "xattr", "noprefix", "clone_children", "none", "cpuset_v2_mode", "nsdelegate":
		default:
			if strings.HasPrefix(o, "release_agent=") {
				continue
			}
			named = named || strings.HasPrefix(o, "name=")
			keep = append(keep, o)
		}
	}
	if named && len(keep) == 1 {
		keep = append([]string{"none"}, keep...)
	}
	return strings.Join(keep, ",")
}

// planCgroup plans a mount of type cgroup: the hierarchies as the container's cgroup namespace shows them,
// or without one the container's own directories. On v1 it is a tmpfs with a directory per hierarchy.
func (c *compiler) planCgroup(o *Options, b *build, plan mountPlan) error {
	list := o.Hierarchies
	if list == nil {
		var err error
		if list, err = c.host.hierarchies(); err != nil {
			return err
		}
	}
	flags := plan.opts.flags | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	v2 := len(list) == 1 && list[0].Unified && list[0].name() == ""
	if c.confined && o.Cgroup == nil {
		// What the container sees is a part of the host's tree that its user may write to (CVE-2023-25809).
		flags |= unix.MS_RDONLY
		if v2 && !b.ns.has(unix.CLONE_NEWCGROUP) {
			b.mounts = append(b.mounts, emptyPlan(plan.dest))
			return nil
		}
	}
	if v2 {
		return c.planHierarchy(o, b, list[0], plan.dest, flags)
	}
	top := plan
	top.kind, top.fstype, top.source = mountFS, "tmpfs", "tmpfs"
	top.late = flags&unix.MS_RDONLY != 0
	top.opts = &mountOptions{flags: flags &^ unix.MS_RDONLY, data: []string{"mode=755"}}
	b.mounts = append(b.mounts, top)
	for _, h := range list {
		name := h.name()
		if name == "" {
			continue
		}
		if err := c.planHierarchy(o, b, h, plan.dest+"/"+name, flags); err != nil {
			return err
		}
		if !h.Unified && strings.Contains(name, ",") {
			b.mounts = append(b.mounts, mountPlan{kind: mountLinks, dest: plan.dest, source: name})
		}
	}
	return nil
}

// emptyPlan is an empty directory that nobody can write to.
func emptyPlan(dest string) mountPlan {
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return mountPlan{kind: mountFS, dest: dest, fstype: "tmpfs", source: "tmpfs", opts: &mountOptions{flags: flags, data: []string{"mode=555", "nr_inodes=1"}}}
}

func (c *compiler) planHierarchy(o *Options, b *build, h Hierarchy, dest string, flags uintptr) error {
	plan := mountPlan{dest: dest, opts: &mountOptions{flags: flags}}
	if b.ns.create&unix.CLONE_NEWCGROUP != 0 || b.ns.joined&unix.CLONE_NEWCGROUP != 0 {
		plan.kind, plan.fstype, plan.source = mountFS, "cgroup", "cgroup"
		if h.Unified {
			plan.fstype = "cgroup2"
			plan.over = slices.ContainsFunc(b.mounts, func(m mountPlan) bool { return m.kind == mountTree && strings.HasPrefix(dest+"/", m.dest+"/") })
		} else {
			plan.opts.data = strings.Split(h.Options, ",")
		}
		b.mounts = append(b.mounts, plan)
		return nil
	}
	dir := h.Mount
	if o.Cgroup != nil {
		dir = path.Join(h.Mount, path.Clean("/"+o.Cgroup.Path()))
	}
	tree, err := c.host.openTree(dir, true)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", dir, err)
	}
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE, Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if flags&unix.MS_RDONLY != 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := c.host.setMount(tree, true, attr); err != nil {
		tree.Close()
		return err
	}
	plan.kind, plan.isDir, plan.source = mountTree, true, dir
	plan.tree = c.files.add(tree, true)
	b.mounts = append(b.mounts, plan)
	return nil
}

// compileOver makes a filesystem without options of its own and moves it to where dst is open.
func (c *compiler) compileOver(m *mountPlan) {
	var attrs uint64
	for _, f := range flagOptions {
		if !f.clear && f.ms != 0 && m.opts.flags&f.ms != 0 {
			attrs |= f.attr
		}
	}
	explain := func(e syscall.Errno) error { return mountError(m, e) }
	c.p.Call(unix.SYS_FSOPEN, c.p.Str(m.fstype), num(unix.FSOPEN_CLOEXEC)).Save(c.aux)
	c.hint(explain)
	c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_CMD_CREATE), nilp, nilp, num(0))
	c.hint(explain)
	tree := c.p.Slot("over")
	c.p.Call(unix.SYS_FSMOUNT, c.aux.Val(), num(unix.FSMOUNT_CLOEXEC), num(attrs)).Save(tree)
	c.hint(explain)
	c.close(c.aux)
	c.attach(tree.Val(), c.dst)
	c.hint(explain)
	c.close(tree)
}

// compileLinks adds a link per controller of a v1 hierarchy that has several.
func (c *compiler) compileLinks(root program.Arg, m *mountPlan) {
	c.open(root, m.dest, unix.O_PATH|unix.O_DIRECTORY, resolve(m.dest)).Save(c.dst)
	for _, name := range strings.Split(m.source, ",") {
		c.p.Call(unix.SYS_SYMLINKAT, c.p.Str(m.source), c.dst.Val(), c.p.Str(name)).Accept(unix.EEXIST)
	}
	c.close(c.dst)
}
