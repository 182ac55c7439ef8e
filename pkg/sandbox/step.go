package sandbox

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/cri-server/cri-server/pkg/fault"
)

// step is a named piece of a long job. The name is its fault point, its metric label and its documentation.
type step[T any] struct {
	name string
	do   func(job T, ctx context.Context) error // a method expression of the job's type
}

// stage is a set of steps that do not depend on each other and run at the same time.
type stage[T any] []step[T]

// table is a long job: stages one after the other. There is no undo beside a step; a job that fails is torn down by
// the one teardown of its object.
type table[T any] struct {
	name   string
	stages []stage[T]
}

// points lists the fault points of the table in order: one before every step, and "end" after the last.
func (t table[T]) points() []string {
	var out []string
	for _, st := range t.stages {
		for _, s := range st {
			out = append(out, t.name+"/"+s.name)
		}
	}
	return append(out, t.name+"/end")
}

// run does the stages in order and stops at the first failure. Steps of one stage all end before it returns.
func (t table[T]) run(ctx context.Context, m *Manager, job T) error {
	for _, st := range t.stages {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := t.runStage(ctx, m, st, job); err != nil {
			return err
		}
	}
	return fault.At(t.name + "/end")
}

// runStage runs the steps of a stage. When one fails, or dies, the context of the others ends: nobody waits for what
// will be torn down.
func (t table[T]) runStage(ctx context.Context, m *Manager, st stage[T], job T) error {
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	return atOnce(len(st), func(i int) error {
		failed := true
		defer func() {
			if failed {
				cancel()
			}
		}()
		err := t.runStep(own, m, st[i], job)
		if errors.Is(err, context.Canceled) && own.Err() != nil && ctx.Err() == nil {
			return nil // another step failed, and says why
		}
		failed = err != nil
		return err
	})
}

// atOnce runs do for 0 to n-1 at the same time and returns when all have ended, with all their errors.
func atOnce(n int, do func(int) error) error {
	if n == 1 {
		return do(0)
	}
	type result struct {
		err  error
		died bool
	}
	results := make(chan result, n)
	for i := range n {
		go func() {
			r := result{died: true}
			defer func() { results <- r }()
			r.err = do(i)
			r.died = false
		}()
	}
	var all []error
	died := false
	for range n {
		r := <-results
		all, died = append(all, r.err), died || r.died
	}
	if died {
		runtime.Goexit() // a crash test ended a step: its job ends like it, with nothing undone
	}
	return errors.Join(all...)
}

func (t table[T]) runStep(ctx context.Context, m *Manager, s step[T], job T) error {
	begin := time.Now()
	err := fault.At(t.name + "/" + s.name)
	if err == nil {
		err = s.do(job, ctx)
	}
	m.stepped(t.name, s.name, time.Since(begin), err)
	return err
}

// runAll does every step whatever the others return: a teardown gets as far as it can. A step that must not run
// after a failed one asks for it itself. When ctx ends no further step begins: the next run has to find what is left.
func (t table[T]) runAll(ctx context.Context, m *Manager, job T) error {
	var all []error
	for _, st := range t.stages {
		for _, s := range st {
			if ctx.Err() != nil {
				return errors.Join(append(all, context.Cause(ctx))...)
			}
			all = append(all, t.runStep(ctx, m, s, job))
		}
	}
	all = append(all, fault.At(t.name+"/end"))
	return errors.Join(all...)
}

// FaultPoints lists the places of this package at which pkg/fault can stop the program, job by job in the order of
// its steps. A crash sweep enumerates it.
func FaultPoints() map[string][]string {
	return map[string][]string{
		runPodTable.name:            runPodTable.points(),
		createTable.name:            createTable.points(),
		startTable.name:             startTable.points(),
		teardownPodTable.name:       teardownPodTable.points(),
		removePodTable.name:         removePodTable.points(),
		teardownContainerTable.name: teardownContainerTable.points(),
		removeContainerTable.name:   removeContainerTable.points(),
	}
}
