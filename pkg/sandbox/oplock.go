package sandbox

import (
	"context"
	"sync"
)

// opLocks hands out one lock per object ID. Whoever needs two takes the pod's first. A lock is held while an object
// changes, never across a grace period or a stream.
type opLocks struct {
	mu    sync.Mutex
	locks map[string]*opLock
}

type opLock struct {
	slot chan struct{} // holds one token while locked
	refs int
}

// lock waits for the lock of id. The error is the context's.
func (l *opLocks) lock(ctx context.Context, id string) (unlock func(), err error) {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = map[string]*opLock{}
	}
	o := l.locks[id]
	if o == nil {
		o = &opLock{slot: make(chan struct{}, 1)}
		l.locks[id] = o
	}
	o.refs++
	l.mu.Unlock()
	drop := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if o.refs--; o.refs == 0 {
			delete(l.locks, id)
		}
	}
	select {
	case o.slot <- struct{}{}:
		return func() { <-o.slot; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, context.Cause(ctx)
	}
}

// flights lets a retried request join the one in flight.
type flights struct {
	mu   sync.Mutex
	jobs map[string]*flight
}

type flight struct {
	done    chan struct{}
	id      string
	err     error
	waiters int
	gone    bool // everybody left: it is being cancelled
	cancel  context.CancelFunc
}

// join runs do under key, or waits for the run under that key that is in flight. do runs on a context that outlives
// each caller and is cancelled when the last one has left; a caller that comes then waits until that run is over and
// starts its own. start must run do on a goroutine.
func (f *flights) join(ctx context.Context, key string, start func(func()) bool, do func(context.Context) (string, error)) (string, error) {
	for {
		fl, mine := f.enter(ctx, key, start, do)
		select {
		case <-fl.done:
			if !mine {
				continue // it was somebody's cancelled run: its failure is not ours
			}
			return fl.id, fl.err
		case <-ctx.Done():
			if mine {
				f.leave(fl)
			}
			return "", context.Cause(ctx)
		}
	}
}

func (f *flights) enter(ctx context.Context, key string, start func(func()) bool, do func(context.Context) (string, error)) (fl *flight, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.jobs[key]; fl != nil {
		if fl.gone {
			return fl, false
		}
		fl.waiters++
		return fl, true
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	fl = &flight{done: make(chan struct{}), waiters: 1, cancel: cancel}
	if f.jobs == nil {
		f.jobs = map[string]*flight{}
	}
	f.jobs[key] = fl
	end := func() {
		cancel()
		f.mu.Lock()
		delete(f.jobs, key)
		f.mu.Unlock()
		close(fl.done)
	}
	started := start(func() {
		defer end()
		fl.err = context.Canceled // what waiters see should do never return
		fl.id, fl.err = do(run)
	})
	if !started {
		fl.err = errClosing()
		go end() // it takes the lock that is held here
	}
	return fl, true
}

func (f *flights) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters == 0 {
		fl.gone = true
		fl.cancel()
	}
}
