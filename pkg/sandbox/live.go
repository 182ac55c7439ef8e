package sandbox

import (
	"context"
	"os"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// liveSet holds the handles that belong to this process: connections, descriptors, channels. Nothing in it is state;
// all of it can be had again from records and shims.
type liveSet struct {
	mu         sync.Mutex
	pods       map[string]*livePod
	containers map[string]*liveContainer
}

type livePod struct {
	mu        sync.Mutex
	shim      Shim // nil: none known
	holderPid int
	stopping  bool // its end is on purpose
	lost      bool // its holder has died
	answers   answers
}

func (p *livePod) get() (Shim, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shim, p.holderPid
}

// set keeps what is given and leaves the rest.
func (p *livePod) set(shim Shim, holderPid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if shim != nil {
		p.shim = shim
	}
	if holderPid != 0 {
		p.holderPid = holderPid
	}
}

// drop forgets the shim and closes the connection.
func (p *livePod) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shim != nil {
		_ = p.shim.Close()
	}
	p.shim, p.holderPid = nil, 0
}

func (p *livePod) setLost() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = true
}

func (p *livePod) isLost() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

func (p *livePod) setStopping() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopping = true
}

func (p *livePod) isStopping() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopping
}

type liveContainer struct {
	mu       sync.Mutex
	starting bool  // Start is between launch and commit
	pending  *Exit // an exit told while starting
	told     bool
	ended    chan struct{} // closed when the end of its process has been told, and recorded unless starting

	answers answers

	// What CreateContainer leaves for StartContainer, to save doing it twice.
	spec    *specs.Spec
	rootfs  *os.File
	volumes map[int]*os.File
}

// takeFiles hands over what CreateContainer left.
func (c *liveContainer) takeFiles() (spec *specs.Spec, rootfs *os.File, volumes map[int]*os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	spec, rootfs, volumes = c.spec, c.rootfs, c.volumes
	c.spec, c.rootfs, c.volumes = nil, nil, nil
	return spec, rootfs, volumes
}

func (c *liveContainer) leaveFiles(spec *specs.Spec, rootfs *os.File, volumes map[int]*os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spec, c.rootfs, c.volumes = spec, rootfs, volumes
}

func (c *liveContainer) closeFiles() {
	_, rootfs, volumes := c.takeFiles()
	sys.CloseAll([]*os.File{rootfs})
	closeMap(volumes)
}

func closeMap(files map[int]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// tell notes that the process has ended. It reports whether the end is to be committed now.
func (c *liveContainer) tell(e Exit) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.starting {
		c.pending = &e
		c.closeEnded()
		return false
	}
	return true
}

func (c *liveContainer) closeEnded() {
	if !c.told {
		c.told = true
		close(c.ended)
	}
}

func (c *liveContainer) committed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeEnded()
}

// begin and settle enclose a start; settle returns the exit that was told in between.
func (c *liveContainer) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = true
}

func (c *liveContainer) settle() *Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = false
	e := c.pending
	c.pending = nil
	return e
}

// reset makes the container ready for another start after one that was rolled back.
func (c *liveContainer) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting, c.pending = false, nil
	if c.told {
		c.told, c.ended = false, make(chan struct{})
	}
}

func (c *liveContainer) endedChan() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func (s *liveSet) pod(id string) *livePod {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods == nil {
		s.pods = map[string]*livePod{}
	}
	p := s.pods[id]
	if p == nil {
		p = &livePod{}
		s.pods[id] = p
	}
	return p
}

func (s *liveSet) container(id string) *liveContainer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers == nil {
		s.containers = map[string]*liveContainer{}
	}
	c := s.containers[id]
	if c == nil {
		c = &liveContainer{ended: make(chan struct{})}
		s.containers[id] = c
	}
	return c
}

func (s *liveSet) dropPod(id string) {
	s.mu.Lock()
	p := s.pods[id]
	delete(s.pods, id)
	s.mu.Unlock()
	if p != nil {
		p.drop()
	}
}

func (s *liveSet) dropContainer(id string) {
	s.mu.Lock()
	c := s.containers[id]
	delete(s.containers, id)
	s.mu.Unlock()
	if c != nil {
		c.closeFiles()
	}
}

func (s *liveSet) closeAll() {
	s.mu.Lock()
	pods, containers := s.pods, s.containers
	s.pods, s.containers = nil, nil
	s.mu.Unlock()
	for _, p := range pods {
		p.drop()
	}
	for _, c := range containers {
		c.closeFiles()
	}
}

// shimOf returns the connection to a pod's shim; errs.Unavailable when there is none.
func (m *Manager) shimOf(podID string) (Shim, error) {
	if shim, _ := m.live.pod(podID).get(); shim != nil {
		return shim, nil
	}
	return nil, errs.New(errs.Unavailable, "pod %s: its shim is gone. Remove the pod", podID)
}

// watch follows a shim until its connection ends.
func (m *Manager) watch(podID string, shim Shim) {
	lp := m.live.pod(podID)
	m.goDo(func() {
		for {
			select {
			case ev, ok := <-shim.Events():
				if !ok {
					m.disconnected(podID, lp, shim)
					return
				}
				m.onEvent(podID, lp, ev)
			case <-m.ctx.Done():
				return
			}
		}
	})
}

const holderDied = "the process that holds its namespaces has died"

