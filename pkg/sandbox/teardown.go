package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

// podTeardown is a pod on its way out. Its steps work from what exists, so they may run any number of times and
// after any failure.
type podTeardown struct {
	m    *Manager
	id   string
	hold bool // something still needs the network namespace: what holds it stays
}

// teardownPodTable ends everything a pod has but its records, logs and root filesystems. A failed RunPodSandbox,
// StopPodSandbox, the death of a shim and a restart all run it.
var teardownPodTable = table[*podTeardown]{"StopPodSandbox", []stage[*podTeardown]{
	{{"containers", (*podTeardown).containers}},
	{{"network", (*podTeardown).network}},
	{{"shim", (*podTeardown).shim}},
	{{"cgroup", (*podTeardown).cgroup}},
	{{"files", (*podTeardown).files}},
	{{"record", (*podTeardown).record}},
}}

// teardownPod runs the table. The pod's lock is held.
func (m *Manager) teardownPod(ctx context.Context, id string) error {
	s := m.snap.Load().pods[id]
	if s == nil || !s.rec.TornDownAt.IsZero() {
		return nil
	}
	m.live.pod(id).setStopping()
	if err := teardownPodTable.runAll(ctx, m, &podTeardown{m: m, id: id}); err != nil {
		return fmt.Errorf("tear down pod %s: %w", id, err)
	}
	return nil
}

func (t *podTeardown) rec() *podRecord { return t.m.snap.Load().pods[t.id].rec }

func (t *podTeardown) containers(ctx context.Context) error {
	err := t.each(ctx, t.m.teardownContainer)
	t.hold = t.hold || err != nil
	return err
}

// each does something to every container of the pod at the same time, each under its lock.
func (t *podTeardown) each(ctx context.Context, do func(context.Context, string) error) error {
	list := t.m.snap.Load().containersOf(t.id)
	return atOnce(len(list), func(i int) error {
		unlock, err := t.m.ops.lock(ctx, list[i].ID)
		if err != nil {
			return err
		}
		defer unlock()
		return do(ctx, list[i].ID)
	})
}

func (t *podTeardown) network(ctx context.Context) error {
	rec := *t.rec()
	if rec.hostNetwork() {
		return nil
	}
	_, rec.HolderPid = t.m.live.pod(t.id).get()
	if err := t.m.nets.Detach(ctx, rec.network(rec.netns())); err != nil {
		t.hold = true // DEL comes before release
		return fmt.Errorf("detach from the network: %w", err)
	}
	return nil
}

func (t *podTeardown) shim(ctx context.Context) error {
	lp := t.m.live.pod(t.id)
	shim, _ := lp.get()
	if t.hold {
		return nil
	}
	if shim == nil {
		return t.m.shims.EndShim(ctx, t.id, t.rec().ShimPid)
	}
	if err := shim.Shutdown(ctx); err != nil {
		t.hold = true
		return fmt.Errorf("end the shim: %w", err)
	}
	lp.drop()
	return nil
}

func (t *podTeardown) cgroup(ctx context.Context) error {
	if t.hold {
		return nil
	}
	rec := t.rec()
	if err := t.m.shims.RemoveCgroup(ctx, rec.CgroupPath); err != nil {
		t.hold = true // by the run directory the next try finds what lives
		return err
	}
	if rec.OwnsParent {
		return t.m.shims.RemoveCgroup(ctx, rec.CgroupParent)
	}
	if rec.MadeAbove == "" {
		return nil
	}
	return t.trim(ctx, rec.MadeAbove)
}

// trim removes the cgroups that were made for a pod's cgroup_parent, unless another pod uses them by now.
func (t *podTeardown) trim(ctx context.Context, made string) error {
	t.m.trims.Lock() // no other pod makes its cgroup meanwhile
	defer t.m.trims.Unlock()
	for id, p := range t.m.snap.Load().pods {
		if id != t.id && p.rec.TornDownAt.IsZero() && strings.HasPrefix(p.rec.CgroupPath, made+"/") {
			return nil
		}
	}
	return t.m.shims.TrimCgroup(ctx, made)
}

