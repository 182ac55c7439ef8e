// Package server is the shim process: it starts the programs of one pod and keeps their stdio, logs, exit
// codes and terminals while daemons come and go.
package server

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Socket is the name of the shim's socket in its directory.
const Socket = "shim.sock"

// Config is what a shim is started with.
type Config struct {
	Pod      string
	Listener *os.File // listening SOCK_SEQPACKET socket, in non-blocking mode
	Dir      *os.File // directory of the socket, nil where there is none to remove
}

type server struct {
	pod  string
	dir  *os.File
	bufs buffers
	done chan struct{} // closed when the shim should exit

	reaper atomic.Pointer[chan struct{}] // wakes the reaper, nil without one

	mu         sync.Mutex
	containers map[string]*container // by ID; "" is the holder
	execs      map[string]*exec
	clients    map[*client]struct{}
	inflight   int // starts whose pid is not known yet
	greeted    bool
	closing    bool
	over       bool
	changed    chan struct{} // closed and replaced whenever something has ended
}

func newServer(cfg Config) *server {
	return &server{
		pod: cfg.Pod, dir: cfg.Dir, done: make(chan struct{}), changed: make(chan struct{}),
		containers: map[string]*container{}, execs: map[string]*exec{}, clients: map[*client]struct{}{},
	}
}

// Run serves until the shim has nothing left to do, and returns then. The socket is gone when it returns.
func Run(cfg Config) error {
	s := newServer(cfg)
	stop := s.startReaper()
	defer stop()
	failed := make(chan error, 1)
	go func() { failed <- s.accept(cfg.Listener) }()
	select {
	case <-s.done:
		s.unlink()
		cfg.Listener.Close()
		return nil
	case err := <-failed:
		return fmt.Errorf("accept: %w", err)
	}
}

func (s *server) unlink() {
	if s.dir != nil {
		_ = unix.Unlinkat(int(s.dir.Fd()), Socket, 0)
	}
}

// complain writes to the shim's log, which people read when a shim has failed.
func (s *server) complain(text string) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().UTC().Format(time.RFC3339), text)
}

// ended wakes who waits for the end of something. A shim that no client speaks to any more and that keeps
// nothing is over: its daemon died between making it and using it.
func (s *server) ended() {
	s.bufs.worked()
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
	if s.greeted && len(s.clients) == 0 && len(s.containers) == 0 && len(s.execs) == 0 {
		s.finish()
	}
}

// finish makes Run return; mu is held.
func (s *server) finish() {
	s.closing = true
	if !s.over {
		s.over = true
		close(s.done)
	}
}

// dispatch does what a request asks. after, where there is one, runs once the reply is on its way.
func (s *server) dispatch(cl *client, fr *wire.Frame) (reply *wire.Frame, after func(), err error) {
	switch fr.Op {
	case wire.OpHello:
		return s.hello(fr)
	case wire.OpHolder, wire.OpStart:
		return s.onStart(fr)
	case wire.OpExec:
		return s.onExec(cl, fr)
	case wire.OpStates:
		return &wire.Frame{Body: wire.Marshal(s.states())}, nil, nil
	}
	var t wire.Target
	if err := wire.Unmarshal(fr.Body, &t); err != nil {
		return nil, nil, errs.With(errs.Invalid, err)
	}
	switch fr.Op {
	case wire.OpRelease:
		return nil, nil, s.open(t.ID)
	case wire.OpSignal:
		return nil, nil, s.signal(t.ID, t.Signal, t.All)
	case wire.OpReopenLog:
		return nil, nil, s.reopen(t.ID, fr)
	case wire.OpAttach:
		reply, err := s.attach(&t)
		return reply, nil, err
	case wire.OpResize:
		return nil, nil, s.resize(&t)
	case wire.OpCloseStdin:
		c, err := s.find(t.ID)
		if err == nil {
			c.closeStdin()
		}
		return nil, nil, err
	case wire.OpForget:
		return nil, nil, s.forget(t.ID)
	case wire.OpShutdown:
		return s.shutdown(cl, t.Force)
	}
	return nil, nil, errs.New(errs.Unsupported, "this shim (version %d) does not know operation %d. It was started by an older cri-server: pods made from now on have it", wire.Version, fr.Op)
}

// hello answers with who we are, and our pidfd so that the client can wait for our end without a race.
func (s *server) hello(fr *wire.Frame) (*wire.Frame, func(), error) {
	var h wire.Hello
	if err := wire.Unmarshal(fr.Body, &h); err != nil {
		return nil, nil, errs.With(errs.Invalid, err)
	}
	s.mu.Lock()
	s.greeted = true
	s.mu.Unlock()
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("pidfd_open", err)
	}
	reply := &wire.Frame{Body: wire.Marshal(&wire.Hello{Version: wire.Version, Pid: os.Getpid()})}
	reply.Files = []*os.File{os.NewFile(uintptr(fd), "pidfd")}
	return reply, nil, nil
}

