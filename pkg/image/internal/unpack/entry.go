package unpack

import (
	"archive/tar"
	"errors"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

const (
	whPrefix = ".wh."
	whMeta   = ".wh..wh." // aufs's own files; one of them has a meaning
	whOpaque = ".wh..wh..opq"
)

// clean splits a name of the archive into parent and last component. Absolute names are relative to the
// layer; a component ".." is refused, as no tool that people use writes one.
func clean(name string) (parent, base string, err error) {
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		return "", "", errs.New(errs.Invalid, "the name is empty or holds a NUL byte")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", "", errs.New(errs.Invalid, "the name climbs with %q", "..")
		}
		if len(part) > unix.NAME_MAX {
			return "", "", errs.New(errs.Invalid, "a part of the name is longer than %d bytes", unix.NAME_MAX)
		}
	}
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return ".", ".", nil
	}
	dir, base := path.Split(name)
	if dir = strings.TrimSuffix(dir, "/"); dir == "" {
		dir = "."
	}
	return dir, base, nil
}

func (u *unpacker) entry(hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	dir, base, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	if base == "." {
		if hdr.Typeflag != tar.TypeDir {
			return errs.New(errs.Invalid, "the root of a layer is not a directory")
		}
		u.done["."] = true
		return u.describe(u.root, ".", hdr)
	}
	parent, depth, err := u.parentDir(dir)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whPrefix) {
		return u.whiteout(parent, dir, base)
	}
	if hdr.Typeflag == tar.TypeDir {
		return u.directory(parent, dir, base, depth+1, hdr)
	}
	err = u.create(parent, base, hdr, r)
	if errors.Is(err, unix.EEXIST) {
		if err = u.remove(parent, base); err == nil {
			if parent, _, err = u.parentDir(dir); err == nil { // remove forgot it
				err = u.create(parent, base, hdr, r)
			}
		}
	}
	return err
}

// create makes what is not a directory. It fails with EEXIST before it has read of r when the name is taken.
func (u *unpacker) create(parent int, base string, hdr *tar.Header, r io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		return u.regular(parent, base, hdr, r)
	case tar.TypeLink:
		return u.hardlink(parent, base, hdr)
	case tar.TypeSymlink:
		return u.symlink(parent, base, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.special(parent, base, hdr)
	}
	return errs.New(errs.Invalid, "entry type %q is not one of a layer", hdr.Typeflag)
}

func (u *unpacker) regular(parent int, base string, hdr *tar.Header, r io.Reader) error {
	fd, err := openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	written, err := u.content(fd, r, hdr.Size)
	if err != nil {
		return err
	}
	u.result.Inodes++
	u.result.Bytes += (written + 4095) &^ 4095
	return u.attributes(fd, hdr)
}

func (u *unpacker) symlink(parent int, base string, hdr *tar.Header) error {
	if hdr.Linkname == "" || strings.IndexByte(hdr.Linkname, 0) >= 0 {
		return errs.New(errs.Invalid, "the link has no target")
	}
	if err := unix.Symlinkat(hdr.Linkname, parent, base); err != nil {
		return err
	}
	defer u.forget()
	u.result.Inodes++
	if !u.opts.Unprivileged {
		uid, gid, err := owner(hdr)
		if err != nil {
			return err
		}
		if err := unix.Fchownat(parent, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	ts := times(hdr)
	return unix.UtimesNanoAt(parent, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) special(parent int, base string, hdr *tar.Header) error {
	mode := uint32(unix.S_IFIFO)
	dev := 0
	switch hdr.Typeflag {
	case tar.TypeChar:
		mode = unix.S_IFCHR
	case tar.TypeBlock:
		mode = unix.S_IFBLK
	}
	if mode != unix.S_IFIFO {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return errs.New(errs.Invalid, "device number %d:%d does not exist", hdr.Devmajor, hdr.Devminor)
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
		if mode == unix.S_IFCHR && dev == 0 {
			return errs.New(errs.Invalid, "character device 0:0 is a whiteout of overlayfs, not a device of an image")
		}
		if u.opts.Unprivileged {
			return nil
		}
	}
	if err := mknodat(parent, base, mode|0o600, dev); err != nil {
		return err
	}
	u.result.Inodes++
	// O_PATH: opening a device or a FIFO for real would act on it.
	fd, err := openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.pathAttributes(fd, parent, base, hdr)
}

// hardlink links to a file of this layer, or to a copy of a file of a lower one.
func (u *unpacker) hardlink(parent int, base string, hdr *tar.Header) error {
	tdir, tbase, err := clean(hdr.Linkname)
	if err != nil || tbase == "." {
		return errs.New(errs.Invalid, "the hard link's target %.200q is not a name in the layer", hdr.Linkname)
	}
	target, err := openat2(u.root, tdir, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		defer unix.Close(target)
		err = unix.Linkat(target, tbase, parent, base, 0)
		if errors.Is(err, unix.EEXIST) && sameFile(target, tbase, parent, base) {
			return nil // a link to itself, or the same one twice
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return u.linkToParent(parent, base, tdir, tbase, hdr)
	}
	return err
}

// directory makes or keeps a directory and gives it the entry's attributes.
func (u *unpacker) directory(parent int, dir, base string, depth int, hdr *tar.Header) error {
	full := path.Join(dir, base)
	fd, err := u.mkdir(parent, base, full, depth)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) { // a file or link has the name
		wh, werr := isWhiteout(parent, base)
		if werr != nil {
			return werr
		}
		if err = u.remove(parent, base); err != nil {
			return err
		}
		if parent, _, err = u.parentDir(dir); err != nil {
			return err
		}
		if fd, err = u.mkdir(parent, base, full, depth); err == nil && wh {
			err = u.opaque(fd) // the lower directory's content stays hidden
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.done[full] = true
	return u.describe(fd, full, hdr)
}

// describe gives a directory its attributes; its time follows when its children are there.
func (u *unpacker) describe(fd int, full string, hdr *tar.Header) error {
	if err := u.attributes(fd, hdr); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	ts := times(hdr)
	if d := u.dirs[st.Ino]; d != nil {
		d.mtime = &ts
	} else {
		u.dirs[st.Ino] = &dirInfo{path: full, mtime: &ts}
	}
	return nil
}

// whiteout records that something of a lower layer is gone. What this layer itself has stays, in whatever
// order the entries come.
func (u *unpacker) whiteout(parent int, dir, base string) error {
	if base == whOpaque {
		fd, err := openat2(parent, ".", unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return u.opaque(fd)
	}
	if strings.HasPrefix(base, whMeta) {
		return nil
	}
	name := strings.TrimPrefix(base, whPrefix)
	if name == "" || name == "." || name == ".." {
		return errs.New(errs.Invalid, "the whiteout names nothing")
	}
	err := mknodat(parent, name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		if err == nil {
			u.result.Inodes++
		}
		return err
	}
	fd, err := openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil // a file of this layer hides the lower one anyway
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return u.opaque(fd)
}

// opaque hides what lower layers have in a directory.
func (u *unpacker) opaque(fd int) error {
	name := "trusted.overlay.opaque"
	if u.opts.Unprivileged {
		name = "user.overlay.opaque"
	}
	return unix.Fsetxattr(fd, name, []byte("y"), 0)
}
