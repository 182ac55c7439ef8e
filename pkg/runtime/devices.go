package runtime

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/program"
	"github.com/cri-server/cri-server/pkg/sys"
)

// device is a node to be made, its path below the root filesystem.
type device struct {
	dest         string
	kind         uint32 // S_IFCHR, S_IFBLK, S_IFIFO
	mode         uint32
	major, minor int64
	uid, gid     uint32
}

// defaultDevices are what the runtime specification promises every container.
func defaultDevices() []device {
	return []device{
		{"dev/null", unix.S_IFCHR, 0o666, 1, 3, 0, 0}, {"dev/zero", unix.S_IFCHR, 0o666, 1, 5, 0, 0},
		{"dev/full", unix.S_IFCHR, 0o666, 1, 7, 0, 0}, {"dev/random", unix.S_IFCHR, 0o666, 1, 8, 0, 0},
		{"dev/urandom", unix.S_IFCHR, 0o666, 1, 9, 0, 0}, {"dev/tty", unix.S_IFCHR, 0o666, 5, 0, 0, 0},
	}
}

// devLinks are the links in /dev that the specification promises.
var devLinks = [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}}

// devices are the defaults, and those of the configuration in their place or beside them.
func devices(spec *specs.Spec) ([]device, error) {
	list := defaultDevices()
	if spec.Linux == nil {
		return list, nil
	}
	for i := range spec.Linux.Devices {
		d, err := parseDevice(&spec.Linux.Devices[i])
		if err != nil {
			return nil, err
		}
		if d.dest == "dev/ptmx" { // ours is the link to the container's own instance
			continue
		}
		at := len(list)
		for j := range list {
			if list[j].dest == d.dest {
				at = j
			}
		}
		if at == len(list) {
			list = append(list, d)
		} else {
			list[at] = d
		}
	}
	return list, nil
}

func parseDevice(s *specs.LinuxDevice) (device, error) {
	dest, err := target(s.Path)
	if err != nil {
		return device{}, err
	}
	d := device{dest: dest, mode: 0o666, major: s.Major, minor: s.Minor}
	switch s.Type {
	case "c", "u":
		d.kind = unix.S_IFCHR
	case "b":
		d.kind = unix.S_IFBLK
	case "p":
		d.kind, d.major, d.minor = unix.S_IFIFO, 0, 0
	default:
		return d, errs.New(errs.Invalid, "device %s: type %q is none of c, b, u, p", s.Path, s.Type)
	}
	if d.major < 0 || d.minor < 0 || d.major >= 1<<12 || d.minor >= 1<<20 {
		return d, errs.New(errs.Invalid, "device %s: %d:%d is no device number", s.Path, d.major, d.minor)
	}
	if s.FileMode != nil {
		d.mode = uint32(s.FileMode.Perm())
	}
	if s.UID != nil {
		d.uid = *s.UID
	}
	if s.GID != nil {
		d.gid = *s.GID
	}
	return d, nil
}

// compileDevices makes the nodes and links. fresh: /dev is a filesystem that the program has just made, so
// that nothing can be there already but what is mounted there.
func (c *compiler) compileDevices(root program.Arg, list []device, mounted []string, fresh, ptmx bool) {
	dev := c.p.Slot("dev")
	c.p.Subject("open /dev")
	c.openDir(root, "dev", dev)
	for i := range list {
		d := list[i]
		over := slices.Contains(mounted, d.dest)
		if over {
			d.uid, d.gid = 0, 0 // a node of the host's, whose owner is not ours to change
		}
		c.compileDevice(root, dev, &d, fresh && !over)
	}
	for _, l := range devLinks {
		c.p.Subject("link /dev/" + l[1])
		op := c.p.Call(unix.SYS_SYMLINKAT, c.p.Str(l[0]), dev.Val(), c.p.Str(l[1]))
		if !fresh {
			op.Accept(unix.EEXIST)
		}
	}
	if ptmx {
		c.p.Subject("link /dev/ptmx")
		if !fresh {
			c.p.Call(unix.SYS_UNLINKAT, dev.Val(), c.p.Str("ptmx"), num(0)).Accept(unix.ENOENT)
		}
		c.p.Call(unix.SYS_SYMLINKAT, c.p.Str("pts/ptmx"), dev.Val(), c.p.Str("ptmx"))
	}
	c.close(dev)
}

