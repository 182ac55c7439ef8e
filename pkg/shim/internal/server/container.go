package server

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/shim/internal/crilog"
	"github.com/cri-server/cri-server/pkg/shim/internal/exitrec"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
	"github.com/cri-server/cri-server/pkg/sys"
)

// How long an exit waits for output that was written before it.
const (
	drainPipe    = 2 * time.Second        // only a log that cannot be written to takes so long
	drainConsole = 250 * time.Millisecond // only a background process on the terminal makes it wait
)

// container is a program that the shim has started and looks after: a container, or the holder.
type container struct {
	id        string
	holder    bool
	stdinOnce bool
	hold      bool // what it writes to its terminal, until somebody attaches
	log       *crilog.File
	exitDir   *os.File
	oom       *oomWatch
	pumps     []*pump
	console   *os.File // master of its terminal, closed by the pump; nil without one

	stdio sync.Mutex
	stdin *os.File // our end, nil without one and once closed

	gate sync.Mutex // held while the gate is being opened and while an exit is being judged

	// Guarded by server.mu.
	proc  *launch.Process // nil while it is being started
	state wire.State
}

// newContainer takes over the descriptors that the message names, launch files excepted.
func (s *server) newContainer(m *wire.Start, files []*os.File) (*container, error) {
	c := &container{id: m.ID, stdinOnce: m.StdinOnce, hold: m.HoldOutput}
	take := func(has bool) *os.File {
		if !has || len(files) == 0 {
			return nil
		}
		f := files[0]
		files = files[1:]
		return f
	}
	log := take(m.HasLog)
	c.exitDir = take(m.HasExitDir)
	c.oom = newOOMWatch(take(m.HasOOMEvent), take(m.HasOOMCount))
	sys.CloseAll(files)
	var err error
	if c.log, err = crilog.NewFile(log); err != nil {
		c.release()
		return nil, fmt.Errorf("take the log: %w", err)
	}
	return c, nil
}

// openStdio makes the container's stdio and returns the program's side, which the caller closes. Pumps
// are made and not yet running. A nil file is /dev/null.
func (s *server) openStdio(c *container, stdin, tty bool) (theirs [3]*os.File, err error) {
	if tty {
		return theirs, nil
	}
	if stdin {
		if c.stdin, theirs[0], err = pipe(false); err != nil {
			return theirs, err
		}
	}
	for i, name := range []string{"stdout", "stderr"} {
		ours, end, err := pipe(true)
		if err != nil {
			return theirs, err
		}
		theirs[1+i] = end
		p, err := newPump(ours, false, &s.bufs, crilog.NewStream(c.log, name))
		if err != nil {
			return theirs, err
		}
		c.pumps = append(c.pumps, p)
	}
	return theirs, nil
}

// release closes what the container holds: after a failed start, and when it is forgotten.
func (c *container) release() {
	for _, p := range c.pumps {
		p.close()
	}
	c.closeStdin()
	if c.log != nil {
		c.log.Close()
	}
	if c.exitDir != nil {
		c.exitDir.Close()
	}
	c.oom.close()
}

// start launches the container and registers it. What runs for it begins with begin, once the reply is
// on its way.
func (s *server) start(c *container, m *wire.Start, files []*os.File) (wire.Started, error) {
	var req launch.Request
	if err := req.UnmarshalBinary(m.Launch); err != nil {
		return wire.Started{}, errs.With(errs.Unsupported, err)
	}
	if req.Terminal != m.TTY && !c.holder {
		return wire.Started{}, errs.New(errs.Invalid, "start (container %s): terminal is %t in the request and %t in its program", c.id, m.TTY, req.Terminal)
	}
	if err := s.reserve(c); err != nil {
		return wire.Started{}, err
	}
	err := s.launch(c, m, &req, files)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.containers, c.id)
		return wire.Started{}, err
	}
	return wire.Started{Pid: c.state.Pid, At: c.state.StartedAt}, nil
}

// reserve takes the ID, so that a second start of it fails before it does anything.
func (s *server) reserve(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errs.New(errs.Unavailable, "start (container %s): the shim is shutting down", c.id)
	}
	if old := s.containers[c.id]; old != nil {
		if !c.holder || !old.state.Exited {
			return errs.New(errs.Exists, "start (container %s): the shim has one of that ID. Forget it once it has exited", c.id)
		}
	}
	s.containers[c.id] = c
	return nil
}