func (t *podTeardown) files(context.Context) error {
	if t.hold {
		return nil
	}
	return t.m.discard(t.m.dirs.stateTrash(), t.m.dirs.run(t.id))
}

func (t *podTeardown) record(context.Context) error {
	if t.hold {
		return nil
	}
	_, err := t.m.updatePod(t.id, func(r *podRecord) bool {
		r.TornDownAt, r.HolderPid, r.ShimPid = time.Now(), 0, 0
		return !r.Removing && !r.creating() // one that is to go goes at once
	})
	return err
}

// removePodTable takes the containers and the record of a pod that is torn down.
var removePodTable = table[*podTeardown]{"RemovePodSandbox", []stage[*podTeardown]{
	{{"containers", (*podTeardown).removeContainers}},
	{{"record", (*podTeardown).drop}},
}}

func (t *podTeardown) removeContainers(ctx context.Context) error {
	return t.each(ctx, t.m.dropContainer)
}

func (t *podTeardown) drop(context.Context) error {
	c := change{dropPod: t.id}
	if !t.rec().ReadyAt.IsZero() {
		c.events = []EventType{EventDeleted}
	}
	if err := t.m.insert(c); err != nil {
		return err
	}
	t.m.live.dropPod(t.id)
	return nil
}

// dropPod tears a pod down and forgets it. The pod's lock is held.
func (m *Manager) dropPod(ctx context.Context, id string) error {
	if err := m.teardownPod(ctx, id); err != nil {
		return err
	}
	if err := removePodTable.run(ctx, m, &podTeardown{m: m, id: id}); err != nil {
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	return nil
}

// containerTeardown is a container on its way out.
type containerTeardown struct {
	m  *Manager
	id string
}

// teardownContainerTable ends a container's processes. Its root filesystem, bundle and record stay.
var teardownContainerTable = table[*containerTeardown]{"StopContainer", []stage[*containerTeardown]{
	{{"process", (*containerTeardown).process}},
	{{"forget", (*containerTeardown).forget}},
}}

// teardownContainer runs the table. The container's lock is held.
func (m *Manager) teardownContainer(ctx context.Context, id string) error {
	if m.snap.Load().containers[id] == nil {
		return nil
	}
	if err := teardownContainerTable.run(ctx, m, &containerTeardown{m, id}); err != nil {
		return fmt.Errorf("tear down container %s: %w", id, err)
	}
	return nil
}

func (t *containerTeardown) rec() *containerRecord { return t.m.snap.Load().containers[t.id].rec }

func (t *containerTeardown) process(ctx context.Context) error {
	rec := t.rec()
	shim, _ := t.m.live.pod(rec.PodID).get()
	waits, ended := rec.running(), false
	if shim != nil && !rec.exited() {
		err := shim.Signal(ctx, t.id, syscall.SIGKILL)
		switch {
		case err == nil:
			waits = true
		case errs.Is(err, errs.NotFound):
			ended = true
		case isClosed(shim.Done()):
		default:
			return fmt.Errorf("kill: %w", err)
		}
	}
	if err := t.m.shims.RemoveCgroup(ctx, rec.CgroupPath); err != nil {
		return err
	}
	if !waits {
		return nil
	}
	if ended {
		t.m.learnEnd(ctx, rec, shim)
	}
	return t.m.awaitEnd(ctx, rec, shim)
}

// learnEnd asks the shim for the end of a container that it has told of before anybody listened.
func (m *Manager) learnEnd(ctx context.Context, rec *containerRecord, shim Shim) {
	states, err := shim.States(ctx)
	if err != nil {
		return // the shim has died: who waits sees that
	}
	for _, st := range states {
		if st.ID != rec.ID {
			continue
		}
		if st.Exited {
			m.commitExit(rec.ID, st.Exit, "", "")
		}
		return
	}
	m.recordLost(rec)
}

// awaitEnd waits until the end of a killed container is recorded.
func (m *Manager) awaitEnd(ctx context.Context, rec *containerRecord, shim Shim) error {
	ended := m.live.container(rec.ID).endedChan()
	var died <-chan struct{}
	if shim == nil {
		closed := make(chan struct{})
		close(closed)
		died = closed
	} else {
		died = shim.Done()
	}
	select {
	case <-ended:
		return nil
	case <-died:
		m.recordLost(rec)
		return nil
	case <-ctx.Done():
		return errs.New(errs.Timeout, "kill container %s: it has not ended: %w. Look for a process in uninterruptible sleep", rec.ID, context.Cause(ctx))
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (t *containerTeardown) forget(ctx context.Context) error {
	t.m.live.container(t.id).closeFiles()
	shim, _ := t.m.live.pod(t.rec().PodID).get()
	if shim == nil || isClosed(shim.Done()) {
		return nil
	}
	return shim.Forget(ctx, t.id)
}

// removeContainerTable takes everything of a container whose processes have ended.
var removeContainerTable = table[*containerTeardown]{"RemoveContainer", []stage[*containerTeardown]{
	{{"intent", (*containerTeardown).intent}},
	{{"rootfs", (*containerTeardown).rootfs}},
	{{"files", (*containerTeardown).files}},
	{{"record", (*containerTeardown).drop}},
}}

// dropContainer tears a container down and forgets it. The container's lock is held.
func (m *Manager) dropContainer(ctx context.Context, id string) error {
	if m.snap.Load().containers[id] == nil {
		return nil
	}
	if err := m.teardownContainer(ctx, id); err != nil {
		return err
	}
	if err := removeContainerTable.run(ctx, m, &containerTeardown{m, id}); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

func (t *containerTeardown) intent(context.Context) error {
	_, err := t.m.updateContainer(t.id, func(r *containerRecord) bool {
		if p := t.m.snap.Load().pods[r.PodID]; r.Removing || p != nil && p.rec.Removing {
			return false // whoever finds the pod removes all of it
		}
		r.Removing = true
		return true
	})
	return err
}

func (t *containerTeardown) rootfs(ctx context.Context) error {
	return errors.Join(t.m.images.ReleaseImage(t.id), t.m.images.RemoveRootfs(ctx, t.id))
}

func (t *containerTeardown) files(context.Context) error {
	return t.m.discard(t.m.dirs.stateTrash(), t.m.dirs.bundle(t.rec().PodID, t.id))
}

func (t *containerTeardown) drop(context.Context) error {
	c := change{dropContainer: t.id}
	if !t.rec().creating() {
		c.events = []EventType{EventDeleted}
	}
	if err := t.m.insert(c); err != nil {
		return err
	}
	t.m.live.dropContainer(t.id)
	return nil
}

// retryTeardown goes on tearing a pod down in the background until nothing is left or the pod is gone: a kubelet
// that was told of a lost pod need not come back for it soon, and its network leases are wanted.
func (m *Manager) retryTeardown(podID string) {
	m.goDo(func() {
		for wait := time.Second; ; wait = min(2*wait, time.Minute) {
			select {
			case <-time.After(wait):
			case <-m.ctx.Done():
				return
			}
			if done := m.tryTeardown(podID); done {
				return
			}
		}
	})
}

func (m *Manager) tryTeardown(podID string) (done bool) {
	ctx, cancel := m.detached(m.ctx)
	defer cancel()
	unlock, err := m.ops.lock(ctx, podID)
	if err != nil {
		return m.ctx.Err() != nil
	}
	defer unlock()
	s := m.snap.Load().pods[podID]
	switch {
	case s == nil || !s.rec.TornDownAt.IsZero():
		return true
	case s.rec.ready():
		return true
	}
	return m.teardownPod(ctx, podID) == nil
}
