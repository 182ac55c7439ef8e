package sandbox

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/oci"
)

// execSyncLimit is how much of each stream ExecSync returns; the rest is read and dropped.
const execSyncLimit = 16 << 20

// drainLimit bounds what is read of a pipe after the process that was asked for has ended: what it wrote is in the
// pipe by then, and what its background children go on writing is nobody's.
const drainLimit = 1 << 20

// killTime bounds the killing of a process that ran out of time.
const killTime = 10 * time.Second

// ExecStreams is a command to run in a container and the streams it talks to; nil ones are /dev/null.
type ExecStreams struct {
	Cmd            []string
	TTY            bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer // with TTY everything goes to Stdout
	Resize         <-chan Size
}

// execution is a process in a container and the daemon's ends of its streams.
type execution struct {
	proc           Process
	stdin          *os.File
	stdout, stderr *os.File
}

// launchExec starts a command. Streams that are not asked for are /dev/null.
func (m *Manager) launchExec(ctx context.Context, id string, cmd []string, tty, stdin, stdout, stderr bool) (*execution, error) {
	rec, err := m.containerRec(id)
	if err != nil {
		return nil, err
	}
	if !rec.running() {
		return nil, errs.New(errs.Conflict, "exec in container %s: it is not running", rec.ID)
	}
	if len(cmd) == 0 {
		return nil, errs.New(errs.Invalid, "exec in container %s: the command is empty", rec.ID)
	}
	spec, err := m.readSpec(rec)
	if err != nil {
		return nil, err
	}
	process, err := oci.Exec(spec, cmd, tty)
	if err != nil {
		return nil, err
	}
	shim, err := m.shimOf(rec.PodID)
	if err != nil {
		return nil, err
	}
	req := &ExecRequest{ID: newID(), ContainerID: rec.ID, Pid: rec.Pid, Spec: spec, Process: process, CgroupPath: rec.CgroupPath}
	x := &execution{}
	if !tty {
		if err := x.pipes(req, stdin, stdout, stderr); err != nil {
			return nil, err
		}
		defer func() {
			for _, f := range req.Stdio {
				f.Close()
			}
		}()
	}
	if x.proc, err = shim.Exec(ctx, req); err != nil {
		x.close()
		return nil, err
	}
	return x, nil
}

// pipes makes the three streams: req.Stdio get the process's ends, x the daemon's.
func (x *execution) pipes(req *ExecRequest, stdin, stdout, stderr bool) (err error) {
	defer func() {
		if err != nil {
			x.close()
			for _, f := range req.Stdio {
				f.Close() // nil is no harm
			}
		}
	}()
	for i, wanted := range []bool{stdin, stdout, stderr} {
		if !wanted {
			if req.Stdio[i], err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return err
			}
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		switch i {
		case 0:
			req.Stdio[0], x.stdin = r, w
		case 1:
			req.Stdio[1], x.stdout = w, r
		case 2:
			req.Stdio[2], x.stderr = w, r
		}
	}
	return nil
}

func (x *execution) close() {
	if x.proc != nil {
		x.proc.Close()
	}
	for _, f := range []*os.File{x.stdin, x.stdout, x.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// kill ends the process and what it started, though the request's context may be over.
func (x *execution) kill(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	_ = x.proc.KillTree(ctx) // what cannot be killed ends with the container
	_, _ = x.proc.Wait(ctx)
}

// ExecSync runs cmd in a container and returns what it printed, at most 16 MiB of each stream, and its exit code. It
// returns when the process has ended, whatever its children do. A timeout greater than 0 that runs out is
// errs.Timeout, and the process and its children are killed.
func (m *Manager) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errs.New(errs.Timeout, "exec in container %s: it took longer than %s and was killed", id, timeout))
		defer cancel()
	}
	x, err := m.launchExec(ctx, id, cmd, false, false, true, true)
	if err != nil {
		return nil, nil, 0, err
	}
	defer x.close()
	var out, errOut bounded
	done := pump(&out, x.stdout, &errOut, x.stderr)
	exit, err := x.proc.Wait(ctx)
	if err != nil {
		x.kill(ctx)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	done()
	return out.data, errOut.data, exit.Code, err
}

