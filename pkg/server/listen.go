package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// shortPath returns a name for the socket at path that fits into the 108 bytes of sockaddr_un however long
// the path is: the directory is held open and named through /proc/self/fd. The caller closes dir when the
// bind or connect is over.
func shortPath(path string) (short string, dir *os.File, err error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open directory of socket %s: %w", path, err)
	}
	dir = os.NewFile(uintptr(fd), filepath.Dir(path))
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + filepath.Base(path), dir, nil
}

// Listen makes the unix socket at path, mode 0600, in a directory that it makes with mode 0700 where there
// is none. A socket that nobody answers on is replaced; one that is answered is errs.Conflict. The path may
// be of any length. Closing the listener leaves the file, RemoveSocket removes it.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	short, dir, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := removeStale(path, short); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	// Bound before it listens: nobody can connect until the mode is right.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: short}); err != nil {
		return nil, fmt.Errorf("bind socket %s: %w", path, err)
	}
	if err := os.Chmod(short, 0o600); err != nil {
		return nil, fmt.Errorf("restrict socket %s: %w", path, err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	return net.FileListener(f)
}

func removeStale(path, short string) error {
	st, err := os.Lstat(short)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at socket %s: %w", path, err)
	case st.Mode().Type() != os.ModeSocket:
		return errs.New(errs.Conflict, "make socket (%s): a file that is no socket is in the way. Remove it or choose another path.", path)
	}
	if c, err := net.Dial("unix", short); err == nil {
		c.Close()
		return errs.New(errs.Conflict, "make socket (%s): another server answers on it. Stop that one or choose another path.", path)
	}
	if err := os.Remove(short); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove stale socket %s: %w", path, err)
	}
	return nil
}

// Dial connects to the socket at path, which may be of any length.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	short, dir, err := shortPath(strings.TrimPrefix(path, "unix://"))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}

// Activated returns the listeners that a service manager handed over (LISTEN_PID, LISTEN_FDS), none when
// it handed over none. The variables are removed, so that no child takes them for its own.
func Activated() ([]net.Listener, error) {
	defer func() {
		for _, k := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(k)
		}
	}()
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n <= 0 || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	var out []net.Listener
	for fd := 3; fd < 3+n; fd++ {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "LISTEN_FD_"+strconv.Itoa(fd))
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("take over listening descriptor %d: %w", fd, err)
		}
		out = append(out, l)
	}
	return out, nil
}
