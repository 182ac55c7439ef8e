package sandbox

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

// shimConn is a manager's connection to a shim.
type shimConn struct {
	s      *shimProc
	mu     sync.Mutex
	closed bool
	events chan ShimEvent
}

func (c *shimConn) tell(e ShimEvent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.events <- e
	}
}

func (c *shimConn) shut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		close(c.events)
	}
}

var errGone = errors.New("connection reset")

func (c *shimConn) usable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !c.s.alive() {
		return errGone
	}
	return nil
}

func (c *shimConn) Pid() int                 { return c.s.pid }
func (c *shimConn) Events() <-chan ShimEvent { return c.events }
func (c *shimConn) Done() <-chan struct{}    { return c.s.done }
func (c *shimConn) Close() error             { c.shut(); return nil }

func (c *shimConn) launch(call, id, cgroup string) (int, error) {
	if err := c.s.m.call(call); err != nil {
		return 0, err
	}
	if err := c.usable(); err != nil {
		return 0, err
	}
	m := c.s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.cgroups[cgroup] {
		return 0, errs.New(errs.NotFound, "cgroup %s", cgroup)
	}
	p := &proc{id: id, pid: m.pid(), cgroup: cgroup, started: time.Now()}
	c.s.procs[id] = p
	return p.pid, nil
}

func (c *shimConn) Holder(_ context.Context, r *HolderRequest) (int, error) {
	return c.launch("holder", HolderID, r.CgroupPath)
}

func (c *shimConn) Start(_ context.Context, r *StartRequest) (int, error) {
	pid, err := c.launch("start", r.ID, r.CgroupPath)
	if err == nil && len(r.Spec.Process.Args) > 0 && r.Spec.Process.Args[0] == "true" {
		c.s.m.exit(r.ID, 0, false)
	}
	return pid, err
}

func (c *shimConn) Signal(_ context.Context, id string, sig syscall.Signal) error {
	if err := c.usable(); err != nil {
		return err
	}
	m := c.s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	p := c.s.procs[id]
	if p == nil || p.exit != nil {
		return errs.New(errs.NotFound, "no process of %s", id)
	}
	if sig == syscall.SIGKILL || !p.ignores {
		c.s.ended(p, Exit{Code: 128 + int32(sig), At: time.Now()})
	}
	return nil
}

func (c *shimConn) States(context.Context) ([]ProcState, error) {
	if err := c.usable(); err != nil {
		return nil, err
	}
	c.s.m.mu.Lock()
	defer c.s.m.mu.Unlock()
	var out []ProcState
	for _, p := range c.s.procs {
		st := ProcState{ID: p.id, Pid: p.pid, StartedAt: p.started, Exited: p.exit != nil}
		if p.exit != nil {
			st.Exit = *p.exit
		}
		out = append(out, st)
	}
	return out, nil
}

func (c *shimConn) ReopenLog(context.Context, string, *os.File) error { return c.s.m.call("reopen") }

func (c *shimConn) Attach(context.Context, string, bool, bool, bool) (*Attached, error) {
	return nil, errs.New(errs.Unsupported, "attach")
}
func (c *shimConn) Resize(context.Context, string, Size) error { return nil }
func (c *shimConn) CloseStdin(context.Context, string) error   { return nil }
func (c *shimConn) Forget(_ context.Context, id string) error {
	if err := c.usable(); err != nil {
		return err
	}
	c.s.m.mu.Lock()
	defer c.s.m.mu.Unlock()
	if p := c.s.procs[id]; p != nil && p.exit == nil {
		return errs.New(errs.Conflict, "%s runs", id)
	}
	delete(c.s.procs, id)
	return nil
}

func (c *shimConn) Shutdown(context.Context) error {
	if err := c.s.m.call("shutdown"); err != nil {
		return err
	}
	c.s.m.mu.Lock()
	defer c.s.m.mu.Unlock()
	c.s.die()
	for _, p := range c.s.procs {
		c.s.ended(p, Exit{Code: 137, At: time.Now()})
	}
	return nil
}
