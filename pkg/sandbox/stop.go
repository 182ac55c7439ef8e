package sandbox

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/oci"
)

// StopPod kills the pod's containers, releases its addresses and ends its processes; the pod is then not ready. It
// is idempotent, and an unknown pod is no error. What fails is tried again by the next call, and in the background.
func (m *Manager) StopPod(ctx context.Context, id string) error {
	return m.endPod(ctx, id, func(ctx context.Context, id string) error {
		_, err := m.updatePod(id, func(r *podRecord) bool {
			if !r.StoppedAt.IsZero() {
				return false
			}
			r.StoppedAt = time.Now()
			return true
		}, EventStopped)
		if err != nil {
			return err
		}
		if err := m.teardownPod(ctx, id); err != nil {
			m.retryTeardown(id)
			return err
		}
		return nil
	})
}

// RemovePod stops the pod if need be and forgets it and its containers. It is idempotent, and an unknown pod is no error.
func (m *Manager) RemovePod(ctx context.Context, id string) error {
	return m.endPod(ctx, id, func(ctx context.Context, id string) error {
		var events []EventType // a pod that was not stopped is now, and whoever listens is told
		if s := m.snap.Load().pods[id]; s != nil && s.rec.StoppedAt.IsZero() {
			events = append(events, EventStopped)
		}
		_, err := m.updatePod(id, func(r *podRecord) bool {
			if r.Removing {
				return false
			}
			r.Removing = true
			if r.StoppedAt.IsZero() {
				r.StoppedAt = time.Now()
			}
			return true
		}, events...)
		if err != nil {
			return err
		}
		return m.dropPod(ctx, id)
	})
}

// endPod runs do under the pod's lock on a context that the caller's departure does not end: half a teardown helps
// nobody. The caller still gets its answer when its own context ends.
func (m *Manager) endPod(ctx context.Context, id string, do func(context.Context, string) error) error {
	rec, err := m.podRec(id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.finish(ctx, rec.ID, func(ctx context.Context) error {
		if m.snap.Load().pods[rec.ID] == nil {
			return nil
		}
		return do(ctx, rec.ID)
	})
}

// finish takes the lock of id and runs do to its end even when the caller leaves.
func (m *Manager) finish(ctx context.Context, id string, do func(context.Context) error) error {
	unlock, err := m.ops.lock(ctx, id)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	started := m.goDo(func() {
		defer unlock()
		ctx, cancel := m.detached(ctx)
		defer cancel()
		done <- do(ctx)
	})
	if !started {
		unlock()
		return errClosing()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// StopContainer sends the stop signal, waits for up to the grace period and kills what is left; 0 kills at once. It
// is idempotent: an unknown, exited or never started container is no error. No lock is held while it waits.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	rec, err := m.containerRec(id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !rec.running() && !rec.exited() && grace > 0 {
		if rec, err = m.afterStart(ctx, rec); err != nil {
			return err
		}
	}
	if rec.running() && grace > 0 {
		if err := m.askToStop(ctx, rec, grace); err != nil {
			return err
		}
	}
	return m.finish(ctx, rec.ID, func(ctx context.Context) error {
		s := m.snap.Load().containers[rec.ID]
		if s == nil || !s.rec.running() {
			return nil
		}
		return m.teardownContainer(ctx, rec.ID)
	})
}

// afterStart waits for a start that is in flight, since what that starts has a right to the grace period, and returns the
// container as it is then.
func (m *Manager) afterStart(ctx context.Context, rec *containerRecord) (*containerRecord, error) {
	unlock, err := m.ops.lock(ctx, rec.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if s := m.snap.Load().containers[rec.ID]; s != nil {
		rec = s.rec
	}
	return rec, nil
}

// askToStop sends the stop signal and waits until the container has ended or the grace period is over.
func (m *Manager) askToStop(ctx context.Context, rec *containerRecord, grace time.Duration) error {
	sig, err := oci.ParseSignal(rec.StopSignal)
	if err != nil {
		return err
	}
	ended := m.live.container(rec.ID).endedChan()
	shim, err := m.shimOf(rec.PodID)
	if err != nil {
		return nil //nolint:nilerr // the kill that follows copes without a shim
	}
	if err := shim.Signal(ctx, rec.ID, syscall.Signal(sig)); err != nil && !errs.Is(err, errs.NotFound) && !isClosed(shim.Done()) {
		return fmt.Errorf("stop container %s: %w", rec.ID, err)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-ended:
	case <-shim.Done():
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// RemoveContainer kills the container if it runs and forgets it; its log stays. It is idempotent, and an unknown
// container is no error.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	rec, err := m.containerRec(id)
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.finish(ctx, rec.ID, func(ctx context.Context) error { return m.dropContainer(ctx, rec.ID) })
}
