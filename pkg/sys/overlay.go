package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Overlay describes an overlay filesystem over directories of one trusted tree.
type Overlay struct {
	Root     string   // absolute path of the tree, ours alone
	Lower    []string // lower directories below Root, topmost first; at least one, two without Upper
	Upper    string   // below Root; "" mounts read-only
	Work     string   // beside Upper, empty
	Userns   *os.File // maps the owners of the lower layers; nil leaves them. The upper one is never mapped: overlayfs would turn read-only
	Volatile bool     // nothing of the upper layer is synced, not even at unmount
}

// OverlayMode is a way to make the mount; which ones work depends on the kernel.
type OverlayMode int32

// The modes, best first.
const (
	OverlayAuto    OverlayMode = iota
	OverlayByFD                // directories by descriptor; Linux 6.13, with Userns 6.15
	OverlayByPath              // lowerdir+ by /proc/self/fd, in a private mount namespace; Linux 6.8
	OverlayByMount             // mount(2) in a private mount namespace
)

var forcedOverlay atomic.Int32

// ForceOverlay makes MountOverlay use one mode, as tests of older kernels' ways do; OverlayAuto undoes it.
func ForceOverlay(m OverlayMode) { forcedOverlay.Store(int32(m)) }

// MountOverlay makes the filesystem and returns it as a detached mount, which lives until its last
// descriptor closes or it is attached by move_mount(2). The caller closes it. It needs CAP_SYS_ADMIN and
// does not block but on disk reads.
func MountOverlay(o Overlay) (*os.File, error) {
	f, err := o.mount(o.mode())
	switch {
	case errors.Is(err, unix.EINVAL) && o.Upper != "" && onOverlay(o.Root):
		return nil, fmt.Errorf("mount overlay on %s: it is on an overlay filesystem itself, which can hold no writable layer. Move it to ext4, xfs, btrfs or tmpfs: %w", o.Root, err)
	case err != nil:
		return nil, fmt.Errorf("mount overlay of %d lower layers: %w", len(o.Lower), err)
	}
	return f, nil
}

func onOverlay(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// mode is the best way this kernel has.
func (o *Overlay) mode() OverlayMode {
	switch forced := OverlayMode(forcedOverlay.Load()); {
	case forced != OverlayAuto:
		return forced
	case Has(OverlayFDs) && (o.Userns == nil || Has(OverlayTrees)):
		return OverlayByFD
	case Has(OverlayAppend):
		return OverlayByPath
	}
	return OverlayByMount
}

func (o *Overlay) mount(m OverlayMode) (*os.File, error) {
	if m == OverlayByFD {
		d, err := o.open(false)
		if err != nil {
			return nil, err
		}
		defer d.close()
		return o.create(d, m)
	}
	var f *os.File
	err := InPrivateMounts(func() error {
		d, err := o.open(true)
		if err != nil {
			return err
		}
		defer d.close()
		if m == OverlayByPath {
			f, err = o.create(d, m)
		} else {
			f, err = o.classic(d)
		}
		return err
	})
	return f, err
}

// overlayDirs are the directories of an overlay, opened.
type overlayDirs struct {
	lower       []*os.File
	upper, work *os.File
	view        *os.File // what the lower ones are opened through: its mount ends when it closes
}

func (d *overlayDirs) close() {
	CloseAll(d.lower)
	CloseAll([]*os.File{d.upper, d.work, d.view})
}

// open opens the directories; attached says that an idmapped view has to be part of the (private) mount
// namespace, as kernels before 6.15 ask for.
func (o *Overlay) open(attached bool) (d *overlayDirs, err error) {
	d = new(overlayDirs)
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	root, err := os.OpenFile(o.Root, unix.O_PATH|unix.O_DIRECTORY, 0) //nolint:forbidigo // our own state directory
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if o.Upper != "" {
		if d.upper, err = OpenAt(root, o.Upper, unix.O_PATH|unix.O_DIRECTORY, 0, Beneath); err != nil {
			return nil, err
		}
		if d.work, err = OpenAt(root, o.Work, unix.O_PATH|unix.O_DIRECTORY, 0, Beneath); err != nil {
			return nil, err
		}
	}
	from := root
	if o.Userns != nil {
		view, err := idmappedView(root, o.Userns)
		if err != nil {
			return nil, fmt.Errorf("map the owners of the layers: %w", err)
		}
		d.view = view
		if attached {
			if err := unix.MoveMount(int(view.Fd()), "", unix.AT_FDCWD, o.Root, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return nil, os.NewSyscallError("move_mount", err)
			}
		}
		from = view
	}
	for _, name := range o.Lower {
		f, err := OpenAt(from, name, unix.O_PATH|unix.O_DIRECTORY, 0, Beneath)
		if err != nil {
			return nil, err
		}
		d.lower = append(d.lower, f)
	}
	return d, nil
}

// idmappedView clones the mount that dir is on, with dir as its root, and maps its owners.
func idmappedView(dir, userns *os.File) (*os.File, error) {
	view, err := OpenTree(dir, "", false)
	if err != nil {
		return nil, err
	}
	if err := SetMount(view, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}); err != nil {
		view.Close()
		return nil, err
	}
	return view, nil
}

