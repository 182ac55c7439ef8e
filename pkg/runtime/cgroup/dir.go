package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// resolve are the rules every path below a mount point is opened by.
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// cleanPath checks a cgroup path and returns it relative, without empty components. The root is refused:
// it is nobody's group.
func cleanPath(path string) (string, error) {
	var parts []string
	for _, p := range strings.Split(path, "/") {
		switch {
		case p == "" || p == ".":
			continue
		case p == "..":
			return "", errs.New(errs.Invalid, "cgroup path %q: \"..\" is refused", path)
		case len(p) > unix.NAME_MAX:
			return "", errs.New(errs.Invalid, "cgroup path %q: a component is longer than %d bytes", path, unix.NAME_MAX)
		case strings.ContainsAny(p, "\x00\n"):
			return "", errs.New(errs.Invalid, "cgroup path %q: it contains a newline or a NUL", path)
		}
		parts = append(parts, p)
	}
	if len(parts) == 0 {
		return "", errs.New(errs.Invalid, "cgroup path %q: it names the root of the hierarchy", path)
	}
	return strings.Join(parts, "/"), nil
}

// dir is an open cgroup directory of one hierarchy. It owns its descriptor.
type dir struct {
	fd   int
	tree *hierarchy
	host *Host
	path string // relative to the mount point
}

func (d dir) close() { unix.Close(d.fd) }

// openat opens name below fd, which may be a path of several components.
func openat(fd int, name string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	for {
		n, err := unix.Openat2(fd, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return n, err
		}
	}
}

// at opens the directory of a path in a hierarchy.
func (h *Host) at(t *hierarchy, path string) (dir, error) {
	fd, err := openat(t.root, path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return dir{}, &os.PathError{Op: "open cgroup", Path: t.Mount + "/" + path, Err: err}
	}
	return dir{fd, t, h, path}, nil
}

func (d dir) name(file string) string {
	if d.tree == nil {
		return file
	}
	return strings.TrimSuffix(d.tree.Mount+"/"+d.path, "/") + "/" + file
}

// tell lets a test see an operation on a file of d ("" for d itself), and say that it fails.
func (d dir) tell(op, file, value string) error {
	if d.host.hook == nil {
		return nil
	}
	return d.host.hook(op, strings.TrimSuffix(d.name(file), "/"), value)
}

// write gives a control file one value, in one write(2) as the kernel wants it.
func (d dir) write(file, value string) error { return d.writeEach(file, []string{value}) }

// writeEach gives a control file one value after the other, up to the first that is refused.
func (d dir) writeEach(file string, values []string) error {
	fd := -1
	defer func() {
		if fd >= 0 {
			unix.Close(fd)
		}
	}()
	for _, value := range values {
		err := d.tell("write", file, value)
		if err == nil && fd < 0 {
			fd, err = openat(d.fd, file, unix.O_WRONLY|unix.O_TRUNC)
		}
		if err == nil {
			err = writeFull(fd, value)
		}
		if err != nil {
			return &os.PathError{Op: "write " + fmt.Sprintf("%q", strings.TrimSuffix(value, "\n")) + " to", Path: d.name(file), Err: err}
		}
	}
	return nil
}

func writeFull(fd int, value string) error {
	for {
		_, err := unix.Write(fd, []byte(value))
		if err != unix.EINTR {
			return err
		}
	}
}

// read returns a control file's whole text.
func (d dir) read(file string) (string, error) {
	fd, err := openat(d.fd, file, unix.O_RDONLY)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: d.name(file), Err: err}
	}
	defer unix.Close(fd)
	text, err := readAll(fd)
	if err != nil {
		return "", &os.PathError{Op: "read", Path: d.name(file), Err: err}
	}
	return text, nil
}

func readAll(fd int) (string, error) {
	buf := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", err
		case n == 0:
			return string(buf), nil
		}
		if buf = buf[:len(buf)+n]; len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
	}
}

// get returns a control file's text without white space around it.
func (d dir) get(file string) (string, error) {
	s, err := d.read(file)
	return strings.TrimSpace(s), err
}

// has reports whether the directory has the control file.
func (d dir) has(file string) bool {
	return unix.Faccessat(d.fd, file, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// mkdir makes a directory in d and reports whether it did: one that exists is fine. Its mode is not the
// umask's affair, unless keep says that this is no matter: the root of a user namespace mounts cgroupfs only where it may
// search the way to its group.
func (d dir) mkdir(name string, keep bool) (made bool, err error) {
	err = unix.Mkdirat(d.fd, name, 0o755)
	if err == nil && !keep {
		err = unix.Fchmodat(d.fd, name, 0o755, 0)
	}
	if err == nil {
		err = d.tell("mkdir", name, "")
	}
	if err == nil || errors.Is(err, unix.EEXIST) {
		return err == nil, nil
	}
	return false, &os.PathError{Op: "mkdir", Path: d.name(name), Err: err}
}

// children lists the names of the cgroups below d.
func (d dir) children() ([]string, error) {
	fd, err := openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.name(""), Err: err}
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	list, err := f.ReadDir(-1)
	var names []string
	for _, e := range list {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// sub opens a child of d.
func (d dir) sub(name string) (dir, error) {
	fd, err := openat(d.fd, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return dir{}, &os.PathError{Op: "open cgroup", Path: d.name(name), Err: err}
	}
	return dir{fd, d.tree, d.host, d.pathOf(name)}, nil
}

// pathOf is the path of a child of d.
func (d dir) pathOf(name string) string { return strings.TrimPrefix(d.path+"/"+name, "/") }

// gone reports that an error only says that a cgroup does not exist, is being removed, or has the name of a control file.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTDIR)
}
