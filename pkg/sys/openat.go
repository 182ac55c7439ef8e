// Package sys wraps the kernel calls that more than one package needs, typed and safe.
//
// Nothing here knows of containers. Every function that takes a path below a directory takes the
// directory as a descriptor and resolves with openat2(2), so that no symbolic link of an untrusted tree
// leads out of it. The package imports only the standard library and x/sys, since the shim links it.
package sys

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// InRoot are the openat2 rules for a path inside an untrusted tree: links and ".." resolve as if the
// directory were "/", and /proc's magic links are refused.
const InRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// Beneath refuses every link and every ".." that would leave the directory.
const Beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// OpenAt opens path below dir by openat2 with the given O_ flags (O_CLOEXEC is added), mode (only with
// O_CREAT or O_TMPFILE) and RESOLVE_ rules. The caller closes the file. The error is an *os.PathError.
func OpenAt(dir *os.File, path string, flags int, mode uint32, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC | unix.O_LARGEFILE, Resolve: resolve}
	if flags&unix.O_CREAT != 0 || flags&unix.O_TMPFILE == unix.O_TMPFILE { // O_TMPFILE has the bit of O_DIRECTORY
		how.Mode = uint64(mode)
	}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), path, &how)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue // EAGAIN: a rename raced with ".." resolution, openat2(2) says to try again
		case err != nil:
			return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// MkdirAllInRoot makes path and its missing parents inside the untrusted tree dir and returns the last
// directory, opened O_PATH|O_DIRECTORY; the caller closes it. Links resolve inside the tree. New
// directories get mode and are owned by the caller; existing ones are left as they are.
func MkdirAllInRoot(dir *os.File, path string, mode uint32) (*os.File, error) {
	if d, err := OpenAt(dir, path, unix.O_PATH|unix.O_DIRECTORY, 0, InRoot); err == nil || !errors.Is(err, unix.ENOENT) {
		return d, err
	}
	cur, err := OpenAt(dir, ".", unix.O_PATH|unix.O_DIRECTORY, 0, InRoot)
	if err != nil {
		return nil, err
	}
	done := "."
	for _, part := range strings.Split(path, "/") {
		switch part {
		case "", ".":
			continue
		case "..":
			cur.Close()
			return nil, &os.PathError{Op: "mkdir", Path: path, Err: fmt.Errorf("%q in a path that does not exist yet: %w", "..", unix.EINVAL)}
		}
		done += "/" + part
		next, err := OpenAt(dir, done, unix.O_PATH|unix.O_DIRECTORY, 0, InRoot)
		if errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(int(cur.Fd()), part, mode); err == nil || errors.Is(err, unix.EEXIST) {
				next, err = OpenAt(cur, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, Beneath)
			}
		}
		cur.Close()
		if err != nil {
			return nil, &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
		cur = next
	}
	return cur, nil
}

// FDPath names an open file for calls that only take paths.
func FDPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
