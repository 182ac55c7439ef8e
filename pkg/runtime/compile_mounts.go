package runtime

import (
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/program"
)

// resolve are the openat2 rules for a destination: inside the root filesystem always, and without any link
// where the kernel's filesystems belong, so that an image cannot have them mounted elsewhere.
func resolve(dest string) uint64 {
	const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	switch first, _, _ := strings.Cut(dest, "/"); first {
	case "proc", "sys", "dev":
		return inRoot | unix.RESOLVE_NO_SYMLINKS
	}
	return inRoot
}

// openDir adds operations that open the directory dest of the root filesystem into slot, O_PATH, and make
// it with its missing parents when it does not exist.
func (c *compiler) openDir(root program.Arg, dest string, slot program.Slot) {
	have := c.p.Label()
	const flags = unix.O_PATH | unix.O_DIRECTORY
	c.open(root, dest, flags, resolve(dest)).Save(slot).Accept(unix.ENOENT).Then(have)
	c.hint(ordinary(dest))
	c.makeDirs(root, dest)
	c.open(root, dest, flags, resolve(dest)).Save(slot)
	c.p.Bind(have)
}

// ordinary words the failure to open a destination that has to be a directory: in runc's words where links
// are refused.
func ordinary(dest string) hint {
	return func(e syscall.Errno) error {
		if e == unix.ELOOP && resolve(dest) != inRoot || e == unix.ENOTDIR {
			return wrapErrno(e, "mount /%s: it must be mounted on ordinary directory", dest)
		}
		return wrapErrno(e, "mount /%s: open the directory", dest)
	}
}

// makeDirs adds operations that make dest and its parents. A link to nowhere on the way is an error. The parent
// is there most of the time, and always where the program has mounted it.
func (c *compiler) makeDirs(root program.Arg, dest string) {
	parent, name := path.Split(dest)
	parent = strings.TrimSuffix(parent, "/")
	open := func() *program.Op {
		if parent == "" {
			parent = "."
		}
		return c.open(root, parent, unix.O_PATH|unix.O_DIRECTORY, resolve(dest)).Save(c.aux)
	}
	if parent == "" || c.mounted[parent] {
		open()
	} else {
		have := c.p.Label()
		open().Accept(unix.ENOENT).Then(have)
		c.makeDirs(root, parent)
		open()
		c.p.Bind(have)
	}
	c.p.Call(unix.SYS_MKDIRAT, c.aux.Val(), c.p.Str(name), num(0o755)).Accept(unix.EEXIST)
	c.close(c.aux)
}

// isMounted notes that the directory dest has a mount, under which earlier ones below it are hidden.
func (c *compiler) isMounted(dest string) {
	for below := range c.mounted {
		if strings.HasPrefix(below, dest+"/") {
			delete(c.mounted, below)
		}
	}
	c.mounted[dest] = true
}

// openFile is openDir for a file, which is made empty when it does not exist.
func (c *compiler) openFile(root program.Arg, dest string, slot program.Slot) {
	have := c.p.Label()
	c.open(root, dest, unix.O_PATH, resolve(dest)).Save(slot).Accept(unix.ENOENT).Then(have)
	parent, name := path.Split(dest)
	parent = strings.TrimSuffix(parent, "/")
	if parent == "" {
		parent = "."
	} else {
		c.makeDirs(root, parent)
	}
	c.open(root, parent, unix.O_PATH|unix.O_DIRECTORY, resolve(dest)).Save(c.aux)
	c.p.Call(unix.SYS_OPENAT2, c.aux.Val(), c.p.Str(name), c.p.How(unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644, unix.RESOLVE_BENEATH),
		num(unix.SizeofOpenHow)).Save(slot)
	c.close(slot)
	c.close(c.aux)
	c.open(root, dest, unix.O_PATH, resolve(dest)).Save(slot)
	c.p.Bind(have)
}

