// Package runexec runs programs that may hang, flood or leave children behind, without harm to the caller.
package runexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

const (
	maxStdout = 4 << 20  // a result is a few kilobytes
	maxStderr = 64 << 10 // kept for the error message; the rest is read and dropped

	killPatience = 5 * time.Second
)

// Program is one run of a program.
type Program struct {
	Path  string
	Env   []string
	Stdin []byte
	// Timeout bounds the run beside the context. 0 is none.
	Timeout time.Duration
}

// Result is what a program that was started left.
type Result struct {
	Stdout, Stderr []byte
	State          *os.ProcessState
}

// Run runs the program in a process group of its own and waits for it. When the context ends, the timeout
// runs out or the output grows out of bounds, the whole group is killed. A child of the program that holds
// its output open does not keep Run: what the program itself had written when it ended is the output. An
// error with a State of nil means that it was killed by us or never ran.
func Run(ctx context.Context, p Program) (Result, error) {
	if p.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.Timeout)
		defer cancel()
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	r, err := start(p)
	if err != nil {
		return Result{}, err
	}
	defer r.close()
	over := make(chan struct{}) // closed when the output is too long
	var once sync.Once
	r.out.full = func() { once.Do(func() { close(over) }) }
	var readers sync.WaitGroup
	readers.Go(func() { _, _ = io.Copy(r.out, r.stdout) }) // ends with the pipe or its deadline
	readers.Go(func() { _, _ = io.Copy(r.err, r.stderr) })
	exited := make(chan error, 1)
	go func() { exited <- waitExit(r.proc.Pid) }()
	var killed error
	select {
	case err = <-exited:
	case <-ctx.Done():
		killed = ctx.Err()
	case <-over:
		killed = errs.New(errs.Exhausted, "more than %d bytes of output", maxStdout)
	}
	if killed != nil {
		r.kill()
		select {
		case err = <-exited:
		case <-time.After(killPatience): // it hangs in the kernel: whoever waits for us must not
			go func() {
				if <-exited == nil {
					_, _ = r.proc.Wait() // only to reap it
				}
			}()
			return Result{}, fmt.Errorf("run %s: %w; it was killed and has not ended yet", p.Path, killed)
		}
	}
	r.stopReading(&readers)
	if killed == nil && r.out.over() {
		killed = errs.New(errs.Exhausted, "more than %d bytes of output", maxStdout)
		r.kill() // still unreaped, so the number is ours
	}
	state, werr := r.proc.Wait()
	res := Result{Stdout: r.out.buf.Bytes(), Stderr: r.err.buf.Bytes(), State: state}
	if killed != nil {
		res.State = nil
		return res, fmt.Errorf("run %s: %w", p.Path, killed)
	}
	return res, errors.Join(err, werr)
}

type running struct {
	proc           *os.Process
	stdout, stderr *os.File
	out, err       *capped
}

func start(p Program) (*running, error) {
	in, err := stdin(p.Stdin)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	r := &running{out: &capped{max: maxStdout}, err: &capped{max: maxStderr}}
	var w [2]*os.File
	defer func() {
		for _, f := range w {
			if f != nil {
				f.Close()
			}
		}
	}()
	if r.stdout, w[0], err = os.Pipe(); err != nil {
		return nil, err
	}
	if r.stderr, w[1], err = os.Pipe(); err != nil {
		r.close()
		return nil, err
	}
	for range 50 { // a file that is just being written: an upgrade, over in a moment
		r.proc, err = os.StartProcess(p.Path, []string{p.Path}, &os.ProcAttr{Env: p.Env, Files: []*os.File{in, w[0], w[1]}, Sys: &syscall.SysProcAttr{Setpgid: true}})
		if !errors.Is(err, unix.ETXTBSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// stdin is a file in memory: a program that does not read it blocks nobody.
func stdin(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (r *running) close() {
	r.stdout.Close()
	if r.stderr != nil {
		r.stderr.Close()
	}
}

// kill kills the process group. Its leader is not reaped yet, so its number names no other group.
func (r *running) kill() {
	_ = unix.Kill(-r.proc.Pid, unix.SIGKILL) // ESRCH: all gone by themselves
}

// stopReading ends the readers once they have read what was in the pipes when the program ended.
func (r *running) stopReading(readers *sync.WaitGroup) {
	past := time.Unix(1, 0)
	_ = r.stdout.SetReadDeadline(past)
	_ = r.stderr.SetReadDeadline(past)
	readers.Wait()
	for _, s := range []struct {
		f  *os.File
		to *capped
	}{{r.stdout, r.out}, {r.stderr, r.err}} {
		_ = s.f.SetReadDeadline(time.Time{})
		raw, err := s.f.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Read(func(fd uintptr) bool { drain(int(fd), s.to); return true })
	}
}

// drain reads a non-blocking pipe until it is empty, at its end, or has given more than the cap.
func drain(fd int, to *capped) {
	buf := make([]byte, 64<<10)
	for total := 0; total <= to.max; {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		_, _ = to.Write(buf[:n])
		total += n
	}
}

// waitExit waits until the process has ended and leaves it to be reaped.
func waitExit(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("waitid", err)
		}
	}
}

// capped keeps the first max bytes and tells when there were more.
type capped struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	max  int
	more bool
	full func()
}

func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keep := min(len(p), c.max-c.buf.Len())
	c.buf.Write(p[:keep])
	if keep < len(p) && !c.more {
		c.more = true
		if c.full != nil {
			c.full()
		}
	}
	return len(p), nil
}

func (c *capped) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.more
}
