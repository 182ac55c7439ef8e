package unpack

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// finish describes the directories that the layer has but does not describe as the layers below do, and
// sets the times of all directories.
func (u *unpacker) finish() error {
	u.forget()
	for _, dir := range u.implicit {
		if u.done[dir] || u.opts.Parents == nil {
			continue
		}
		parents, err := u.lower()
		if err != nil {
			return err
		}
		if err := u.inherit(parents, dir); err != nil {
			return err
		}
	}
	return u.setTimes()
}

// lower asks for the layers below, once.
func (u *unpacker) lower() ([]int, error) {
	if !u.asked {
		var err error
		if u.parents, err = u.opts.Parents(u.ctx); err != nil {
			return nil, err
		}
		u.asked = true
	}
	return u.parents, nil
}

// inherit copies owner, mode, attributes and time of dir from the highest lower layer that has it.
func (u *unpacker) inherit(parents []int, dir string) error {
	to, err := openat2(u.root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil // replaced by a later entry
	}
	defer unix.Close(to)
	for _, p := range parents {
		from, err := lookup(p, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil // a whiteout or a file is there: a new directory starts plain
		}
		defer unix.Close(from)
		var st unix.Stat_t
		if err := unix.Fstat(from, &st); err != nil {
			return err
		}
		if err := u.copyAttributes(from, to, &st); err != nil {
			return err
		}
		var own unix.Stat_t
		if err := unix.Fstat(to, &own); err != nil {
			return err
		}
		if d := u.dirs[own.Ino]; d != nil && d.mtime == nil {
			d.mtime = &[2]unix.Timespec{st.Atim, st.Mtim}
		}
		return nil
	}
	return nil
}

// lookup opens a name of another layer without following any link in it.
func lookup(dir int, p string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	if flags&unix.O_PATH != 0 {
		how.Flags &^= unix.O_NONBLOCK
	}
	for {
		fd, err := unix.Openat2(dir, p, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

func (u *unpacker) copyAttributes(from, to int, st *unix.Stat_t) error {
	if !u.opts.Unprivileged {
		if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(to, st.Mode&permissions); err != nil {
		return err
	}
	names, err := xattrList(from)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	for _, name := range names {
		if !allowedXattr(name) {
			continue
		}
		buf := make([]byte, maxXattr)
		n, err := unix.Fgetxattr(from, name, buf)
		if err == nil {
			err = unix.Fsetxattr(to, name, buf[:n], 0)
		}
		if err != nil && !u.opts.Unprivileged {
			return err
		}
	}
	return nil
}

// linkToParent makes the target of a hard link that only a lower layer has part of this layer: a copy
// under the target's name, which is then linked.
func (u *unpacker) linkToParent(parent int, base, tdir, tbase string, hdr *tar.Header) error {
	missing := errs.New(errs.Invalid, "the hard link's target %.200q does not exist", hdr.Linkname)
	if u.opts.Parents == nil {
		return missing
	}
	parents, err := u.lower()
	if err != nil {
		return err
	}
	for _, p := range parents {
		from, err := lookup(p, path.Join(tdir, tbase), unix.O_PATH|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return missing
		}
		defer unix.Close(from)
		own, err := u.mkdirAll(tdir, 0)
		if err != nil {
			return err
		}
		defer unix.Close(own)
		if err := u.copyUp(from, own, tbase); err != nil {
			return err
		}
		return unix.Linkat(own, tbase, parent, base, 0)
	}
	return missing
}

// copyUp copies a regular file of a lower layer.
func (u *unpacker) copyUp(from, dir int, base string) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errs.New(errs.Invalid, "the hard link's target in a lower layer is no regular file")
	}
	if u.bytes += st.Size; u.bytes > u.lim.Bytes {
		return errs.New(errs.Invalid, "the layer unpacks to more than %d bytes", u.lim.Bytes)
	}
	src, err := os.Open("/proc/self/fd/" + strconv.Itoa(from)) //nolint:forbidigo // reopens a descriptor of a regular file
	if err != nil {
		return err
	}
	defer src.Close()
	to, err := openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(to), base)
	defer dst.Close()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	if err := u.copyAttributes(int(src.Fd()), to, &st); err != nil {
		return err
	}
	u.result.Inodes++
	u.result.Bytes += (st.Size + 4095) &^ 4095
	return futimens(to, &[2]unix.Timespec{st.Atim, st.Mtim})
}

// setTimes sets what writing into directories has changed. A directory is found by its path and
// recognised by its inode, since later entries may have replaced it.
func (u *unpacker) setTimes() error {
	for ino, d := range u.dirs {
		if d.mtime == nil {
			continue
		}
		fd, err := openat2(u.root, strings.TrimPrefix(d.path, "/"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Ino == ino {
			err = futimens(fd, d.mtime)
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}