func (c *compiler) compileDevice(root program.Arg, dev program.Slot, d *device, fresh bool) {
	c.p.Subject("make device /" + d.dest)
	dir, name := path.Split(d.dest)
	at := dev
	if dir != "dev/" {
		at = c.dst
		c.openDir(root, path.Clean(dir), at)
		fresh = false
	}
	nr := num(d.kind | d.mode)
	rdev := num(unix.Mkdev(uint32(d.major), uint32(d.minor)))
	if fresh {
		c.p.Call(unix.SYS_MKNODAT, at.Val(), c.p.Str(name), nr, rdev)
	} else {
		made := c.p.Label()
		c.p.Call(unix.SYS_MKNODAT, at.Val(), c.p.Str(name), nr, rdev).Accept(unix.EEXIST).Then(made)
		c.p.Call(unix.SYS_OPENAT2, at.Val(), c.p.Str(name), c.p.How(unix.O_PATH|unix.O_NOFOLLOW, 0, unix.RESOLVE_BENEATH), num(unix.SizeofOpenHow)).Save(c.aux)
		c.checkDevice(c.aux, uint64(d.kind), d.major, d.minor, unix.EEXIST)
		c.close(c.aux)
		c.p.Bind(made)
	}
	if d.uid != 0 || d.gid != 0 {
		c.p.Call(unix.SYS_FCHOWNAT, at.Val(), c.p.Str(name), num(d.uid), num(d.gid), num(unix.AT_SYMLINK_NOFOLLOW))
	}
	if at != dev {
		c.close(at)
	}
}

// planDev makes the /dev of a container in a user namespace, where no node can be made: a tmpfs filled
// here, with the nodes the container is to have.
func (c *compiler) planDev(o *Options, b *build, plan mountPlan) error {
	list := []sys.MountOption{{Key: "source", Value: "tmpfs"}}
	for _, d := range plan.opts.data {
		k, v := cutOption(d)
		list = append(list, sys.MountOption{Key: k, Value: v})
	}
	tree, err := c.host.newMount("tmpfs", list)
	if err != nil {
		return err
	}
	plan.kind, plan.isDir, plan.anew = mountTree, true, true
	plan.tree = c.files.add(tree, true)
	if plan.opts.set&unix.MOUNT_ATTR_RDONLY != 0 {
		plan.late = true
		plan.opts.set &^= unix.MOUNT_ATTR_RDONLY
	}
	devs, err := devices(o.Spec)
	if err != nil {
		return err
	}
	for i := range devs {
		if err := c.fillDev(b, tree, &devs[i]); err != nil {
			return fmt.Errorf("device /%s: %w", devs[i].dest, err)
		}
	}
	links := append([][2]string{{"pts/ptmx", "ptmx"}}, devLinks...)
	for _, l := range links {
		if err := unix.Symlinkat(l[0], int(tree.Fd()), l[1]); err != nil {
			return fmt.Errorf("link /dev/%s: %w", l[1], err)
		}
		if err := c.chownRoot(b, tree, l[1]); err != nil {
			return err
		}
	}
	if err := c.chownRoot(b, tree, ""); err != nil {
		return err
	}
	b.devDone = true
	return c.planAttrs(o, b, &specs.Mount{}, plan, tree)
}

// chownRoot gives what is at name in dir, or dir itself, to the root of the container's user namespace.
func (c *compiler) chownRoot(b *build, dir *os.File, name string) error {
	return c.host.chown(dir, name, hostID(b.uidMaps, 0), hostID(b.gidMaps, 0))
}

// fillDev makes one node in a detached /dev. Nodes elsewhere come as bind mounts of the host's.
func (c *compiler) fillDev(b *build, tree *os.File, d *device) error {
	rest, ok := strings.CutPrefix(d.dest, "dev/")
	if !ok {
		b.bindDevices = append(b.bindDevices, *d)
		return nil
	}
	dir, name := path.Split(rest)
	at, err := sys.MkdirAllInRoot(tree, path.Clean("./"+dir), 0o755)
	if err != nil {
		return err
	}
	defer at.Close()
	for d := path.Clean(dir); dir != "" && d != "."; d = path.Dir(d) {
		if err := c.chownRoot(b, tree, d); err != nil {
			return err
		}
	}
	if err := c.host.mknod(at, name, d); err != nil {
		return err
	}
	uid, gid := hostID(b.uidMaps, d.uid), hostID(b.gidMaps, d.gid)
	return c.host.chown(at, name, uid, gid)
}

// planBoundDevices clones the host's nodes for a container that cannot make its own.
func (c *compiler) planBoundDevices(list []device, b *build) error {
	for i := range list {
		d := &list[i]
		tree, err := c.host.openDevice(d)
		if err != nil {
			return fmt.Errorf("device /%s: %w", d.dest, err)
		}
		b.mounts = append(b.mounts, mountPlan{kind: mountTree, dest: d.dest, source: "/" + d.dest, opts: &mountOptions{}, tree: c.files.add(tree, true)})
	}
	return nil
}

// hostID maps an id of the container's user namespace to the host's; the overflow id when it has none.
func hostID(maps []specs.LinuxIDMapping, id uint32) uint32 {
	if len(maps) == 0 {
		return id
	}
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + id - m.ContainerID
		}
	}
	return 65534
}
