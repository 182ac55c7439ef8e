package cli

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cli/internal/catch"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// stay relays signals and the terminal to the container's process until it has ended, and then removes
// the container unless it is to be kept.
func (cr *creation) stay() (int, error) {
	if !cr.noSubreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			cr.app.log.warn("become the container's subreaper: %v", err)
		}
	}
	code, err := attend(cr.proc, cr.console, cr.relay)
	ctx, cancel := context.WithTimeout(context.Background(), teardown)
	defer cancel()
	if err != nil {
		cr.console.close()
		return 0, err
	}
	if cr.keep {
		if e := cr.group.Kill(ctx); e != nil { // what shares our PID namespace has not gone with the process
			cr.app.log.warn("%v", e)
		}
		cr.console.close()
		return code, nil
	}
	if e := cr.c.destroy(ctx); e != nil {
		cr.app.log.warn("delete container %s: %v", cr.id, e)
	}
	cr.console.close()
	cr.c.stopped(cr.config.Hooks)
	return code, nil
}

// relayed are the signals that people and supervisors send; the others follow after relayRest, since to catch them makes
// threads, and asks one for each: a container that is gone by then need not pay for it.
var relayed = []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH}

// relayRest is when the rest is caught. Until then they do what they do to any process of ours: the job
// control signals stop it, the real-time ones do nothing.
const relayRest = 20 * time.Millisecond

// relay collects what is sent to us, until we exit: what removes a container is not to be cut short either.
type relay struct {
	signals chan os.Signal
	caught  *os.File // with the numbers of those of relayed; nil where os/signal catches them
}

// newRelay begins to catch signals. It has to be there before anything is that would outlive us, and before anybody hears
// of the process, who may signal at once.
func newRelay() *relay {
	r := &relay{signals: make(chan os.Signal, 64)}
	var err error
	if r.caught, err = catch.Start(relayed...); err != nil { // no descriptors are left
		r.caught = nil
		for _, sig := range relayed {
			signal.Notify(r.signals, sig)
		}
	}
	time.AfterFunc(relayRest, func() {
		signal.Notify(r.signals, rest()...)
		r.signals <- unix.SIGCHLD // for orphans that have ended so far
	})
	return r
}

// rest are the signals that are not in relayed.
func rest() []os.Signal {
	var list []os.Signal
	for sig := unix.Signal(1); sig < 65; sig++ {
		if !slices.Contains(relayed, sig) {
			list = append(list, sig)
		}
	}
	return list
}

// read hands on what is caught.
func (r *relay) read() {
	var buf [64]byte
	for {
		n, err := r.caught.Read(buf[:])
		if err != nil {
			return
		}
		for _, sig := range buf[:n] {
			r.signals <- syscall.Signal(sig)
		}
	}
}

// attend relays signals to a process until it has ended, and returns its exit code.
func attend(p *launch.Process, con *console, r *relay) (int, error) {
	con.resize()
	type end struct {
		status launch.WaitStatus
		err    error
	}
	if r.caught != nil {
		go r.read()
	}
	ended := make(chan end, 1)
	go func() {
		ws, err := p.Wait()
		ended <- end{ws, err}
	}()
	for {
		select {
		case e := <-ended:
			if e.err != nil {
				return 0, e.err
			}
			return launch.ExitCode(e.status), nil
		case s := <-r.signals:
			switch s {
			case unix.SIGCHLD:
				launch.Reap()
			case unix.SIGWINCH:
				con.resize()
			case unix.SIGURG: // the Go runtime preempts with it
			case unix.SIGPIPE: // of our own writes
			default:
				_ = p.Kill(s.(syscall.Signal)) // it may have ended meanwhile
			}
		}
	}
}
