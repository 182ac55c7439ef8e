package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/shim/internal/base"
	"github.com/cri-server/cri-server/pkg/shim/internal/server"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Spawn starts a shim and returns a client of it. It does not wait until the shim is up: the socket
// listens before the process exists, and the first call waits. A shim that fails to come up fails that
// call, with the reason. A live shim in the same directory is errs.Exists; what a dead one left is
// replaced.
func Spawn(ctx context.Context, cfg SpawnConfig) (_ *Client, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("spawn shim (pod %s): %w", cfg.PodID, err)
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	dir, err := openDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	listener, err := listen(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(listener)
	pid, pidfd, err := startShim(&cfg, dir, listener)
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), server.Socket, 0)
		return nil, err
	}
	c, err := connected(cfg.Dir, dir)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL) // our child, not reaped: the pid is its own
		_, _ = unix.Wait4(pid, nil, 0, nil)
		unix.Close(pidfd)
		_ = unix.Unlinkat(int(dir.Fd()), server.Socket, 0)
		return nil, err
	}
	c.spawned, c.info.Pid = true, pid
	c.run(os.NewFile(uintptr(pidfd), "shim"))
	go c.greet()
	return c, nil
}

// greet says hello to a shim that was just started and drops the connection if it cannot be talked to.
func (c *Client) greet() {
	if _, err := c.hello(context.Background()); err != nil {
		c.breakOff(err)
	}
}

// hello exchanges versions and returns the shim's pidfd.
func (c *Client) hello(ctx context.Context) (*os.File, error) {
	var h wire.Hello
	files, err := c.call(ctx, wire.OpHello, &wire.Hello{Version: wire.Version, Pid: os.Getpid()}, &h)
	if err != nil {
		return nil, err
	}
	if h.Version < 1 || len(files) != 1 {
		sys.CloseAll(files)
		return nil, errs.New(errs.Unsupported, "the shim speaks version %d of the protocol, this build %d", h.Version, wire.Version)
	}
	c.mu.Lock()
	c.info = Info{Pid: h.Pid, Version: h.Version}
	spawned := c.spawned
	c.mu.Unlock()
	if spawned {
		sys.CloseAll(files)
		return nil, nil
	}
	return files[0], nil
}

// Dial connects to the shim that lives in dir, at its state directory. errs.NotFound says that none
// does; a shim that does not answer before ctx ends is an error of ctx's.
func Dial(ctx context.Context, dir string) (_ *Client, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("dial shim (%s): %w", dir, err)
		}
	}()
	d, err := openDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.With(errs.NotFound, err)
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	c, err := connected(dir, d)
	if err != nil {
		return nil, err
	}
	go c.receive()
	pidfd, err := c.hello(ctx)
	if err != nil {
		c.breakOff(err)
		if errs.Is(err, errs.Unavailable) { // it listened no longer than until it died
			return nil, errs.With(errs.NotFound, err)
		}
		return nil, err
	}
	_ = control(pidfd, func(fd int) { _ = unix.SetNonblock(fd, true) })
	c.pidfd, err = repoll(pidfd)
	if err != nil {
		c.breakOff(err)
		return nil, err
	}
	go c.deliver()
	go c.await()
	return c, nil
}

// repoll returns f, which has been made non-blocking, as a file of the poller's.
func repoll(f *os.File) (*os.File, error) {
	defer f.Close()
	dup := -1
	if err := control(f, func(fd int) { dup, _ = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) }); err != nil || dup < 0 {
		return nil, fmt.Errorf("duplicate the shim's pidfd: %w", unix.EMFILE)
	}
	return os.NewFile(uintptr(dup), "shim"), nil
}

func control(f *os.File, fn func(fd int)) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Control(func(fd uintptr) { fn(int(fd)) })
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// address names the socket in dir however long dir's own path is: a unix address has 108 bytes.
func address(dir *os.File) unix.Sockaddr {
	return &unix.SockaddrUnix{Name: sys.FDPath(dir) + "/" + server.Socket}
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}

// listen makes the shim's socket. Its mode is set before it has a name, so that it is never open to others.
func listen(dir *os.File) (int, error) {
	if probe, err := connect(dir); err == nil {
		unix.Close(probe)
		return -1, errs.New(errs.Exists, "a shim lives there already")
	}
	fd, err := socket()
	if err != nil {
		return -1, err
	}
	err = os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o600))
	if err == nil {
		if err = unix.Unlinkat(int(dir.Fd()), server.Socket, 0); errors.Is(err, unix.ENOENT) {
			err = nil
		}
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, address(dir)))
	}
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 128))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// connect returns a connected socket; errs.NotFound where nobody listens.
func connect(dir *os.File) (int, error) {
	fd, err := socket()
	if err != nil {
		return -1, err
	}
	for {
		err = unix.Connect(fd, address(dir))
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		err = errs.New(errs.NotFound, "no shim lives there: %w", err)
	case errors.Is(err, unix.EAGAIN):
		err = errs.New(errs.Unavailable, "the shim does not accept connections: %w", err)
	case err != nil:
		err = os.NewSyscallError("connect", err)
	default:
		return fd, nil
	}
	unix.Close(fd)
	return -1, err
}

