package unpack

import (
	"archive/tar"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

const (
	paxXattr    = "SCHILY.xattr."
	maxXattrs   = 128      // per entry
	maxXattr    = 64 << 10 // per value, XATTR_SIZE_MAX
	holeBlock   = 4096
	copyBuffer  = 128 << 10
	roomEvery   = 16 << 20
	noID        = math.MaxUint32
	permissions = 0o7777
)

// owner reads uid and gid; 2^32-1 means "leave it" to chown(2) and is refused.
func owner(hdr *tar.Header) (uid, gid int, err error) {
	if hdr.Uid < 0 || int64(hdr.Uid) >= noID || hdr.Gid < 0 || int64(hdr.Gid) >= noID {
		return 0, 0, errs.New(errs.Invalid, "owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	return hdr.Uid, hdr.Gid, nil
}

// times are access and modification time. Layers rarely carry the former; both get the latter.
func times(hdr *tar.Header) [2]unix.Timespec {
	t := hdr.ModTime
	if t.IsZero() || t.Unix() < math.MinInt32 {
		return [2]unix.Timespec{{}, {}}
	}
	ts := unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	return [2]unix.Timespec{ts, ts}
}

// attributes gives an open file or directory the entry's owner, mode, extended attributes and time, in the
// order in which the kernel does not undo one by the next: a change of owner clears setuid bits and
// capabilities.
func (u *unpacker) attributes(fd int, hdr *tar.Header) error {
	uid, gid, err := owner(hdr)
	if err != nil {
		return err
	}
	if !u.opts.Unprivileged && (uid != 0 || gid != 0 || hdr.Typeflag == tar.TypeDir) {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode)&permissions); err != nil {
		return err
	}
	if err := u.setXattrs(fd, hdr); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeDir {
		return nil
	}
	ts := times(hdr)
	return futimens(fd, &ts)
}

// pathAttributes is attributes for what must not be opened: a device, a FIFO.
func (u *unpacker) pathAttributes(fd, parent int, base string, hdr *tar.Header) error {
	if !u.opts.Unprivileged {
		uid, gid, err := owner(hdr)
		if err != nil {
			return err
		}
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	// The node was just made in a directory that nobody else reaches: the name is still it. fchmodat
	// follows links, which a device is not.
	if err := unix.Fchmodat(parent, base, uint32(hdr.Mode)&permissions, 0); err != nil {
		return err
	}
	ts := times(hdr)
	return unix.UtimesNanoAt(parent, base, ts[:], unix.AT_SYMLINK_NOFOLLOW)
}

func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// setXattrs sets the attributes that an image may bring. Those that mean something to overlayfs or to this
// machine's security modules are dropped: they are the host's to set.
func (u *unpacker) setXattrs(fd int, hdr *tar.Header) error {
	n := 0
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		n++
		u.xattrs += int64(len(name) + len(value))
		if n > maxXattrs || len(value) > maxXattr || u.xattrs > u.lim.XattrBytes {
			return errs.New(errs.Invalid, "its extended attributes are more than %d, larger than %d bytes, or the layer's more than %d bytes", maxXattrs, maxXattr, u.lim.XattrBytes)
		}
		if !allowedXattr(name) {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		soft := strings.HasPrefix(name, "user.") || u.opts.Unprivileged
		if errors.Is(err, unix.ENOTSUP) || soft && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG)) {
			continue // the filesystem has no place for it
		}
		if err != nil {
			return errs.New(errs.Invalid, "extended attribute %q: %w", name, err)
		}
	}
	return nil
}

func allowedXattr(name string) bool {
	switch {
	case len(name) > 255, strings.IndexByte(name, 0) >= 0, strings.HasPrefix(name, "user.overlay."):
		return false
	case strings.HasPrefix(name, "user."), name == "security.capability",
		name == "system.posix_acl_access", name == "system.posix_acl_default":
		return true
	}
	return false
}

var zeros [holeBlock]byte

// content copies a file's bytes and leaves blocks of zeros as holes, so that a sparse file stays one. It
// returns how many bytes were really written.
func (u *unpacker) content(fd int, r io.Reader, size int64) (written int64, err error) {
	if u.buf == nil {
		u.buf = make([]byte, copyBuffer)
	}
	var off int64
	holes := false
	for off < size {
		if err := u.ctx.Err(); err != nil {
			return written, err
		}
		want := min(int64(len(u.buf)), size-off)
		n, err := io.ReadFull(r, u.buf[:want])
		if err != nil {
			return written, archiveError(err)
		}
		w, skipped, err := writeSparse(fd, u.buf[:n], off)
		if err != nil {
			return written, err
		}
		written += w
		holes = holes || skipped
		if u.unasked += w; u.unasked > roomEvery && u.opts.Room != nil {
			u.unasked = 0
			if err := u.opts.Room(); err != nil {
				return written, err
			}
		}
		off += int64(n)
	}
	if holes {
		if err := unix.Ftruncate(fd, size); err != nil {
			return written, err
		}
	}
	return written, nil
}

// writeSparse writes the runs of p that are not zeros at their offsets.
func writeSparse(fd int, p []byte, off int64) (written int64, skipped bool, err error) {
	start := 0
	flush := func(end int) error {
		for start < end {
			n, err := unix.Pwrite(fd, p[start:end], off+int64(start))
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			start += n
			written += int64(n)
		}
		return nil
	}
	for i := 0; i+holeBlock <= len(p); i += holeBlock {
		if p[i] == 0 && p[i+holeBlock-1] == 0 && string(p[i:i+holeBlock]) == string(zeros[:]) {
			if err := flush(i); err != nil {
				return written, skipped, err
			}
			start, skipped = i+holeBlock, true
		}
	}
	return written, skipped, flush(len(p))
}

// xattrList reads the names of an open file's extended attributes.
func xattrList(fd int) ([]string, error) {
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	n, err := unix.Listxattr(path, nil)
	if err != nil || n == 0 {
		return nil, err
	}
	buf := make([]byte, n)
	if n, err = unix.Listxattr(path, buf); err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
}