// pump copies both streams until they end, or until the returned function has been called and what the pipes hold is
// copied too.
func pump(out io.Writer, stdout *os.File, errOut io.Writer, stderr *os.File) (finish func()) {
	var wg sync.WaitGroup
	var files []*os.File
	for _, p := range []struct {
		w io.Writer
		f *os.File
	}{{out, stdout}, {errOut, stderr}} {
		if p.f == nil {
			continue
		}
		files = append(files, p.f)
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, 64<<10)
			if _, err := io.CopyBuffer(onlyWriter{p.w}, onlyReader{p.f}, buf); errors.Is(err, os.ErrDeadlineExceeded) {
				drain(p.w, p.f, buf)
			}
		}()
	}
	return func() {
		for _, f := range files {
			_ = f.SetReadDeadline(time.Unix(1, 0))
		}
		wg.Wait()
	}
}

// onlyWriter and onlyReader keep io.Copy from taking a path around the buffer and the deadline.
type onlyWriter struct{ io.Writer }

type onlyReader struct{ io.Reader }

// drain copies what is in the pipe now.
func drain(w io.Writer, f *os.File, buf []byte) {
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = f.SetReadDeadline(time.Time{})
	for total := 0; total < drainLimit; {
		var n int
		var rerr error
		err := conn.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), buf)
			return true // never wait: an empty pipe is the end
		})
		if errors.Is(rerr, syscall.EINTR) {
			continue
		}
		if err != nil || rerr != nil || n <= 0 {
			return
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return
		}
		total += n
	}
}

// bounded keeps the first execSyncLimit bytes and takes the rest.
type bounded struct{ data []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if room := execSyncLimit - len(b.data); room > 0 {
		b.data = append(b.data, p[:min(len(p), room)]...)
	}
	return len(p), nil
}

// Exec runs a command in a container on the given streams and returns its exit code once it has ended and its output
// is written. When ctx ends, the process and its children are killed. The reader of Stdin may still be blocked in a
// Read when Exec returns: its owner ends that.
func (m *Manager) Exec(ctx context.Context, id string, s ExecStreams) (int, error) {
	x, err := m.launchExec(ctx, id, s.Cmd, s.TTY, s.Stdin != nil, s.Stdout != nil, s.Stderr != nil)
	if err != nil {
		return 0, err
	}
	defer x.close()
	in, out := x.stdin, x.stdout
	if s.TTY {
		in, out = x.proc.Console(), x.proc.Console()
	}
	if s.Stdin != nil && in != nil {
		go func() {
			_, _ = io.Copy(onlyWriter{in}, s.Stdin)
			if !s.TTY {
				in.Close()
			}
		}()
	}
	var errPipe *os.File
	if s.TTY {
		if s.Stdout == nil {
			s.Stdout = io.Discard
		}
	} else {
		errPipe = x.stderr
	}
	finish := pump(s.Stdout, out, s.Stderr, errPipe)
	stopResize := follow(ctx, s.Resize, x.proc.Resize)
	defer stopResize()
	exit, err := x.proc.Wait(ctx)
	if err != nil {
		x.kill(ctx)
		if ctx.Err() != nil {
			go finish() // a client that is gone, or reads no more, is not waited for
			return 0, context.Cause(ctx)
		}
	}
	finish()
	return int(exit.Code), err
}

// follow hands sizes on until ctx ends or the returned function is called.
func follow(ctx context.Context, sizes <-chan Size, set func(Size) error) (stop func()) {
	if sizes == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case s, ok := <-sizes:
				if !ok {
					return
				}
				_ = set(s) // a terminal that is gone has no size
			case <-ctx.Done():
				return
			}
		}
	}()
	return cancel
}