func (s *server) launch(c *container, m *wire.Start, req *launch.Request, files []*os.File) error {
	var theirs [3]*os.File
	var err error
	if !c.holder {
		theirs, err = s.openStdio(c, m.Stdin, m.TTY)
		defer sys.CloseAll(theirs[:])
	}
	if err != nil {
		return fmt.Errorf("open stdio (container %s): %w", c.id, err)
	}
	if err := fault.At("shim/launch"); err != nil {
		return err
	}
	proc, err := s.spawn(req, files, theirs)
	if err != nil {
		return err
	}
	if err := fault.At("shim/launched"); err != nil {
		_ = proc.Kill(unix.SIGKILL)
		_, _ = proc.Wait()
		proc.Close()
		return err
	}
	if proc.Console != nil {
		p, err := newPump(proc.Console, true, &s.bufs, crilog.NewStream(c.log, "stdout"))
		if err == nil {
			c.console, c.pumps = proc.Console, append(c.pumps, p)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.proc = proc
	c.state = wire.State{ID: c.id, Holder: c.holder, Pid: proc.Pid, StartedAt: time.Now(), Gated: req.Gate}
	return nil
}

// spawn is launch.Start, counted: while a start is in flight, exits of unknown children are left alone.
func (s *server) spawn(req *launch.Request, files []*os.File, stdio [3]*os.File) (*launch.Process, error) {
	if req.Stop {
		return nil, errs.New(errs.Unsupported, "a shim runs no prestart or createRuntime hooks and moves no network devices")
	}
	s.mu.Lock()
	s.inflight++
	s.mu.Unlock()
	proc, err := launch.Start(req, files, stdio)
	s.mu.Lock()
	s.inflight--
	s.mu.Unlock()
	s.wakeReaper()
	s.bufs.worked()
	return proc, err
}

// begin runs what a started container needs until it ends.
func (s *server) begin(c *container) {
	for _, p := range c.pumps {
		p.hold = c.hold && p.tty
		go p.run()
	}
	if c.oom.start() {
		go c.oom.run(func(kills uint64) { s.tellOOM(c, kills) })
	}
	go s.watch(c)
}

// watch waits for the container's end and sees it through: read what it still said and whether memory
// was the cause, write the record, then tell.
func (s *server) watch(c *container) {
	ws, err := c.proc.Wait()
	finished := time.Now()
	c.gate.Lock()
	defer c.gate.Unlock()
	s.mu.Lock()
	gated := c.state.Gated
	if gated {
		delete(s.containers, c.id) // it never ran, and is nothing to keep
	}
	s.mu.Unlock()
	if gated {
		st := s.exitState(c, ws, err, finished, c.oom.kills())
		s.broadcast(&wire.Frame{Kind: wire.Event, Op: wire.EventExit, Body: wire.Marshal(&st)}) // who killed it waits for its end
		c.release()
		c.proc.Close()
		s.ended()
		return
	}
	kills := c.oom.kills()
	c.oom.close()
	for _, p := range c.pumps {
		if p.tty {
			p.drained(drainConsole)
		} else {
			p.drained(drainPipe)
		}
	}
	c.closeStdin()
	st := s.exitState(c, ws, err, finished, kills)
	if !c.holder && c.exitDir != nil {
		s.record(c, &st)
	}
	s.mu.Lock()
	c.state = st
	s.mu.Unlock()
	c.proc.Close()
	c.settle()
	s.broadcast(&wire.Frame{Kind: wire.Event, Op: wire.EventExit, Body: wire.Marshal(&st)})
	s.ended()
}

// settle closes what an exited container needs no more: its log too, unless a background process may
// still write to it.
func (c *container) settle() {
	if c.exitDir != nil {
		c.exitDir.Close()
	}
	for _, p := range c.pumps {
		if !p.ended() {
			return
		}
	}
	c.log.Close()
}

func (s *server) exitState(c *container, ws launch.WaitStatus, err error, at time.Time, kills uint64) wire.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := c.state
	st.Exited, st.FinishedAt, st.OOMKills, st.OOMKilled = true, at, kills, kills > 0
	if err != nil {
		st.ExitCode = 255 // its status was lost; that it has ended is known
		return st
	}
	st.ExitCode = launch.ExitCode(ws)
	if ws.Signaled() {
		st.Signal = int(ws.Signal())
	}
	return st
}

// record writes exit.json. Where that fails the exit is told all the same: the daemon is there more often than not.
func (s *server) record(c *container, st *wire.State) {
	if fault.At("shim/record") != nil {
		return
	}
	r := exitrec.Record{ID: c.id, Pid: st.Pid, ExitCode: st.ExitCode, Signal: st.Signal, OOMKilled: st.OOMKilled, StartedAt: st.StartedAt, FinishedAt: st.FinishedAt}
	if err := exitrec.Write(c.exitDir, &r); err != nil {
		s.complain("container " + c.id + ": " + err.Error())
	}
	_ = fault.At("shim/recorded")
}

func (s *server) tellOOM(c *container, kills uint64) {
	s.mu.Lock()
	c.state.OOMKills, c.state.OOMKilled = kills, true
	st := c.state
	s.mu.Unlock()
	if !st.Exited { // the exit tells it too
		s.broadcast(&wire.Frame{Kind: wire.Event, Op: wire.EventOOM, Body: wire.Marshal(&st)})
	}
}

// release opens the gate of a container that was started with one.
func (s *server) openGate(id string) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	c.gate.Lock()
	defer c.gate.Unlock()
	s.mu.Lock()
	gated := c.state.Gated
	s.mu.Unlock()
	if !gated {
		return nil
	}
	if err := c.proc.Release(); err != nil {
		return err // its process is gone: watch drops the container
	}
	s.mu.Lock()
	c.state.Gated, c.state.StartedAt = false, time.Now()
	s.mu.Unlock()
	return nil
}

