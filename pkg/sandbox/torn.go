package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/store"
)

// A record that a disk has torn says nothing that could be trusted. Whose it was is ended, as far as other traces lead
// to it, and the file itself is kept for whoever wants to know what the disk did: it explains nothing on the machine
// any more, so an audit speaks of it as a note and not as a problem.

// maxTorn is how many torn records are kept.
const maxTorn = 16

// endTornPod ends what the pod of a torn record may have, which only its run directory tells, and keeps the record.
func (m *Manager) endTornPod(ctx context.Context, id string) error {
	if err := m.sweepRun(ctx, id); err != nil {
		return err // the record stays, and with it the reason to try again
	}
	if err := m.keepTorn(m.dirs.podRecord(id), "pod-"+id); err != nil {
		return err
	}
	return m.discard(m.dirs.rootTrash(), m.dirs.pod(id))
}

// endTornContainer is endTornPod for a container.
func (m *Manager) endTornContainer(ctx context.Context, podID, id string) error {
	if err := m.sweepContainer(ctx, podID, id); err != nil {
		return err
	}
	return m.keepTorn(m.dirs.container(podID, id), "container-"+id)
}

// planLostContainers ends the containers of a pod whose records the disk has lost whole: their bundles are there.
func (m *Manager) planLostContainers(p *Plan, podID string) {
	for _, id := range dirNames(m.dirs.run(podID)) {
		_, err := os.Lstat(m.dirs.container(podID, id)) // a torn one is planned for
		if len(id) != idLength || p.found.containers[id] != nil || err == nil {
			continue
		}
		p.add("sweep", "container "+id, "it has no record", func(ctx context.Context) error { return m.sweepContainer(ctx, podID, id) })
	}
}

// keepTorn moves a torn record away, and drops the oldest of those that are too many.
func (m *Manager) keepTorn(path, name string) error {
	if err := os.MkdirAll(m.dirs.torn(), 0o700); err != nil {
		return fmt.Errorf("keep torn record %s: %w", path, err)
	}
	to := filepath.Join(m.dirs.torn(), name+".json")
	if err := os.Rename(path, to); err != nil {
		return fmt.Errorf("keep torn record %s: %w", path, err)
	}
	now := time.Now()
	_ = os.Chtimes(to, now, now) // the order of their discovery
	kept := m.tornRecords()
	for len(kept) > maxTorn {
		_ = os.Remove(kept[0])
		kept = kept[1:]
	}
	return nil
}

// tornRecords lists the kept records, the oldest first.
func (m *Manager) tornRecords() []string {
	type file struct {
		path string
		at   time.Time
	}
	var files []file
	for _, name := range dirNames(m.dirs.torn()) {
		path := filepath.Join(m.dirs.torn(), name)
		if st, err := os.Lstat(path); err == nil {
			files = append(files, file{path, st.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.path, b.path)) })
	var out []string
	for _, f := range files {
		out = append(out, f.path)
	}
	return out
}

// auditTorn tells of the kept records.
func (m *Manager) auditTorn() []Problem {
	var out []Problem
	for _, path := range m.tornRecords() {
		out = append(out, Problem{Note, path, "this record was torn on the disk; what it named was ended, and nothing else needs it. Remove the file when you have seen it"})
	}
	return out
}

// auditDisk reads the records of what the server knows: the disk may have lost what the server still has in memory, and
// would miss at its next start.
func (m *Manager) auditDisk(s *snapshot) []Problem {
	var out []Problem
	look := func(path string, read func() error, known func() bool) {
		err := read()
		if err == nil || errors.Is(err, fs.ErrNotExist) && !known() || errs.Is(err, errs.NotFound) && !known() {
			return
		}
		why := err.Error()
		if errors.Is(err, store.ErrTorn) {
			why = "it is torn on the disk"
		}
		out = append(out, Problem{"record", path, why + ". The server goes on from memory until its next start, which will end what the record names. Remove the pod, and look after the disk"})
	}
	for id := range s.pods {
		path := m.dirs.podRecord(id)
		look(path, func() error { return podSchema.Read(path, &podRecord{}) }, func() bool { return m.snap.Load().pods[id] != nil })
	}
	for id, c := range s.containers {
		path := m.dirs.container(c.rec.PodID, id)
		look(path, func() error { return containerSchema.Read(path, &containerRecord{}) }, func() bool { return m.snap.Load().containers[id] != nil })
	}
	return out
}