func connected(path string, dir *os.File) (*Client, error) {
	sock, err := connect(dir)
	if err != nil {
		return nil, err
	}
	return newClient(path, sock)
}

// cradle is the mount namespace that shims are born in a copy of, made at the first spawn.
var cradle struct {
	sync.Mutex
	ns *os.File
}

func place() (*os.File, error) {
	cradle.Lock()
	defer cradle.Unlock()
	if cradle.ns == nil {
		ns, err := base.New()
		if err != nil {
			return nil, err
		}
		cradle.ns = ns
	}
	return cradle.ns, nil
}

// startShim forks the process: in a mount namespace of its own, so that all its threads are there, in a
// session of its own, in the cgroups given, with no descriptors but its own.
func startShim(cfg *SpawnConfig, dir *os.File, listener int) (pid, pidfd int, err error) {
	ns, err := place()
	if err != nil {
		return 0, -1, err
	}
	var files []*os.File
	defer func() { sys.CloseAll(files) }()
	for _, f := range []struct {
		path  string
		flags int
	}{
		{os.DevNull, os.O_RDWR},
		{filepath.Join(cfg.Dir, logName), os.O_WRONLY | os.O_CREATE | os.O_APPEND},
		{cfg.Exe, unix.O_PATH},
	} {
		f, err := os.OpenFile(f.path, f.flags, 0o600) //nolint:forbidigo // our own 0700 state directory and executable
		if err != nil {
			return 0, -1, err
		}
		files = append(files, f)
	}
	null, log, exe := files[0], files[1], files[2]
	pidfd = -1
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   environment(),
		Files: []uintptr{null.Fd(), null.Fd(), log.Fd(), uintptr(listener), dir.Fd(), exe.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS, PidFD: &pidfd},
	}
	if cfg.Cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(cfg.Cgroup.Fd())
	}
	args := []string{"cri-runtime", "shim", "--pod=" + cfg.PodID, "--shm=" + strconv.FormatInt(cfg.ShmSize, 10)}
	path := "/proc/self/fd/" + strconv.Itoa(len(attr.Files)-1) // the executable's path means nothing over there
	pid, err = forkPlaced(ns, cfg.TaskFiles, func() (int, error) { return syscall.ForkExec(path, args, attr) })
	if err != nil {
		if errors.Is(err, os.ErrNotExist) { // the file was opened: what is missing is its interpreter
			err = fmt.Errorf("%w: it must be linked statically (CGO_ENABLED=0)", err)
		}
		return 0, -1, fmt.Errorf("start %s: %w", cfg.Exe, err)
	}
	if pidfd < 0 {
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = unix.Wait4(pid, nil, 0, nil)
			return 0, -1, os.NewSyscallError("pidfd_open", err)
		}
	}
	_ = unix.SetNonblock(pidfd, true)
	return pid, pidfd, nil
}

// environment keeps the Go runtime of the shim small (without containermaxprocs=0 it opens cgroup files of
// its own to watch), and hands on a fault that is meant for it.
func environment() []string {
	env := []string{"GOGC=10", "GOMAXPROCS=1", "GODEBUG=containermaxprocs=0"}
	if v := os.Getenv(fault.Env); strings.HasPrefix(v, "shim/") {
		env = append(env, fault.Env+"="+v)
	}
	return env
}

// forkPlaced runs fork on a thread that has moved itself into the mount namespace and the cgroups of the
// task files, where the child then is born. A thread that writes "0" moves alone and at once, where
// moving another process waits for a grace period of milliseconds. The thread is not used again.
func forkPlaced(ns *os.File, tasks []*os.File, fork func() (int, error)) (pid int, err error) {
	err = sys.OnThread(func() error {
		for _, f := range tasks {
			if _, err := f.WriteString("0"); err != nil {
				return fmt.Errorf("enter the shims' cgroup (%s): %w", f.Name(), err)
			}
		}
		err := unix.Unshare(unix.CLONE_FS) // setns wants a root and working directory that nobody shares
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			return fmt.Errorf("enter the shims' mount namespace: %w", err)
		}
		pid, err = fork()
		return err
	})
	return pid, err
}
