package shim

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Holder starts the pod's holder, which the shim keeps under the ID "", and returns its pid. A holder that
// has exited is replaced, one that lives is errs.Exists. An operation of the program that failed is in the error's
// chain as *launch.OpError, as with Start and Exec.
func (c *Client) Holder(ctx context.Context, req *launch.Request, files []*os.File) (int, error) {
	return c.start(ctx, wire.OpHolder, &StartRequest{Launch: req, Files: files})
}

// Start starts a container and returns its pid when its program has been exec'd, or with Launch.Gate when
// it waits at its gate. A container that fails before leaves nothing in the shim. When ctx ends first,
// the container may be there all the same: States tells.
func (c *Client) Start(ctx context.Context, req StartRequest) (int, error) {
	if req.ID == "" {
		return 0, errs.New(errs.Invalid, "start a container in the shim: no ID")
	}
	return c.start(ctx, wire.OpStart, &req)
}

func (c *Client) start(ctx context.Context, op wire.Op, req *StartRequest) (int, error) {
	m := wire.Start{
		ID: req.ID, LaunchFiles: len(req.Files), Stdin: req.Stdin, StdinOnce: req.StdinOnce, TTY: req.TTY, HoldOutput: req.HoldOutput,
		HasLog: req.Log != nil, HasExitDir: req.ExitDir != nil, HasOOMEvent: req.OOM.Event != nil, HasOOMCount: req.OOM.Count != nil,
	}
	var err error
	if m.Launch, err = req.Launch.MarshalBinary(); err != nil {
		return 0, err
	}
	files := append(make([]*os.File, 0, len(req.Files)+4), req.Files...)
	for _, f := range []*os.File{req.Log, req.ExitDir, req.OOM.Event, req.OOM.Count} {
		if f != nil {
			files = append(files, f)
		}
	}
	var started wire.Started
	if _, err := c.call(ctx, op, &m, &started, files...); err != nil {
		return 0, err
	}
	return started.Pid, nil
}

// Release opens the gate of a container, exec or (with "") holder that was started with Launch.Gate, and
// returns when its program has been exec'd. After a failure it is gone. Without a gate it does nothing.
func (c *Client) Release(ctx context.Context, id string) error {
	return c.target(ctx, wire.OpRelease, &wire.Target{ID: id})
}

// Signal sends a signal to a container's or exec's first process, by its pidfd; with all also to its
// descendants and its session, whatever PID namespace they are in. "" is the holder. It is errs.NotFound for
// an ID that the shim does not have and for what has ended. Killing all that a container
// ever started is its cgroup's business.
func (c *Client) Signal(ctx context.Context, id string, sig int, all bool) error {
	return c.target(ctx, wire.OpSignal, &wire.Target{ID: id, Signal: sig, All: all})
}

// States returns what the shim keeps, the holder included: everything started and not forgotten.
func (c *Client) States(ctx context.Context) ([]ContainerState, error) {
	var m wire.States
	if _, err := c.call(ctx, wire.OpStates, nil, &m); err != nil {
		return nil, err
	}
	list := make([]ContainerState, len(m.List))
	for i := range m.List {
		list[i] = state(&m.List[i])
	}
	return list, nil
}

// ReopenLog makes the container log to another file, opened with O_APPEND, from the next write on: every
// entry is in the one file or the other, whole. nil stops the log. The file is only borrowed.
func (c *Client) ReopenLog(ctx context.Context, id string, log *os.File) error {
	var files []*os.File
	if log != nil {
		files = append(files, log)
	}
	return c.target(ctx, wire.OpReopenLog, &wire.Target{ID: id}, files...)
}

// Attach connects to the streams of a running container that are asked for and that it has: one it
// lacks is nil (stdin without StartRequest.Stdin or already ended, stderr of a terminal). The caller
// closes them, which detaches; they are pipes of the runtime's poller, so deadlines work. Output comes
// from now on. A reader that falls more than the pipe's buffer (1 MiB) behind misses whole lines and is
// told how much in the stream. End of file says that the stream has ended.
func (c *Client) Attach(ctx context.Context, id string, req AttachRequest) (stdin, stdout, stderr *os.File, err error) {
	var m wire.Attached
	files, err := c.call(ctx, wire.OpAttach, &wire.Target{ID: id, Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr}, &m)
	if err != nil {
		return nil, nil, nil, err
	}
	rest := files
	for _, s := range []struct {
		has bool
		to  **os.File
	}{{m.Stdin, &stdin}, {m.Stdout, &stdout}, {m.Stderr, &stderr}} {
		if s.has && len(rest) > 0 {
			*s.to, rest = rest[0], rest[1:]
		}
	}
	sys.CloseAll(rest)
	return stdin, stdout, stderr, nil
}

