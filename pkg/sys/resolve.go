package sys

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may have, as in the kernel.
const maxLinks = 40

// ResolveInRoot returns path below the tree root with its symbolic links followed as if root were "/",
// relative, "." for the root itself. What does not exist stays as it is written, so the result can be
// made with MkdirAllInRoot where path, which has a link to nowhere on its way, cannot. The tree must not
// change meanwhile; whoever opens the result still has to do that with InRoot.
func ResolveInRoot(root *os.File, p string) (string, error) {
	rest := strings.Split(path.Clean("/" + p)[1:], "/")
	done := "."
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = path.Join("/", done, "..")[1:]
			if done == "" {
				done = "."
			}
			continue
		}
		next := path.Join(done, name)
		link, err := readlink(root, next)
		switch {
		case errors.Is(err, unix.EINVAL): // no link
			done = next
			continue
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return path.Join("/", next, strings.Join(rest, "/"))[1:], nil
		case err != nil:
			return "", err
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "resolve", Path: p, Err: unix.ELOOP}
		}
		if path.IsAbs(link) {
			done = "."
		}
		rest = append(strings.Split(link, "/"), rest...)
	}
	return done, nil
}

func readlink(root *os.File, p string) (string, error) {
	f, err := OpenAt(root, p, unix.O_PATH|unix.O_NOFOLLOW, 0, InRoot)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if errors.Is(err, unix.ENOENT) { // so the kernel says of what is no link
		err = unix.EINVAL
	}
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: p, Err: err}
	}
	return string(buf[:n]), nil
}
