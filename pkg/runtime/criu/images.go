package criu

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// parentLink is the link that criu makes in a directory of images to that of the pre-dump before it.
const parentLink = "parent"

// CheckImages holds a directory of images to what criu makes itself: regular files, and a link "parent" to
// another such directory. Criu opens, and truncates, by name whatever is there, as root. The directory must not be
// writable for others meanwhile.
func CheckImages(dir *os.File) error {
	return checkImages(dir, 0)
}

// maxParents is how long a chain of pre-dumps may be.
const maxParents = 64

func checkImages(dir *os.File, depth int) error {
	if depth > maxParents {
		return errs.New(errs.Invalid, "image directory %s: more than %d parents", dir.Name(), maxParents)
	}
	list, err := os.ReadDir(sys.FDPath(dir))
	if err != nil {
		return err
	}
	for _, e := range list {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: dir.Name() + "/" + e.Name(), Err: err}
		}
		switch kind := st.Mode & unix.S_IFMT; {
		case kind == unix.S_IFREG, kind == unix.S_IFDIR: // criu has none, engines do
		case kind == unix.S_IFLNK && e.Name() == parentLink:
			parent, err := sys.OpenAt(dir, parentLink, os.O_RDONLY|unix.O_DIRECTORY, 0, unix.RESOLVE_NO_MAGICLINKS)
			if err != nil {
				return err
			}
			err = checkImages(parent, depth+1)
			parent.Close()
			if err != nil {
				return err
			}
		default:
			return errs.New(errs.Invalid, "image directory %s: %s is neither a regular file nor a directory. A checkpoint has nothing else: do not trust this one", dir.Name(), e.Name())
		}
	}
	return nil
}

// OpenDir opens a directory for criu, which is made when it does not exist.
func OpenDir(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// FreshLog removes what criu would write its log and its statistics over.
func FreshLog(dir *os.File, names ...string) error {
	for _, name := range names {
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "remove", Path: dir.Name() + "/" + name, Err: err}
		}
	}
	return nil
}

// maxFile bounds a file of a checkpoint that we read.
const maxFile = 64 << 10

// ReadFile reads a small regular file of a checkpoint.
func ReadFile(dir *os.File, name string) ([]byte, error) {
	f, err := openRegular(dir, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = errs.New(errs.Invalid, "checkpoint file %s/%s has more than %d bytes", dir.Name(), name, maxFile)
	}
	return data, err
}

// WriteFile writes a file of a checkpoint anew.
func WriteFile(dir *os.File, name string, data []byte) error {
	if err := FreshLog(dir, name); err != nil {
		return err
	}
	f, err := sys.OpenAt(dir, name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600, sys.Beneath)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func openRegular(dir *os.File, name string) (*os.File, error) {
	f, err := sys.OpenAt(dir, name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0, sys.Beneath)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errs.New(errs.Invalid, "checkpoint file %s/%s is no regular file", dir.Name(), name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// maxQuoted is how many lines of a log are quoted.
const maxQuoted = 8

// LogErrors are the last errors that criu's log tells of.
func LogErrors(dir *os.File, name string) []string {
	f, err := openRegular(dir, name)
	if err != nil {
		return nil
	}
	defer f.Close()
	var lines []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		if !strings.Contains(s.Text(), "Error (") {
			continue
		}
		if lines = append(lines, s.Text()); len(lines) > maxQuoted {
			lines = lines[1:]
		}
	}
	return lines
}

// SplitAddress takes ADDRESS:PORT apart; an IPv6 address stands in brackets.
func SplitAddress(s string) (address string, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || i == len(s)-1 {
		return "", "", false
	}
	address, port = s[:i], s[i+1:]
	if strings.HasPrefix(address, "[") && strings.HasSuffix(address, "]") {
		address = address[1 : len(address)-1]
	} else if strings.ContainsRune(address, ':') {
		return "", "", false
	}
	return address, port, address != ""
}

// Explain adds to a failure what criu's log says of it.
func Explain(failure error, dir *os.File, log string) error {
	lines := LogErrors(dir, log)
	if failure == nil || len(lines) == 0 {
		return failure
	}
	return fmt.Errorf("%w (%s/%s): %s", failure, dir.Name(), log, strings.TrimSpace(lines[len(lines)-1]))
}
