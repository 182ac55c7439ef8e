package image

import (
	"context"
	"errors"
	"sync"

	"github.com/cri-server/cri-server/pkg/errs"
)

// flights joins equal pulls. A pull goes on while anybody waits for it.
type flights struct {
	mu  sync.Mutex
	m   map[string]*flight
	all sync.WaitGroup
}

type flight struct {
	done    chan struct{}
	id      string
	err     error
	cancel  context.CancelCauseFunc
	waiters int

	mu       sync.Mutex
	watchers map[*int]func(Progress)
	latest   map[string]Progress
}

var errNobodyWaits = errors.New("the pull was cancelled by everyone who asked for it")

// do joins the flight of key or starts one with f, and waits for its end or ctx's.
func (fs *flights) do(ctx context.Context, key string, progress func(Progress), f func(context.Context, func(Progress)) (string, error)) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", errs.New(errs.KindOf(err), "pull: %w", err)
	}
	fs.mu.Lock()
	fl := fs.m[key]
	if fl == nil {
		fl = fs.start(ctx, key, f)
	}
	fl.waiters++
	fs.mu.Unlock()
	defer fl.watch(progress)()
	select {
	case <-fl.done:
		return fl.id, fl.err
	case <-ctx.Done():
	}
	fs.mu.Lock()
	fl.waiters--
	last := fl.waiters == 0
	if last && fs.m[key] == fl {
		delete(fs.m, key) // who asks from now on starts anew
	}
	fs.mu.Unlock()
	if last {
		fl.cancel(errNobodyWaits)
		<-fl.done // nothing of it stays when the caller hears of the end
	}
	return "", errs.New(errs.KindOf(ctx.Err()), "pull: %w", context.Cause(ctx))
}

func (fs *flights) start(ctx context.Context, key string, f func(context.Context, func(Progress)) (string, error)) *flight {
	fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	fl := &flight{done: make(chan struct{}), cancel: cancel, watchers: map[*int]func(Progress){}, latest: map[string]Progress{}}
	if fs.m == nil {
		fs.m = map[string]*flight{}
	}
	fs.m[key] = fl
	fs.all.Add(1)
	go func() {
		defer fs.all.Done()
		defer cancel(nil)
		fl.id, fl.err = f(fctx, fl.tell)
		fs.mu.Lock()
		if fs.m[key] == fl {
			delete(fs.m, key)
		}
		fs.mu.Unlock()
		close(fl.done)
	}()
	return fl
}

func (fs *flights) wait() { fs.all.Wait() }

// tell passes progress on to everyone who waits.
func (fl *flight) tell(p Progress) {
	fl.mu.Lock()
	fl.latest[p.Layer] = p
	watchers := make([]func(Progress), 0, len(fl.watchers))
	for _, w := range fl.watchers {
		watchers = append(watchers, w)
	}
	fl.mu.Unlock()
	for _, w := range watchers {
		w(p)
	}
}

// watch adds a listener, told first how far things are.
func (fl *flight) watch(progress func(Progress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	key := new(int)
	fl.mu.Lock()
	fl.watchers[key] = progress
	var known []Progress
	for _, p := range fl.latest {
		known = append(known, p)
	}
	fl.mu.Unlock()
	for _, p := range known {
		progress(p)
	}
	return func() {
		fl.mu.Lock()
		delete(fl.watchers, key)
		fl.mu.Unlock()
	}
}
