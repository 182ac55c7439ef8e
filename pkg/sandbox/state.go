package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/store"
)

// snapshot is the whole state at one moment. It is never changed, only replaced by commit.
type snapshot struct {
	pods       map[string]*podState
	containers map[string]*containerState
}

type podState struct {
	rec *podRecord
	pub *Pod
}

type containerState struct {
	rec *containerRecord
	pub *Container
}

func emptySnapshot() *snapshot {
	return &snapshot{pods: map[string]*podState{}, containers: map[string]*containerState{}}
}

// containersOf returns the records of a pod's containers, creating ones included.
func (s *snapshot) containersOf(pod string) []*containerRecord {
	var out []*containerRecord
	for _, c := range s.containers {
		if c.rec.PodID == pod {
			out = append(out, c.rec)
		}
	}
	return out
}

// change is one step of state: at most one pod and one container, or the end of one.
type change struct {
	pod           *podRecord
	container     *containerRecord
	dropPod       string
	dropContainer string
	events        []EventType
}

// commit is the only way that state changes: it writes the record, swaps the snapshot and publishes the events, in
// this order. A failure to write changes nothing. m.mu is held.
func (m *Manager) commit(c change) error {
	if m.ctx.Err() != nil {
		return errClosing()
	}
	if err := m.record(c); err != nil {
		return err
	}
	old := m.snap.Load()
	next := &snapshot{pods: old.pods, containers: old.containers}
	ev := Event{At: time.Now()}
	switch {
	case c.pod != nil:
		next.pods = maps.Clone(old.pods)
		next.pods[c.pod.ID] = &podState{c.pod, c.pod.public()}
		ev.Pod = next.pods[c.pod.ID].pub
	case c.container != nil:
		next.containers = maps.Clone(old.containers)
		s := &containerState{c.container, c.container.public()}
		next.containers[c.container.ID] = s
		ev.Pod, ev.Container = podOf(old, s.rec.PodID), s.pub
	case c.dropPod != "":
		next.pods = maps.Clone(old.pods)
		ev.Pod = podOf(old, c.dropPod)
		delete(next.pods, c.dropPod)
	case c.dropContainer != "":
		s := old.containers[c.dropContainer]
		next.containers = maps.Clone(old.containers)
		delete(next.containers, c.dropContainer)
		ev.Pod, ev.Container = podOf(old, s.rec.PodID), s.pub
	}
	m.snap.Store(next)
	for _, t := range c.events {
		ev.Type = t
		m.events.publish(ev)
	}
	return nil
}

func podOf(s *snapshot, id string) *Pod {
	if p := s.pods[id]; p != nil {
		return p.pub
	}
	return nil
}

func (m *Manager) writeRecord(c change) error {
	switch {
	case c.pod != nil:
		return podSchema.Write(m.dirs.podRecord(c.pod.ID), c.pod, false)
	case c.container != nil:
		return containerSchema.Write(m.dirs.container(c.container.PodID, c.container.ID), c.container.onDisk(), false)
	case c.dropPod != "":
		return m.discard(m.dirs.rootTrash(), m.dirs.pod(c.dropPod))
	case c.dropContainer != "":
		s := m.snap.Load().containers[c.dropContainer]
		if s == nil {
			return errs.New(errs.NotFound, "container %s: no record", c.dropContainer)
		}
		if err := os.Remove(m.dirs.container(s.rec.PodID, c.dropContainer)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove record of container %s: %w", c.dropContainer, err)
		}
	}
	return nil
}

// updatePod commits what change does to a copy of the pod's record. A change that returns false commits nothing.
func (m *Manager) updatePod(id string, do func(*podRecord) bool, events ...EventType) (*podRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.snap.Load().pods[id]
	if s == nil {
		return nil, errs.New(errs.NotFound, "pod %s: no such pod", id)
	}
	rec := *s.rec
	if !do(&rec) {
		return s.rec, nil
	}
	return &rec, m.commit(change{pod: &rec, events: events})
}

// updateContainer is updatePod for a container.
func (m *Manager) updateContainer(id string, do func(*containerRecord) bool, events ...EventType) (*containerRecord, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.snap.Load().containers[id]
	if s == nil {
		return nil, errs.New(errs.NotFound, "container %s: no such container", id)
	}
	rec := *s.rec
	if !do(&rec) {
		return s.rec, nil
	}
	return &rec, m.commit(change{container: &rec, events: events})
}

// insert commits a new record.
func (m *Manager) insert(c change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commit(c)
}

// discard makes path vanish at once and frees its space in the background.
func (m *Manager) discard(trash, path string) error {
	slot, err := store.Trash(trash, path)
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if slot != "" {
		m.trash.add(slot)
	}
	return nil
}