// running returns the process of a container or exec that lives; mu is held. The process stays open, and
// its pid its own, only while mu is held.
func (s *server) running(id string) (*launch.Process, error) {
	if e := s.execs[id]; e != nil && e.proc != nil {
		return e.proc, nil
	}
	c := s.containers[id]
	switch {
	case c == nil:
		return nil, errs.New(errs.NotFound, "the shim has no container or exec %q", id)
	case c.proc == nil:
		return nil, errs.New(errs.Conflict, "container %q is being started", id)
	case c.state.Exited:
		return nil, errs.New(errs.NotFound, "container %q has exited", id)
	}
	return c.proc, nil
}

// pid is the pid of a container or exec that lives.
func (s *server) pid(id string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	proc, err := s.running(id)
	if err != nil {
		return 0, err
	}
	return proc.Pid, nil
}

// find returns a container that has been started, whether it lives or not.
func (s *server) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || c.proc == nil {
		return nil, errs.New(errs.NotFound, "the shim has no container %q", id)
	}
	return c, nil
}

// signal sends sig to the process, and with all to its descendants and its session too.
func (s *server) signal(id string, sig int, all bool) error {
	if sig < 0 || sig > 64 {
		return errs.New(errs.Invalid, "signal %d: there are signals 1 to 64", sig)
	}
	var tree []int
	if all {
		pid, err := s.pid(id)
		if err != nil {
			return err
		}
		tree = family(pid) // before the root ends and its children get another parent
	}
	defer func() {
		for _, fd := range tree {
			unix.Close(fd)
		}
	}()
	s.mu.Lock()
	proc, err := s.running(id)
	if err == nil {
		err = proc.Kill(syscall.Signal(sig))
	}
	s.mu.Unlock()
	if errors.Is(err, os.ErrProcessDone) {
		err = errs.New(errs.NotFound, "signal %d (container or exec %s): its process has ended", sig, id)
	}
	if err != nil {
		return err
	}
	for _, fd := range tree {
		_ = unix.PidfdSendSignal(fd, unix.Signal(sig), nil, 0)
	}
	return nil
}

// forget drops an exited container and ends what it still holds open.
func (s *server) forget(id string) error {
	s.mu.Lock()
	c := s.containers[id]
	if c == nil {
		s.mu.Unlock()
		return nil
	}
	if !c.state.Exited {
		s.mu.Unlock()
		return errs.New(errs.Conflict, "forget (container %s): it is running", id)
	}
	delete(s.containers, id)
	s.mu.Unlock()
	c.release()
	s.bufs.worked()
	return nil
}
