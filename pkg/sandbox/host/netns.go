package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// ShmPath is where the containers' specs say that a pod's /dev/shm comes from: the shim's own mount namespace has a
// tmpfs there for its pod.
const ShmPath = "/dev/shm"

// spare keeps one network namespace ready: to make one takes the kernel's lock of all network configuration, which the
// namespace of a pod that has just ended may hold for milliseconds. It costs no process, and ends with the daemon.
type spare struct {
	mu     sync.Mutex
	ns     *os.File
	making bool
	closed bool
	wg     sync.WaitGroup
}

// take returns the spare namespace, if there is one, and has the next one made.
func (s *spare) take() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns := s.ns
	s.ns = nil
	if !s.making && !s.closed {
		s.making = true
		s.wg.Go(s.refill)
	}
	return ns
}

func (s *spare) refill() {
	ns, err := newNetns()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.making = false
	switch {
	case err != nil: // who needs one will see
	case s.closed:
		ns.Close()
	default:
		s.ns = ns
	}
}

func (s *spare) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	if s.ns != nil {
		s.ns.Close()
	}
}

// MakeNetns returns a network namespace that nobody is in.
func (m *Machine) MakeNetns() (*os.File, error) {
	if ns := m.spare.take(); ns != nil {
		return ns, nil
	}
	return newNetns()
}

func newNetns() (ns *os.File, err error) {
	err = sys.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// Connect opens a TCP connection to a port on the loopback of the network namespace of pid, IPv4 first; with pid 0 of
// the caller's own.
func (m *Machine) Connect(ctx context.Context, pid int, port int32) (net.Conn, error) {
	if pid == 0 {
		return dialLoopback(ctx, port)
	}
	ns, err := m.Namespace(pid, "net")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var conn net.Conn
	err = sys.OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace of process %d: %w", pid, err)
		}
		conn, err = dialLoopback(ctx, port)
		return err
	})
	return conn, err
}

// dialLoopback dials from the calling thread: with an address instead of a name the net package starts no goroutine.
func dialLoopback(ctx context.Context, port int32) (net.Conn, error) {
	var d net.Dialer
	var all []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		all = append(all, err)
	}
	return nil, errors.Join(all...)
}

// cloneFrom returns a detached clone of the mount at path in the mount namespace of pid. The caller closes it.
func cloneFrom(pid int, path string) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var tree *os.File
	err = sys.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("setns", err)
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return &os.PathError{Op: "open_tree", Path: path, Err: err}
		}
		tree = os.NewFile(uintptr(fd), path)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("clone %s of process %d: %w", path, pid, err)
	}
	return tree, nil
}
