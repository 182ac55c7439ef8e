package netns

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

const poolSize = 4 // idle threads; more work than that makes threads for the moment

// Pool runs code in network namespaces on threads that go back to the namespace they were made in and wait
// for more: making a thread and ending it costs more than what it does there. A thread that cannot go back
// ends. The zero Pool is ready.
type Pool struct {
	mu      sync.Mutex
	closed  bool
	idle    []*visitor
	running sync.WaitGroup
}

type visitor struct{ jobs chan visit }

type visit struct {
	ns   *os.File
	fn   func() error
	done chan error
}

// Do calls fn on a thread that is in the network namespace ns and returns what fn returns, as the function
// Do does.
func (p *Pool) Do(ns *os.File, fn func() error) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return Do(ns, fn)
	}
	var v *visitor
	if n := len(p.idle); n > 0 {
		v, p.idle = p.idle[n-1], p.idle[:n-1]
	} else {
		v = &visitor{jobs: make(chan visit, 1)}
		p.running.Go(func() { _ = sys.OnThread(func() error { v.serve(p); return nil }) })
	}
	p.mu.Unlock()
	done := make(chan error, 1)
	v.jobs <- visit{ns, fn, done}
	return <-done
}

// Close ends the threads and waits for them. A Do that runs ends first; a later one makes its own thread.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	for _, v := range p.idle {
		close(v.jobs)
	}
	p.idle = nil
	p.mu.Unlock()
	p.running.Wait()
	return nil
}

// serve runs jobs until there is no room for it among the idle, or its thread is lost.
func (v *visitor) serve(p *Pool) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err == nil {
		defer home.Close()
	}
	for job := range v.jobs {
		if err != nil {
			job.done <- fmt.Errorf("open this thread's network namespace: %w", err)
			return
		}
		if serr := unix.Setns(int(job.ns.Fd()), unix.CLONE_NEWNET); serr != nil {
			job.done <- fmt.Errorf("enter network namespace: %w", serr)
		} else {
			result := job.fn()
			lost := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) != nil
			job.done <- result
			if lost {
				return
			}
		}
		if !p.rest(v) {
			return
		}
	}
}

// rest puts the visitor among the idle, if there is room.
func (p *Pool) rest(v *visitor) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= poolSize {
		return false
	}
	p.idle = append(p.idle, v)
	return true
}
