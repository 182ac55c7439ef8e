package sandbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// TestConcurrentRequests has many clients do anything to the same few pods while containers end and shims die. What
// each gets is its own affair; nobody may hang, and what is left must be in order.
func TestConcurrentRequests(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for client := range 8 {
		rng := rand.New(rand.NewPCG(1, uint64(client)))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 150 {
				w.anything(ctx, rng)
			}
		}()
	}
	wg.Wait()
	if ctx.Err() != nil {
		t.Fatal("somebody hung")
	}
	for _, p := range w.mgr.Pods() {
		if err := w.mgr.RemovePod(ctx, p.ID); err != nil {
			t.Error(err)
		}
	}
	w.restart() // whatever a watcher was about to do is done by then
	w.clean()
	if n := len(w.mgr.Pods()) + len(w.mgr.Containers()); n != 0 {
		t.Errorf("%d objects are left", n)
	}
}

func (w *world) anything(ctx context.Context, rng *rand.Rand) {
	name := fmt.Sprint("p", rng.IntN(3))
	pods, containers := w.mgr.Pods(), w.mgr.Containers()
	var pod, id string
	if len(pods) > 0 {
		pod = pods[rng.IntN(len(pods))].ID
	}
	if len(containers) > 0 {
		id = containers[rng.IntN(len(containers))].ID
	}
	if rng.IntN(10) == 0 { // a client that loses patience
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(1000))*time.Microsecond)
		defer cancel()
	}
	switch rng.IntN(14) {
	case 0, 1:
		_, _ = w.mgr.RunPod(ctx, podConfig(name), "")
	case 2, 3, 4:
		_, _ = w.mgr.CreateContainer(ctx, pod, containerConfig(fmt.Sprint("c", rng.IntN(3))), nil)
	case 5, 6, 7:
		_ = w.mgr.StartContainer(ctx, id)
	case 8:
		_ = w.mgr.StopContainer(ctx, id, time.Duration(rng.IntN(2))*time.Millisecond)
	case 9:
		_ = w.mgr.RemoveContainer(ctx, id)
	case 10:
		_ = w.mgr.StopPod(ctx, pod)
	case 11:
		_ = w.mgr.RemovePod(ctx, pod)
	case 12:
		w.m.exit(id, 1, false)
	case 13:
		if rng.IntN(4) == 0 {
			w.m.killShim(pod)
		}
	}
}
