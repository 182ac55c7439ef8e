package server

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
)

// exec is a process that was started in a container. Its stdio is its client's; the shim only waits for
// it, and tells that client alone: an exec whose client is gone ends untold.
type exec struct {
	id    string
	proc  *launch.Process // nil while it is being started
	owner *client
	gate  sync.Mutex // held while the gate is being opened: an exec may end before that has been seen
}

// startExec launches the process and returns the reply with the console, if there is one.
func (s *server) startExec(cl *client, m *wire.Exec, files []*os.File) (*exec, *wire.Frame, error) {
	var req launch.Request
	if err := req.UnmarshalBinary(m.Launch); err != nil {
		return nil, nil, errs.With(errs.Unsupported, err)
	}
	if m.LaunchFiles < 0 || m.LaunchFiles > len(files) || !m.TTY && len(files)-m.LaunchFiles != 3 {
		return nil, nil, errs.New(errs.Invalid, "exec %s: %d descriptors for a launch of %d and stdio", m.ID, len(files), m.LaunchFiles)
	}
	e := &exec{id: m.ID, owner: cl}
	if err := s.reserveExec(e, m.Container); err != nil {
		return nil, nil, err
	}
	var stdio [3]*os.File
	if !m.TTY {
		copy(stdio[:], files[m.LaunchFiles:])
		for _, f := range stdio { // a pipe end of a Go program is non-blocking, and no program expects that
			if rc, err := f.SyscallConn(); err == nil {
				_ = rc.Control(func(fd uintptr) { _ = unix.SetNonblock(int(fd), false) })
			}
		}
	}
	err := fault.At("shim/exec")
	var proc *launch.Process
	if err == nil {
		proc, err = s.spawn(&req, files[:m.LaunchFiles], stdio)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.execs, e.id)
		return nil, nil, err
	}
	e.proc = proc
	reply := &wire.Frame{Body: wire.Marshal(&wire.Started{Pid: proc.Pid, At: time.Now()})}
	if proc.Console != nil {
		reply.Files = []*os.File{proc.Console} // ours is closed with the reply: if the daemon dies, the terminal hangs up
	}
	return e, reply, nil
}

func (s *server) reserveExec(e *exec, container string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[container]
	switch {
	case s.closing:
		return errs.New(errs.Unavailable, "exec %s: the shim is shutting down", e.id)
	case e.id == "" || s.execs[e.id] != nil || s.containers[e.id] != nil:
		return errs.New(errs.Exists, "exec %q: the ID is taken", e.id)
	case c == nil || c.proc == nil:
		return errs.New(errs.NotFound, "exec %s: the shim has no container %q", e.id, container)
	case c.state.Exited || c.state.Gated:
		return errs.New(errs.Conflict, "exec %s: container %q is not running", e.id, container)
	}
	s.execs[e.id] = e
	return nil
}

// watchExec waits for the process and tells its client.
func (s *server) watchExec(e *exec) {
	ws, err := e.proc.Wait()
	st := wire.State{ID: e.id, Pid: e.proc.Pid, Exited: true, ExitCode: 255, FinishedAt: time.Now()}
	if err == nil {
		st.ExitCode = launch.ExitCode(ws)
		if ws.Signaled() {
			st.Signal = int(ws.Signal())
		}
	}
	s.mu.Lock()
	delete(s.execs, e.id)
	s.mu.Unlock()
	e.gate.Lock()
	e.proc.Close()
	e.gate.Unlock()
	e.owner.post(&wire.Frame{Kind: wire.Event, Op: wire.EventExecExit, Body: wire.Marshal(&st)})
	s.ended()
}
