package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process is a started program, and later whatever it exec'd. Its methods may be called from any
// goroutine.
type Process struct {
	Pid     int      // in the launcher's PID namespace
	Pidfd   *os.File // non-blocking, closed by Close
	Console *os.File // master of the pty, nil without Request.Terminal; the caller's to close

	report *os.File // nil once the program is ready
	gate   *os.File // nil once open, or without a gate
	init   *child   // with Nested: the process that clones, until it is reaped
	self   *child   // nil until its pid is known

	stopped  *Request // of a program with Stop, until Continue
	agent    *os.File // gets the listener of the program's seccomp filter; nil: nobody
	message  []string
	listener *os.File // fetched, and not sent yet
}

// child is one child of this process that the package must reap.
type child struct {
	pid    int
	once   sync.Once
	done   chan struct{}
	status WaitStatus
	err    error
}

// children are the children not yet reaped. spawn is held for reading while a process is being made, so
// that Reap never takes the exit of a child whose pid its maker does not know yet.
var (
	spawn    sync.RWMutex
	mu       sync.Mutex
	children = map[int]*child{}
)

func register(pid int) *child {
	c := &child{pid: pid, done: make(chan struct{})}
	mu.Lock()
	children[pid] = c
	mu.Unlock()
	return c
}

// Adopt takes a child of this process that another way of making processes left behind, so that it can be waited
// for. Nobody else may wait for it.
func Adopt(pid int) (*Process, error) {
	p := &Process{}
	if err := p.adopt(pid); err != nil {
		return nil, err
	}
	return p, nil
}

// reap waits for the child and frees its pid. It blocks until the child has ended, in a thread: callers
// wait by pidfd first where that may be long.
func (c *child) reap() (WaitStatus, error) {
	c.once.Do(func() {
		for {
			_, err := unix.Wait4(c.pid, &c.status, 0, nil)
			if err == unix.EINTR {
				continue
			}
			c.err = os.NewSyscallError("wait4", err)
			break
		}
		mu.Lock()
		if children[c.pid] == c {
			delete(children, c.pid)
		}
		mu.Unlock()
		close(c.done)
	})
	<-c.done
	return c.status, c.err
}

// reaped reports whether reap has been done.
func (c *child) reaped() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Reap collects every child of this process that has ended: those of this package keep their status for
// Process.Wait, all others (orphans, when the process is a subreaper) are discarded and counted. It does
// not wait for children that live, but for starts in flight. Call it on SIGCHLD where no other code of
// the process forks.
func Reap() int {
	spawn.Lock()
	defer spawn.Unlock()
	orphans := 0
	for {
		var info siginfo
		_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, info.ptr(), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
		if e == unix.EINTR {
			continue
		}
		pid := info.pid()
		if e != 0 || pid == 0 {
			return orphans
		}
		mu.Lock()
		c := children[pid]
		mu.Unlock()
		if c != nil {
			_, _ = c.reap()
			continue
		}
		if got, _ := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid { // else a Wait was faster
			orphans++
		}
	}
}

// Wait blocks until the process has ended, without a thread of its own, reaps it and returns its status.
// Every call returns the same, after a Release that failed too. For a process from Attach, which is no
// child, the status is unknown and the error says so.
func (p *Process) Wait() (WaitStatus, error) {
	err := waitReadable(p.Pidfd)
	if p.self == nil {
		if err == nil {
			err = unix.ECHILD
		}
		return 0, fmt.Errorf("wait for process %d: %w", p.Pid, err)
	}
	if err != nil && !p.self.reaped() {
		return 0, fmt.Errorf("wait for process %d: %w", p.Pid, err)
	}
	return p.self.reap()
}

// Exited reports whether the process has ended, reaped or not.
func (p *Process) Exited() bool {
	return p.self != nil && p.self.reaped() || readable(int(p.Pidfd.Fd()))
}

// Kill sends the signal to the process by its pidfd; os.ErrProcessDone when it has been reaped.
func (p *Process) Kill(sig syscall.Signal) error {
	err := unix.PidfdSendSignal(int(p.Pidfd.Fd()), sig, nil, 0)
	if err == unix.ESRCH {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// Close closes the pidfd, and with a gate that is still shut ends the program. It does not wait: use Wait
// before, or Reap later.
func (p *Process) Close() error {
	for _, f := range []*os.File{p.gate, p.report, p.Pidfd} {
		if f != nil {
			f.Close()
		}
	}
	return nil
}

// Release opens the gate and waits until the program is ready and has exec'd, or has failed (then the
// process has been reaped, and the error is as Start's). A second call returns nil.
func (p *Process) Release() error {
	if p.gate == nil {
		return nil
	}
	err := p.token()
	if err == nil {
		_, err = p.follow()
	}
	if p.gate != nil {
		p.gate.Close()
		p.gate = nil
	}
	if err != nil {
		return p.abandon(err)
	}
	return nil
}

// token lets the program go on from its gate.
func (p *Process) token() error {
	if p.gate == nil {
		return errors.New("open the gate: it is another process's")
	}
	_, err := p.gate.Write([]byte{GateToken})
	if err != nil {
		// The reader is gone; what it said before is on the report pipe.
		if _, said := p.follow(); said != nil {
			return said
		}
		return fmt.Errorf("open the gate: %w", err)
	}
	return nil
}

// setOutside applies what only a process outside the program's user namespace may.
func (p *Process) setOutside(req *Request) error {
	for _, l := range req.Rlimits {
		lim := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		if err := unix.Prlimit(p.Pid, l.Resource, &lim, nil); err != nil {
			return fmt.Errorf("set resource limit %d of process %d to %d:%d: %w", l.Resource, p.Pid, l.Soft, l.Hard, err)
		}
	}
	if len(req.Scheduler) > 0 {
		_, _, e := unix.Syscall(unix.SYS_SCHED_SETATTR, uintptr(p.Pid), uintptr(unsafe.Pointer(&req.Scheduler[0])), 0)
		if e != 0 {
			return fmt.Errorf("set the scheduler of process %d: %w", p.Pid, e)
		}
	}
	if req.OOMScoreAdj != nil {
		name := "/proc/" + strconv.Itoa(p.Pid) + "/oom_score_adj"
		if err := os.WriteFile(name, strconv.AppendInt(nil, int64(*req.OOMScoreAdj), 10), 0); err != nil {
			return fmt.Errorf("set oom_score_adj to %d: %w", *req.OOMScoreAdj, err)
		}
	}
	return nil
}

// abandon ends and reaps the process of a start that failed, and returns cause, or how the init ended
// where cause is only that it did.
func (p *Process) abandon(cause error) error {
	for _, f := range []*os.File{p.gate, p.report, p.Console, p.listener} {
		if f != nil {
			f.Close()
		}
	}
	p.gate, p.report, p.Console, p.listener = nil, nil, nil, nil
	var died *DiedError
	errors.As(cause, &died)
	for _, c := range []*child{p.init, p.self} {
		if c == nil {
			continue
		}
		_ = unix.Kill(c.pid, unix.SIGKILL) // not reaped, so the pid is still its own
		if ws, err := c.reap(); err == nil && died != nil && (c != p.init || p.self == nil) {
			died.Status = ws
		}
	}
	if p.Pidfd != nil {
		p.Pidfd.Close()
	}
	return cause
}

// waitReadable blocks in the runtime's poller until f can be read.
func waitReadable(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

func readable(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}