func (m *Manager) onEvent(podID string, lp *livePod, ev ShimEvent) {
	if ev.ID == HolderID {
		if !lp.isStopping() {
			lp.setLost()
			m.podLost(podID, holderDied)
		}
		return
	}
	if m.live.container(ev.ID).tell(ev.Exit) {
		m.commitExit(ev.ID, ev.Exit, "", "")
	}
}

// commitExit records the end of a container, once. reason "" is derived from the exit. A record that cannot be
// written now (a full disk) is written later: nobody else will tell of this exit before the next start.
func (m *Manager) commitExit(id string, e Exit, reason, message string) {
	err := m.recordExit(id, e, reason, message)
	if err == nil || errs.Is(err, errs.NotFound) || m.ctx.Err() != nil {
		m.exitRecorded(id)
		return
	}
	m.logger(m.ctx).Error(err, "Could not record the exit of a container yet", "container", id)
	m.goDo(func() {
		for wait := time.Second / 4; ; wait = min(2*wait, 10*time.Second) {
			select {
			case <-time.After(wait):
			case <-m.ctx.Done():
				return
			}
			if err := m.recordExit(id, e, reason, message); err == nil || errs.Is(err, errs.NotFound) {
				m.exitRecorded(id)
				return
			}
		}
	})
}

func (m *Manager) exitRecorded(id string) {
	m.live.container(id).committed()
	m.goDo(func() { m.afterExit(id) })
}

func (m *Manager) recordExit(id string, e Exit, reason, message string) error {
	_, err := m.updateContainer(id, func(r *containerRecord) bool {
		if !r.running() {
			return false
		}
		r.FinishedAt = e.At
		if e.At.Before(r.StartedAt) {
			r.FinishedAt = r.StartedAt
		}
		r.ExitCode, r.Reason, r.Message = e.Code, reason, message
		switch {
		case reason != "":
		case e.Code == 0: // even where the kernel killed a child or an exec of its, which did not end it
			r.Reason = "Completed"
		case e.OOMKilled:
			r.Reason = "OOMKilled"
		default:
			r.Reason = "Error"
		}
		return true
	}, EventStopped)
	return err
}

// afterExit ends what a container's first process left behind and lets the shim forget it. What fails here is done
// again by the container's teardown.
func (m *Manager) afterExit(id string) {
	s := m.snap.Load().containers[id]
	if s == nil || !s.rec.exited() {
		return // a start that is rolled back: the next one may have the cgroup already
	}
	ctx, cancel := m.detached(m.ctx)
	defer cancel()
	if err := m.shims.RemoveCgroup(ctx, s.rec.CgroupPath); err != nil && m.ctx.Err() == nil {
		m.logger(ctx).Error(err, "Left the cgroup of an exited container", "container", id)
	}
	if shim, _ := m.live.pod(s.rec.PodID).get(); shim != nil {
		_ = shim.Forget(ctx, id) // a shim that is gone has forgotten
	}
}

// disconnected handles the end of a connection that nobody asked for.
func (m *Manager) disconnected(podID string, lp *livePod, shim Shim) {
	if m.ctx.Err() != nil || lp.isStopping() {
		return
	}
	select {
	case <-shim.Done():
	default:
		ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
		defer cancel()
		if again, err := m.shims.Dial(ctx, podID, m.dirs.run(podID)); err == nil {
			lp.set(again, 0)
			_ = shim.Close()
			m.watch(podID, again)
			m.resync(ctx, podID, lp, again)
			return
		}
	}
	if m.ctx.Err() == nil {
		m.shimDied(podID)
	}
}

// resync learns what happened while no connection stood.
func (m *Manager) resync(ctx context.Context, podID string, lp *livePod, shim Shim) {
	states, err := shim.States(ctx)
	if err != nil {
		return // the connection broke again, and whoever watches it sees that
	}
	for _, st := range states {
		if st.Exited {
			m.onEvent(podID, lp, ShimEvent{ID: st.ID, Exit: st.Exit})
		}
	}
}

// shimDied ends a pod whose shim is gone: what it ran cannot be kept.
func (m *Manager) shimDied(podID string) {
	ctx, cancel := m.detached(m.ctx)
	defer cancel()
	unlock, err := m.ops.lock(ctx, podID)
	if err != nil {
		return
	}
	defer unlock()
	if p := m.snap.Load().pods[podID]; p == nil || p.rec.creating() || !p.rec.TornDownAt.IsZero() {
		return // whoever makes it or has torn it down sees that
	}
	m.podLost(podID, "its shim has died")
	m.live.pod(podID).drop()
	if err := m.teardownPod(ctx, podID); err != nil {
		m.logger(ctx).Error(err, "Tore down a lost pod only in part", "pod", podID)
		m.retryTeardown(podID)
	}
}

// podLost records that a pod is no longer ready though nobody stopped it.
func (m *Manager) podLost(podID, why string) {
	_, err := m.updatePod(podID, func(r *podRecord) bool {
		if !r.ready() {
			return false
		}
		r.StoppedAt, r.Message = time.Now(), why
		return true
	}, EventStopped)
	if err != nil && m.ctx.Err() == nil {
		m.logger(m.ctx).Error(err, "Recorded no loss of a pod", "pod", podID)
	}
}

// recordLost records the end of a container that no shim can tell of any more.
func (m *Manager) recordLost(rec *containerRecord) {
	if e, ok := m.shims.ExitRecord(m.dirs.bundle(rec.PodID, rec.ID)); ok {
		m.commitExit(rec.ID, e, "", "")
		return
	}
	m.commitExit(rec.ID, Exit{Code: 137, At: time.Now()}, "ShimDied", "the pod's shim died, so the container was killed")
}