// attach adds the move_mount of a detached tree onto what slot is open on.
func (c *compiler) attach(tree program.Arg, slot program.Slot) {
	c.p.Call(unix.SYS_MOVE_MOUNT, tree, c.p.Str(""), slot.Val(), c.p.Str(""), num(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// sizeofMountAttr is MOUNT_ATTR_SIZE_VER0.
const sizeofMountAttr = 32

// setattr adds a mount_setattr of the mount that fd is open on.
func (c *compiler) setattr(fd program.Arg, flags int, set, clr, propagation uint64) {
	c.p.Call(unix.SYS_MOUNT_SETATTR, fd, c.p.Str(""), num(unix.AT_EMPTY_PATH|flags), c.p.Attr(set, clr, propagation), num(sizeofMountAttr))
}

// workbench is where trees are attached that are to be cloned, each on top of the one before: a clone has
// what lies on a tree by then.
type workbench struct {
	path    string
	visible bool // to others, so that it is cleared at once
}

func (c *compiler) compileMounts(root program.Arg, mounts []mountPlan, w workbench) {
	for i := range mounts {
		m := &mounts[i]
		c.p.Subject("mount /" + m.dest)
		switch m.kind {
		case mountTree:
			c.compileTree(root, m, w)
			c.isMounted(m.dest)
		case mountFS:
			c.compileFS(root, m)
			c.isMounted(m.dest)
		case mountLinks:
			c.compileLinks(root, m)
		case mountRemount:
			c.open(root, m.dest, unix.O_PATH|unix.O_DIRECTORY, resolve(m.dest)).Save(c.dst)
			c.p.Call(unix.SYS_FCHDIR, c.dst.Val())
			c.p.Call(unix.SYS_MOUNT, nilp, c.p.Str("."), nilp, num(m.mountFlags()|unix.MS_REMOUNT), c.data(m))
			c.close(c.dst)
		}
	}
}

func (c *compiler) compileTree(root program.Arg, m *mountPlan, w workbench) {
	if m.isDir {
		c.openDir(root, m.dest, c.dst)
	} else {
		c.openFile(root, m.dest, c.dst)
	}
	if m.anew {
		c.attachAt(num(m.tree), w.path)
		const clone = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH | unix.AT_RECURSIVE
		c.p.Call(unix.SYS_OPEN_TREE, num(m.tree), c.p.Str(""), num(clone)).Save(c.aux)
		switch m.opts.propagation {
		case unix.MS_UNBINDABLE:
			below := 0
			if m.opts.propRec {
				below = unix.AT_RECURSIVE
			}
			c.setattr(c.aux.Val(), below, 0, 0, unix.MS_UNBINDABLE)
		case unix.MS_SHARED:
			// The clone is its peer, and so is the source on the host: what happens to this one, which goes with the
			// old root and all that lies on it, must not happen to them.
			c.setattr(num(m.tree), unix.AT_RECURSIVE, 0, 0, unix.MS_PRIVATE)
		}
		c.attach(c.aux.Val(), c.dst)
	} else {
		c.attach(num(m.tree), c.dst)
	}
	if m.isDir {
		kind := "a directory, the destination is not"
		c.hint(mismatch(m, kind))
	} else {
		c.hint(mismatch(m, "not a directory, the destination is one"))
	}
	if m.anew {
		c.close(c.aux)
		if w.visible {
			c.p.Call(unix.SYS_UMOUNT2, c.p.Str(w.path), num(unix.MNT_DETACH))
		}
	}
	c.close(c.dst)
}

func mismatch(m *mountPlan, kind string) hint {
	return func(e syscall.Errno) error {
		if e == unix.EINVAL || e == unix.ENOTDIR {
			return wrapErrno(unix.ENOTDIR, "mount /%s: source %s is %s", m.dest, m.source, kind)
		}
		return wrapErrno(e, "mount /%s: source %s", m.dest, m.source)
	}
}

// mountFlags are the flags for mount(2).
func (m *mountPlan) mountFlags() uintptr {
	flags := m.opts.flags
	if m.opts.bind {
		flags |= unix.MS_BIND
	}
	return flags
}

func (c *compiler) data(m *mountPlan) program.Arg {
	if len(m.opts.data) == 0 {
		return nilp
	}
	return c.p.Str(strings.Join(m.opts.data, ","))
}

// compileFS mounts on the working directory: mount(2) takes no descriptors, and a path through /proc would
// depend on what the launcher sees there.
func (c *compiler) compileFS(root program.Arg, m *mountPlan) {
	keep := m.keepsMode()
	if keep {
		c.openDirMode(root, m.dest, c.dst)
	} else {
		c.openDir(root, m.dest, c.dst)
	}
	if m.fstype == "proc" && c.latePID {
		c.compileProc(m)
		c.close(c.dst)
		return
	}
	if m.over {
		c.compileOver(m)
		c.close(c.dst)
		return
	}
	c.p.Call(unix.SYS_FCHDIR, c.dst.Val())
	c.p.Call(unix.SYS_MOUNT, c.p.Str(m.source), c.p.Str("."), c.p.Str(m.fstype), num(m.mountFlags()), c.data(m))
	c.hint(func(e syscall.Errno) error { return mountError(m, e) })
	c.close(c.dst)
	if m.opts.propagation != 0 {
		c.open(root, m.dest, unix.O_PATH|unix.O_DIRECTORY, resolve(m.dest)).Save(c.dst)
		c.setattr(c.dst.Val(), 0, 0, 0, m.opts.propagation)
		c.close(c.dst)
	}
	if keep {
		c.open(root, m.dest, unix.O_RDONLY|unix.O_DIRECTORY, resolve(m.dest)).Save(c.dst)
		c.p.Call(unix.SYS_FCHMOD, c.dst.Val(), c.mode.Val())
		c.close(c.dst)
	}
}

// keepsMode: a tmpfs that names no mode takes that of the directory it covers, as other runtimes have it.
func (m *mountPlan) keepsMode() bool {
	named := slices.ContainsFunc(m.opts.data, func(d string) bool { return strings.HasPrefix(d, "mode=") })
	return m.fstype == "tmpfs" && !named
}

// openDirMode is openDir that leaves the directory's mode in c.mode: tmpfs's own when there was none.
func (c *compiler) openDirMode(root program.Arg, dest string, slot program.Slot) {
	const mode = 28 // of statx: two bytes, and six of others
	if !c.moded {
		c.mode, c.moded = c.p.Slot("mode"), true
	}
	missing, done := c.p.Label(), c.p.Label()
	c.open(root, dest, unix.O_PATH|unix.O_DIRECTORY, resolve(dest)).Save(slot).Catch(missing, unix.ENOENT)
	c.hint(ordinary(dest))
	c.p.Call(unix.SYS_STATX, slot.Val(), c.p.Str(""), empty, num(unix.STATX_MODE), c.buf.Addr(0))
	c.p.Load(c.buf.Word(mode), 0o7777).Save(c.mode).Then(done)
	c.p.Bind(missing)
	c.openDir(root, dest, slot)
	c.p.Load(num(0o1777), 0o7777).Save(c.mode)
	c.p.Bind(done)
}

func mountError(m *mountPlan, e syscall.Errno) error {
	text := "mount /%s: %s"
	args := []any{m.dest, m.fstype}
	if len(m.opts.data) > 0 {
		text += " with %q"
		args = append(args, strings.Join(m.opts.data, ","))
	}
	return wrapErrno(e, text, args...)
}

// covered reports whether a later mount hides that of dest, so that it has no path any more.
func covered(dest string, later []mountPlan) bool {
	return slices.ContainsFunc(later, func(m mountPlan) bool {
		return m.kind != mountLinks && m.kind != mountRemount && strings.HasPrefix(dest+"/", m.dest+"/")
	})
}

// compileLate makes what had to be writable while things were mounted below it read-only.
func (c *compiler) compileLate(root program.Arg, mounts []mountPlan) {
	for i := range mounts {
		if m := &mounts[i]; m.late && !covered(m.dest, mounts[i+1:]) {
			c.p.Subject("mount /" + m.dest + " read-only")
			c.open(root, m.dest, unix.O_PATH|unix.O_DIRECTORY, resolve(m.dest)).Save(c.dst)
			c.setattr(c.dst.Val(), 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
			c.close(c.dst)
		}
	}
}

// destinations are paths below the root, each once.
func destinations(paths []string) []string {
	var out []string
	for _, p := range paths {
		if dest := path.Clean("/" + p)[1:]; dest != "" && !slices.Contains(out, dest) {
			out = append(out, dest)
		}
	}
	return out
}

// compileReadonly makes each path that exists a read-only mount, keeping its other attributes.
func (c *compiler) compileReadonly(root program.Arg, paths []string) {
	for _, dest := range destinations(paths) {
		skip := c.p.Label()
		c.p.Subject("make /" + dest + " read-only")
		c.open(root, dest, unix.O_PATH, inRoot).Save(c.dst).Catch(skip, unix.ENOENT, unix.ENOTDIR)
		c.p.Call(unix.SYS_OPEN_TREE, c.dst.Val(), c.p.Str(""), num(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)).Save(c.aux)
		c.setattr(c.aux.Val(), unix.AT_RECURSIVE, unix.MOUNT_ATTR_RDONLY, 0, unix.MS_PRIVATE)
		c.attach(c.aux.Val(), c.dst)
		c.close(c.aux)
		c.close(c.dst)
		c.p.Bind(skip)
	}
}

const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// compileMasked hides each path that exists: a file behind null (open on a verified /dev/null), a
// directory behind a clone of one empty read-only filesystem.
func (c *compiler) compileMasked(root program.Arg, paths []string, null, void program.Slot) {
	const clone = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH
	for _, dest := range destinations(paths) {
		file, attach, skip := c.p.Label(), c.p.Label(), c.p.Label()
		c.p.Subject("mask /" + dest)
		c.open(root, dest, unix.O_PATH|unix.O_DIRECTORY, inRoot).Save(c.dst).Catch(file, unix.ENOENT, unix.ENOTDIR)
		c.p.Call(unix.SYS_OPEN_TREE, void.Val(), c.p.Str(""), num(clone)).Save(c.aux).Then(attach)
		c.p.Bind(file)
		c.open(root, dest, unix.O_PATH, inRoot).Save(c.dst).Catch(skip, unix.ENOENT, unix.ENOTDIR)
		c.p.Call(unix.SYS_OPEN_TREE, null.Val(), c.p.Str(""), num(clone)).Save(c.aux)
		c.p.Bind(attach)
		c.attach(c.aux.Val(), c.dst)
		c.close(c.aux)
		c.close(c.dst)
		c.p.Bind(skip)
	}
}

// openNull opens the container's /dev/null into slot and ends the program unless it is the real one:
// whatever lies there will cover what must not be seen.
func (c *compiler) openNull(root program.Arg, slot program.Slot) {
	c.p.Subject("open /dev/null for masked paths")
	c.open(root, "dev/null", unix.O_PATH|unix.O_NOFOLLOW, inRoot|unix.RESOLVE_NO_SYMLINKS).Save(slot)
	c.checkDevice(slot, unix.S_IFCHR, 1, 3, unix.ENODEV)
}

// checkDevice ends the program with errno unless slot is open on that device.
func (c *compiler) checkDevice(slot program.Slot, kind uint64, major, minor int64, errno syscall.Errno) {
	const mode, rdev = 24, 128 // gid and mode, rdev major and minor: two halves of a word each
	c.p.Call(unix.SYS_STATX, slot.Val(), c.p.Str(""), empty, num(unix.STATX_TYPE), c.buf.Addr(0))
	c.p.Load(c.buf.Word(mode), unix.S_IFMT<<32).Want(kind<<32, errno)
	c.p.Load(c.buf.Word(rdev), 1<<64-1).Want(uint64(major)|uint64(minor)<<32, errno)
}

// makeVoid makes an empty filesystem.
func (c *compiler) makeVoid(slot program.Slot) {
	c.p.Subject("make the filesystem that masks directories")
	c.p.Call(unix.SYS_FSOPEN, c.p.Str("tmpfs"), num(unix.FSOPEN_CLOEXEC)).Save(c.aux)
	c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_SET_STRING), c.p.Str("mode"), c.p.Str("0555"), num(0))
	c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_SET_STRING), c.p.Str("nr_inodes"), c.p.Str("1"), num(0))
	c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_SET_FLAG), c.p.Str("ro"), nilp, num(0))
	c.p.Call(unix.SYS_FSCONFIG, c.aux.Val(), num(unix.FSCONFIG_CMD_CREATE), nilp, nilp, num(0))
	const attrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	c.p.Call(unix.SYS_FSMOUNT, c.aux.Val(), num(unix.FSMOUNT_CLOEXEC), num(attrs)).Save(slot)
	c.close(c.aux)
}

// attachAt attaches a detached mount to a directory of the launcher's. On top of "/" paths still start
// below it.
func (c *compiler) attachAt(tree program.Arg, path string) {
	c.p.Call(unix.SYS_MOVE_MOUNT, tree, c.p.Str(""), cwd, c.p.Str(path), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
}
