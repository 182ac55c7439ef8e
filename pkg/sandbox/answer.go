package sandbox

import (
	"context"
	"sync/atomic"
	"time"
)

// answers are the requests whose success this process has told its client. A request repeated after its answer was
// lost (to a deadline, to a cancellation, to a restart) gets it again; one repeated after that is a conflict.
type answers struct{ made, started answer }

// answer is one answer, which was given or not.
type answer struct{ given atomic.Pointer[receipt] }

// receipt tells whether an answer that was given may have been lost.
type receipt struct {
	arrives time.Time // by then it has reached the caller
	unheard func(until time.Time) bool
}

// give notes that the caller of ctx is about to get the answer, if it is still there for it.
func (a *answer) give(ctx context.Context) {
	if awaited(ctx) && !a.heard() {
		a.given.Store(&receipt{time.Now().Add(answerMargin), Unheard(ctx)})
	}
}

// heard says whether a client has the answer.
func (a *answer) heard() bool {
	r := a.given.Load()
	return r != nil && (r.unheard == nil || !r.unheard(r.arrives))
}

type unheardKey struct{}

// WithUnheard returns a context for a call whose caller can still leave while its answer is on the way. unheard tells,
// at any time after the call, whether it may have left before a moment. It must not block.
func WithUnheard(ctx context.Context, unheard func(until time.Time) bool) context.Context {
	return context.WithValue(ctx, unheardKey{}, unheard)
}

// Unheard returns what WithUnheard attached, nil when that was nothing.
func Unheard(ctx context.Context) func(until time.Time) bool {
	f, _ := ctx.Value(unheardKey{}).(func(time.Time) bool)
	return f
}

// answerMargin is what an answer may need to reach its caller on a busy machine.
const answerMargin = time.Second

// awaited says whether the caller is still there for the answer of a create. One whose time limit is about to end may
// have given up already, and its retry must not find the name taken by what it never heard of.
func awaited(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	limit, ok := ctx.Deadline()
	return !ok || time.Until(limit) > answerMargin
}
