package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-server/cri-server/pkg/network"
)

// Check compares the records with the machine and lists what does not agree: what is there without a record, and what
// a record says and is not there. It changes nothing. Objects that are being made or ended while it looks may show.
func (m *Manager) Check(ctx context.Context) ([]Problem, error) {
	m.trash.wait()
	s := m.snap.Load()
	problems, err := m.audit(ctx, s)
	return append(problems, m.auditDisk(s)...), err
}

// Audit is Check for a state whose server does not run, or is another process: it reads the records and locks nothing.
func Audit(ctx context.Context, cfg Config, images Images, nets Networks, shims Shims) ([]Problem, error) {
	m, err := newManager(cfg, images, nets, shims)
	if err != nil {
		return nil, err
	}
	defer m.cancel()
	p := &Plan{found: emptySnapshot()}
	if err := m.readRecords(p); err != nil {
		return nil, err
	}
	problems, err := m.audit(ctx, p.found)
	for _, a := range p.Actions {
		problems = append(problems, Problem{"record", a.Subject, a.Why})
	}
	return problems, err
}

func (m *Manager) audit(ctx context.Context, s *snapshot) ([]Problem, error) {
	var live []LivePod
	var nets []network.Pod
	for _, id := range sortedKeys(s.pods) {
		rec := s.pods[id].rec
		live = append(live, m.livePodOf(s, rec))
		if rec.TornDownAt.IsZero() {
			nets = append(nets, rec.network(rec.netns()))
		}
	}
	out := m.auditFiles(s)
	found, err := m.shims.Audit(ctx, live)
	out = append(out, found...)
	left, nerr := m.nets.Leftovers(ctx, nets)
	for _, l := range left {
		out = append(out, Problem{"network", l, "no pod owns it"})
	}
	images, ierr := m.auditImages(ctx, s)
	out = append(out, m.auditTorn()...)
	return append(out, images...), errors.Join(err, nerr, ierr)
}

func (m *Manager) livePodOf(s *snapshot, rec *podRecord) LivePod {
	p := LivePod{ID: rec.ID, Dir: m.dirs.run(rec.ID), Parent: rec.CgroupParent}
	if !rec.TornDownAt.IsZero() {
		p.Dir, p.Parent, p.Gone = "", "", []string{rec.CgroupPath}
		for _, c := range s.containersOf(rec.ID) {
			p.Gone = append(p.Gone, c.CgroupPath)
		}
		return p
	}
	p.CgroupPath, p.ShimPid, p.Over = rec.CgroupPath, rec.ShimPid, !rec.ready()
	if !p.Over {
		p.HolderPid = rec.HolderPid
	}
	for _, c := range s.containersOf(rec.ID) {
		l := LiveContainer{ID: c.ID, CgroupPath: c.CgroupPath}
		if c.running() {
			l.Pid = c.Pid
		}
		p.Containers = append(p.Containers, l)
	}
	return p
}

// auditFiles looks for files without an owner in the state directories, and for owners without files.
func (m *Manager) auditFiles(s *snapshot) []Problem {
	var out []Problem
	bad := func(kind, subject, format string, args ...any) {
		out = append(out, Problem{kind, subject, fmt.Sprintf(format, args...)})
	}
	for _, id := range dirNames(m.dirs.pods()) {
		if s.pods[id] == nil {
			bad("record", m.dirs.pod(id), "no pod has this directory")
			continue
		}
		for _, name := range dirNames(m.dirs.pod(id)) {
			if name != "pod.json" && name != "containers" {
				bad("record", filepath.Join(m.dirs.pod(id), name), "not a file of a pod")
			}
		}
		for _, name := range dirNames(m.dirs.containers(id)) {
			if cid, ok := strings.CutSuffix(name, ".json"); !ok || s.containers[cid] == nil {
				bad("record", filepath.Join(m.dirs.containers(id), name), "no container has this file")
			}
		}
	}
	for _, id := range dirNames(m.dirs.runs()) {
		p := s.pods[id]
		if p == nil || !p.rec.TornDownAt.IsZero() {
			bad("directory", m.dirs.run(id), "no live pod has it")
			continue
		}
		for _, name := range dirNames(m.dirs.run(id)) {
			st, err := os.Lstat(filepath.Join(m.dirs.run(id), name))
			if err == nil && st.IsDir() && len(name) == idLength && s.containers[name] == nil {
				bad("directory", m.dirs.bundle(id, name), "no container has it")
			}
		}
	}
	for _, dir := range []string{m.dirs.rootTrash(), m.dirs.stateTrash()} {
		for _, name := range dirNames(dir) {
			bad("directory", filepath.Join(dir, name), "left in the trash")
		}
	}
	for id, p := range s.pods {
		if _, err := os.Lstat(m.dirs.run(id)); p.rec.ready() && err != nil {
			bad("directory", m.dirs.run(id), "pod %s is ready and has no run directory: %v", id, err)
		}
	}
	return out
}

const idLength = 64

func dirNames(dir string) []string {
	names, _ := readNames(dir) // one that cannot be read shows by what is missing from it
	return names
}

func (m *Manager) auditImages(ctx context.Context, s *snapshot) ([]Problem, error) {
	var out []Problem
	ids, err := m.images.Rootfses()
	has := map[string]bool{}
	for _, id := range ids {
		has[id] = true
		if s.containers[id] == nil {
			out = append(out, Problem{"directory", "root filesystem " + id, "no container has it"})
		}
	}
	for id, c := range s.containers {
		if err == nil && !has[id] && !c.rec.creating() && !c.rec.Removing {
			out = append(out, Problem{"record", "container " + id, "it has no root filesystem"})
		}
	}
	for _, id := range m.images.Owners() {
		if s.containers[id] == nil {
			out = append(out, Problem{"blob", "image volumes of " + id, "no such container"})
		}
	}
	torn, cerr := m.images.Check(ctx, false)
	for _, t := range torn {
		out = append(out, Problem{"blob", t, "the image store does not bear out its records"})
	}
	return out, errors.Join(err, cerr)
}
