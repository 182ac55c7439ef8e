package server

import (
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
)

// killLimit bounds the wait for killed processes: one that is stuck in the kernel must not keep the shim.
const killLimit = 10 * time.Second

// shutdown ends the shim: it refuses while containers run, unless forced; then it kills what is left,
// waits until that has been recorded, answers, and exits.
func (s *server) shutdown(cl *client, force bool) (*wire.Frame, func(), error) {
	s.mu.Lock()
	if !force {
		for id, c := range s.containers {
			if id != "" && !c.state.Exited {
				s.mu.Unlock()
				return nil, nil, errs.New(errs.Conflict, "shut the shim down (pod %s): container %s is running. Stop it first", s.pod, id)
			}
		}
	}
	s.closing = true // no new starts from here on
	s.mu.Unlock()
	limit := time.NewTimer(killLimit)
	defer limit.Stop()
	for s.killAll() {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if !s.anyAlive() {
			break
		}
		select {
		case <-changed:
		case <-limit.C:
			s.complain("shutdown: some processes do not end")
			return s.farewell(cl)
		}
	}
	return s.farewell(cl)
}

func (s *server) farewell(cl *client) (*wire.Frame, func(), error) {
	s.unlink() // before the answer: whoever has it may remove the directory
	return nil, func() {
		cl.flushed()
		s.mu.Lock()
		s.finish()
		s.mu.Unlock()
	}, nil
}

// killAll kills what lives, containers with all their kin, and reports whether something does.
func (s *server) killAll() bool {
	s.mu.Lock()
	var ids []string
	for id, c := range s.containers {
		if !c.state.Exited {
			ids = append(ids, id)
		}
	}
	for id := range s.execs {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		_ = s.signal(id, int(unix.SIGKILL), id != "") // ended meanwhile, or still starting: then its end wakes us
	}
	return len(ids) > 0
}

func (s *server) anyAlive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		if !c.state.Exited {
			return true
		}
	}
	return len(s.execs) > 0
}

// startReaper reaps orphans, which are ours as the subreaper, without a thread that waits for them, and
// keeps the polite signals from ending the shim: at a shutdown of the machine they come while containers
// still write their last lines. They are handled, not ignored, as programs would inherit that.
func (s *server) startReaper() (stop func()) {
	sigs := make(chan os.Signal, 1)
	wake := make(chan struct{}, 1)
	s.reaper.Store(&wake)
	signal.Notify(sigs, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	quit := make(chan struct{})
	go func() {
		for {
			select {
			case <-sigs:
			case <-wake:
			case <-quit:
				return
			}
			s.mu.Lock()
			busy := s.inflight > 0
			s.mu.Unlock()
			if !busy { // a start in flight wakes us when it is through; Reap would hold up other starts meanwhile
				launch.Reap()
			}
		}
	}()
	return func() { signal.Stop(sigs); close(quit) }
}

func (s *server) wakeReaper() {
	if p := s.reaper.Load(); p != nil {
		select {
		case *p <- struct{}{}:
		default:
		}
	}
}