// create goes by fsopen(2).
func (o *Overlay) create(d *overlayDirs, m OverlayMode) (*os.File, error) {
	options := []MountOption{{Key: "source", Value: "overlay"}}
	add := func(key string, dir *os.File) {
		if m == OverlayByFD {
			options = append(options, MountOption{Key: key, File: dir})
		} else {
			options = append(options, MountOption{Key: key, Value: FDPath(dir)})
		}
	}
	for _, l := range d.lower {
		add("lowerdir+", l)
	}
	attrs := unix.MOUNT_ATTR_RDONLY
	if d.upper != nil {
		attrs = 0
		add("upperdir", d.upper)
		add("workdir", d.work)
		if o.Volatile {
			options = append(options, MountOption{Key: "volatile"})
		}
	}
	for _, option := range overlayOptions {
		options = append(options, MountOption{Key: option, Value: "off"})
	}
	return NewMount("overlay", options, attrs)
}

// overlayOptions are switched off whatever the kernel's default: an index makes a second mount of a layer
// fail, and metacopy would let an attribute say where a file's data is.
var overlayOptions = []string{"index", "metacopy"}

// classic goes by mount(2), in a private mount namespace, and takes a detached copy. Directories are named
// by descriptor number relative to /proc/self/fd: hundreds fit into the one page that mount(2) takes.
func (o *Overlay) classic(d *overlayDirs) (*os.File, error) {
	if err := unix.Chdir("/proc/self/fd"); err != nil {
		return nil, os.NewSyscallError("chdir", err)
	}
	num := func(f *os.File) string { return strconv.Itoa(int(f.Fd())) }
	lower := make([]string, len(d.lower))
	for i, l := range d.lower {
		lower[i] = num(l)
	}
	data := "lowerdir=" + strings.Join(lower, ":")
	flags := uintptr(0)
	if d.upper != nil {
		data += ",upperdir=" + num(d.upper) + ",workdir=" + num(d.work)
		if o.Volatile {
			data += ",volatile"
		}
	} else {
		flags = unix.MS_RDONLY
	}
	for _, option := range overlayOptions {
		data += "," + option + "=off"
	}
	if len(data) >= os.Getpagesize() {
		return nil, fmt.Errorf("%d lower layers do not fit into the options of mount(2): %w", len(d.lower), unix.E2BIG)
	}
	if err := unix.Mount("overlay", o.Root, "overlay", flags, data); err != nil {
		return nil, os.NewSyscallError("mount overlay", err)
	}
	return OpenTree(nil, o.Root, false)
}