// onStart starts a container or the holder. The frame keeps its launch descriptors, the container has the rest.
func (s *server) onStart(fr *wire.Frame) (*wire.Frame, func(), error) {
	var m wire.Start
	if err := wire.Unmarshal(fr.Body, &m); err != nil {
		return nil, nil, errs.With(errs.Invalid, err)
	}
	holder := fr.Op == wire.OpHolder
	if m.LaunchFiles < 0 || m.LaunchFiles > len(fr.Files) || (m.ID == "") != holder {
		return nil, nil, errs.New(errs.Invalid, "start (container %q): %d of %d descriptors are for the launch", m.ID, m.LaunchFiles, len(fr.Files))
	}
	own := fr.Files[m.LaunchFiles:]
	fr.Files = fr.Files[:m.LaunchFiles]
	c, err := s.newContainer(&m, own)
	if err != nil {
		return nil, nil, err
	}
	c.holder = holder
	started, err := s.start(c, &m, fr.Files)
	if err != nil {
		c.release()
		return nil, nil, err
	}
	return &wire.Frame{Body: wire.Marshal(&started)}, func() { s.begin(c) }, nil
}

func (s *server) onExec(cl *client, fr *wire.Frame) (*wire.Frame, func(), error) {
	var m wire.Exec
	if err := wire.Unmarshal(fr.Body, &m); err != nil {
		return nil, nil, errs.With(errs.Invalid, err)
	}
	e, reply, err := s.startExec(cl, &m, fr.Files)
	if err != nil {
		return nil, nil, err
	}
	return reply, func() { go s.watchExec(e) }, nil
}

func (s *server) states() *wire.States {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &wire.States{}
	for _, c := range s.containers {
		if c.proc == nil {
			continue
		}
		st := c.state
		lost := c.log.Lost()
		st.DroppedLines, st.DroppedBytes = lost.Lines, lost.Bytes
		if lost.Err != nil {
			st.LogError = lost.Err.Error()
		}
		out.List = append(out.List, st)
	}
	return out
}

// open opens the gate of a container or exec.
func (s *server) open(id string) error {
	s.mu.Lock()
	e := s.execs[id]
	started := e != nil && e.proc != nil
	s.mu.Unlock()
	if !started {
		return s.openGate(id)
	}
	e.gate.Lock()
	defer e.gate.Unlock()
	return e.proc.Release()
}

func (s *server) reopen(id string, fr *wire.Frame) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	if len(fr.Files) > 1 {
		return errs.New(errs.Invalid, "reopen log (container %s): %d descriptors", id, len(fr.Files))
	}
	var log *os.File
	if len(fr.Files) == 1 {
		log = fr.Files[0]
		fr.Files = nil
	}
	return c.log.Swap(log)
}

func (s *server) attach(t *wire.Target) (_ *wire.Frame, err error) {
	c, err := s.find(t.ID)
	if err != nil {
		return nil, err
	}
	if _, err := s.pid(t.ID); err != nil {
		return nil, errs.With(errs.Conflict, err)
	}
	var got wire.Attached
	reply := &wire.Frame{}
	defer func() {
		if err != nil {
			sys.CloseAll(reply.Files)
		}
	}()
	for i, want := range []bool{t.Stdout, t.Stderr} {
		if !want || i >= len(c.pumps) {
			continue
		}
		f, err := c.pumps[i].attach()
		if err != nil {
			return nil, err
		}
		reply.Files = append(reply.Files, f)
		*[]*bool{&got.Stdout, &got.Stderr}[i] = true
	}
	if t.Stdin { // last: a detach by an error above would close the stdin of stdin_once
		f, err := c.attachStdin()
		if err != nil {
			return nil, err
		}
		if f != nil {
			got.Stdin = true
			reply.Files = append([]*os.File{f}, reply.Files...)
		}
	}
	reply.Body = wire.Marshal(&got)
	return reply, nil
}

func (s *server) resize(t *wire.Target) error {
	c, err := s.find(t.ID)
	if err != nil {
		return err
	}
	if c.console == nil {
		return errs.New(errs.Invalid, "resize (container %s): it has no terminal", t.ID)
	}
	rc, err := c.console.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	if err := rc.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(t.Height), Col: uint16(t.Width)})
	}); err != nil {
		return errs.New(errs.Conflict, "resize (container %s): its terminal is closed: %w", t.ID, err)
	}
	return os.NewSyscallError("ioctl TIOCSWINSZ", ierr)
}