// Resize sets the size of a container's terminal in characters.
func (c *Client) Resize(ctx context.Context, id string, width, height uint16) error {
	return c.target(ctx, wire.OpResize, &wire.Target{ID: id, Width: uint64(width), Height: uint64(height)})
}

// CloseStdin gives the container's stdin an end. It is idempotent, and does nothing to a terminal.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	return c.target(ctx, wire.OpCloseStdin, &wire.Target{ID: id})
}

// Forget drops an exited container from the shim, and what a background process of it still holds open.
// It is idempotent; a running container is errs.Conflict.
func (c *Client) Forget(ctx context.Context, id string) error {
	return c.target(ctx, wire.OpForget, &wire.Target{ID: id})
}

// Shutdown ends the shim with its holder and execs. It is errs.Conflict while a container runs. When it
// returns the socket is gone and the process about to be: see Done.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.target(ctx, wire.OpShutdown, &wire.Target{})
}

// Kill is Shutdown that kills running containers first and waits until their exits are recorded.
func (c *Client) Kill(ctx context.Context) error {
	return c.target(ctx, wire.OpShutdown, &wire.Target{Force: true})
}

func (c *Client) target(ctx context.Context, op wire.Op, t *wire.Target, files ...*os.File) error {
	got, err := c.call(ctx, op, t, nil, files...)
	sys.CloseAll(got)
	return err
}

// Exec is a process that was started in a container.
type Exec struct {
	ID      string
	Pid     int      // in the host's PID namespace
	Console *os.File // master of its terminal, the caller's to close; nil without one

	client *Client
	done   chan struct{}
	status *ExitStatus // set before done is closed; nil when the shim was lost
}

// Exec starts a process in a running container and returns when its program has been exec'd (or waits at its gate).
// Its stdio is the caller's: the shim keeps none of it. If the daemon dies the process goes on, with whatever
// its stdio then says to it, and its end is not told.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (*Exec, error) {
	m := wire.Exec{ID: req.ID, Container: req.ContainerID, LaunchFiles: len(req.Files), TTY: req.TTY}
	var err error
	if m.Launch, err = req.Launch.MarshalBinary(); err != nil {
		return nil, err
	}
	files := append(make([]*os.File, 0, len(req.Files)+3), req.Files...)
	if !req.TTY {
		for _, f := range req.Stdio {
			if f == nil {
				if f, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
					return nil, err
				}
				defer f.Close()
			}
			files = append(files, f)
		}
	}
	e := &Exec{ID: req.ID, client: c, done: make(chan struct{})}
	c.mu.Lock()
	if c.err == nil && c.execs[req.ID] != nil {
		c.mu.Unlock()
		return nil, errs.New(errs.Exists, "exec %q: the ID is taken", req.ID)
	}
	if c.err == nil {
		c.execs[req.ID] = e // before the request: its end may be told right after the reply
	}
	c.mu.Unlock()
	var started wire.Started
	got, err := c.call(ctx, wire.OpExec, &m, &started, files...)
	if err != nil {
		c.mu.Lock()
		delete(c.execs, req.ID)
		c.mu.Unlock()
		return nil, err
	}
	e.Pid = started.Pid
	if len(got) > 0 {
		e.Console = got[0]
		sys.CloseAll(got[1:])
	}
	return e, nil
}

// Wait returns how the process ended, as soon as it has. It does not wait for its output.
func (e *Exec) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-e.done:
	case <-ctx.Done():
		return ExitStatus{}, ctx.Err()
	}
	if e.status == nil {
		return ExitStatus{}, errs.New(errs.Unavailable, "exec %s: how it ended is not known, since its shim or the connection to it is gone", e.ID)
	}
	return *e.status, nil
}

// Kill sends the signal to the process. An ended one is errs.NotFound.
func (e *Exec) Kill(ctx context.Context, sig int) error {
	return e.client.Signal(ctx, e.ID, sig, false)
}

// KillAll sends the signal to the process, its descendants and its session.
func (e *Exec) KillAll(ctx context.Context, sig int) error {
	return e.client.Signal(ctx, e.ID, sig, true)
}

// Release opens the gate of an exec that was started with Launch.Gate.
func (e *Exec) Release(ctx context.Context) error { return e.client.Release(ctx, e.ID) }

// Resize sets the size of the process's terminal in characters.
func (e *Exec) Resize(width, height uint16) error {
	if e.Console == nil {
		return errs.New(errs.Invalid, "resize (exec %s): it has no terminal", e.ID)
	}
	rc, err := e.Console.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize (exec %s): %w", e.ID, err)
	}
	var ierr error
	if err := rc.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	}); err != nil {
		return fmt.Errorf("resize (exec %s): %w", e.ID, err)
	}
	return os.NewSyscallError("ioctl TIOCSWINSZ", ierr)
}
