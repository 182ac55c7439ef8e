package unpack

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

const maxLinks = 40 // that one path may go through, as in the kernel

// openat2 resolves a path inside the tree below dir: links and ".." cannot leave it.
func openat2(dir int, p string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(dir, p, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// openat opens one component, which holds no slash, without following it.
func openat(dir int, base string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, base, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func mknodat(dir int, base string, mode uint32, dev int) error {
	for {
		if err := unix.Mknodat(dir, base, mode, dev); err != unix.EINTR {
			return err
		}
	}
}

// parent opens a directory of the layer, making what is missing of it, and tells how deep it is. The
// descriptor is the cache's: it is good until the next call of parent, remove or forget.
func (u *unpacker) parentDir(dir string) (fd, depth int, err error) {
	if u.cacheFD < 0 || u.cachePath != dir {
		u.forget()
		if fd, err = u.mkdirAll(dir, 0); err != nil {
			return -1, 0, err
		}
		u.cacheFD, u.cachePath = fd, dir
		d, err := u.info(fd)
		if err != nil {
			u.forget()
			return -1, 0, err
		}
		u.cacheDepth = d.depth
	}
	return u.cacheFD, u.cacheDepth, nil
}

// info finds what is known of an open directory. All directories below the root were made here.
func (u *unpacker) info(fd int) (*dirInfo, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if d := u.dirs[st.Ino]; d != nil {
		return d, nil
	}
	return nil, errs.New(errs.Invalid, "the directory is not one of the layer")
}

// mkdirAll opens dir, making missing parts. A link that points at nothing yet gets its target made, inside
// the layer.
func (u *unpacker) mkdirAll(dir string, links int) (int, error) {
	fd, err := openat2(u.root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return fd, err
	}
	up, base := path.Split(dir)
	if up = strings.TrimSuffix(up, "/"); up == "" {
		up = "."
	}
	if base == "" || base == "." || base == ".." || dir == "." {
		return -1, err
	}
	above, err := u.mkdirAll(up, links)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	at, err := u.info(above)
	if err != nil {
		return -1, err
	}
	fd, err = u.mkdir(above, base, dir, at.depth+1)
	if err == nil {
		u.implicit = append(u.implicit, dir)
		return fd, nil
	}
	if !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
		return -1, err
	}
	if wh, werr := isWhiteout(above, base); werr == nil && wh { // the lower one is gone, this is another
		if fd, err = u.overWhiteout(above, base, dir, at.depth+1); err == nil {
			u.implicit = append(u.implicit, dir)
		}
		return fd, err
	}
	return u.throughLink(above, at.path, base, links)
}

// overWhiteout puts a directory where a whiteout was; what lower layers have in it stays hidden.
func (u *unpacker) overWhiteout(parent int, base, full string, depth int) (int, error) {
	if err := unix.Unlinkat(parent, base, 0); err != nil {
		return -1, err
	}
	fd, err := u.mkdir(parent, base, full, depth)
	if err == nil {
		if err = u.opaque(fd); err != nil {
			unix.Close(fd)
		}
	}
	return fd, err
}

// throughLink makes the directory that the dangling link base in the directory above points at.
func (u *unpacker) throughLink(above int, abovePath, base string, links int) (int, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(above, base, buf)
	if err != nil {
		return -1, unix.ENOTDIR // a file, not a link
	}
	if links++; links > maxLinks {
		return -1, unix.ELOOP
	}
	target := string(buf[:n])
	if !strings.HasPrefix(target, "/") {
		target = abovePath + "/" + target
	}
	target = strings.TrimPrefix(path.Clean("/"+target), "/")
	if target == "" {
		target = "."
	}
	return u.mkdirAll(target, links)
}

// mkdir makes or opens the directory base; ENOTDIR or ELOOP says that something else has the name.
func (u *unpacker) mkdir(parent int, base, full string, depth int) (int, error) {
	if depth > u.lim.Depth {
		return -1, errs.New(errs.Invalid, "directories nest more than %d deep", u.lim.Depth)
	}
	err := unix.Mkdirat(parent, base, 0o755)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	made := err == nil
	fd, err := openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	if !made {
		return fd, nil
	}
	u.result.Inodes++
	u.result.Bytes += 4096
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		u.dirs[st.Ino] = &dirInfo{depth: depth, path: full}
		if st.Mode&0o7777 != 0o755 { // an umask
			err = unix.Fchmod(fd, 0o755)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// remove makes room for a later entry of the same name.
func (u *unpacker) remove(parent int, base string) error {
	err := unix.Unlinkat(parent, base, 0)
	if errors.Is(err, unix.EISDIR) {
		if err = removeTree(parent, base, u.lim.Depth+1); err == nil {
			u.forget()
		}
		return err
	}
	u.forget()
	return err
}

// removeTree removes a directory of this layer, never following a link. Depth is bounded since a
// descriptor is held per level.
func removeTree(parent int, base string, depth int) error {
	if depth < 0 {
		return unix.ELOOP
	}
	fd, err := openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), base)
	defer d.Close()
	for {
		names, err := d.Readdirnames(256)
		for _, n := range names {
			err := unix.Unlinkat(fd, n, 0)
			if errors.Is(err, unix.EISDIR) {
				err = removeTree(fd, n, depth-1)
			}
			if err != nil {
				return err
			}
		}
		if err != nil || len(names) == 0 {
			break
		}
		if _, err := d.Seek(0, 0); err != nil {
			return err
		}
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

func sameFile(dirA int, a string, dirB int, b string) bool {
	var sa, sb unix.Stat_t
	return unix.Fstatat(dirA, a, &sa, unix.AT_SYMLINK_NOFOLLOW) == nil && unix.Fstatat(dirB, b, &sb, unix.AT_SYMLINK_NOFOLLOW) == nil && sa.Ino == sb.Ino
}

func isWhiteout(parent int, base string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0, nil
}
