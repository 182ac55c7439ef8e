package sandbox

import (
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
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/store"
)

// Open takes over the state at cfg.Root: it locks it, reads every record and asks every shim into a plan that changes
// nothing, and then does what the plan says: what was half made or half removed is torn down, exits that nobody saw
// are recorded, and what lives is watched again. A torn record is moved aside; one of a version that this build does
// not know is an error, and so is another server on the same state. The caller ends the manager with Close.
func Open(ctx context.Context, cfg Config, images Images, nets Networks, shims Shims) (*Manager, error) {
	m, err := newManager(cfg, images, nets, shims)
	if err != nil {
		return nil, err
	}
	if err := m.makeDirs(); err != nil {
		return nil, err
	}
	if m.lock, err = lockRoot(m.dirs.lock()); err != nil {
		return nil, err
	}
	plan, err := m.plan(ctx)
	if err != nil {
		m.lock.Close()
		return nil, err
	}
	if len(plan.Actions) > 0 {
		m.logger(ctx).Info("Recovered state", "plan", plan.String())
	}
	m.apply(ctx, plan)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ballast.fill()
	return m, nil
}

func newManager(cfg Config, images Images, nets Networks, shims Shims) (*Manager, error) {
	if cfg.BootID == "" {
		id, err := bootID()
		if err != nil {
			return nil, err
		}
		cfg.BootID = id
	}
	m := &Manager{cfg: cfg, dirs: layout{cfg.Root, cfg.State}, images: images, nets: nets, shims: shims, trash: newTrashman()}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.snap.Store(emptySnapshot())
	m.write, m.ballast.path = m.writeRecord, m.dirs.ballast()
	return m, nil
}

func (m *Manager) makeDirs() error {
	for _, d := range []string{m.dirs.pods(), m.dirs.runs(), m.dirs.rootTrash(), m.dirs.stateTrash()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
	}
	return nil
}

// Plan is what a start found and will do about it.
type Plan struct {
	Actions []Action
	found   *snapshot
	shims   map[string]Shim // by pod
	holders map[string]int  // pids by pod
}

// Action is one line of a plan.
type Action struct {
	Verb    string // "adopt", "end", "remove", "restart", "exit", "quarantine", "sweep"
	Subject string
	Why     string
	do      func(context.Context) error
}

// String prints the plan, a line for each action.
func (p *Plan) String() string {
	var b strings.Builder
	for _, a := range p.Actions {
		fmt.Fprintf(&b, "%s %s: %s\n", a.Verb, a.Subject, a.Why)
	}
	return b.String()
}

func (p *Plan) add(verb, subject, why string, do func(context.Context) error) {
	p.Actions = append(p.Actions, Action{verb, subject, why, do})
}

// plan reads records and shims. It changes nothing.
func (m *Manager) plan(ctx context.Context) (*Plan, error) {
	p := &Plan{found: emptySnapshot(), shims: map[string]Shim{}, holders: map[string]int{}}
	if err := m.readRecords(p); err != nil {
		return nil, err
	}
	for _, id := range sortedKeys(p.found.pods) {
		m.planPod(ctx, p, p.found.pods[id].rec)
	}
	return p, m.planOrphans(p)
}

func sortedKeys[T any](in map[string]T) []string {
	out := make([]string, 0, len(in))
	for k := range in {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (m *Manager) readRecords(p *Plan) error {
	dirs, err := readNames(m.dirs.pods())
	if err != nil {
		return err
	}
	for _, id := range dirs {
		var rec podRecord
		switch err := podSchema.Read(m.dirs.podRecord(id), &rec); {
		case errs.Is(err, errs.NotFound):
			p.add("sweep", "pod "+id, "it has no record", func(ctx context.Context) error {
				return errors.Join(m.sweepRun(ctx, id), m.discard(m.dirs.rootTrash(), m.dirs.pod(id)))
			})
			continue
		case errors.Is(err, store.ErrTorn):
			p.add("quarantine", "pod "+id, err.Error()+". The next start of the server ends it", func(ctx context.Context) error { return m.endTornPod(ctx, id) })
			continue
		case err != nil:
			return err
		}
		p.found.pods[id] = &podState{&rec, rec.public()}
		if err := m.readContainers(p, id); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) readContainers(p *Plan, podID string) error {
	names, err := readNames(m.dirs.containers(podID))
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(m.dirs.containers(podID), name)
		id, ok := strings.CutSuffix(name, ".json")
		if !ok {
			p.add("sweep", "file "+path, "it is no record", func(context.Context) error { return os.RemoveAll(path) })
			continue
		}
		var rec containerRecord
		switch err := containerSchema.Read(path, &rec); {
		case errors.Is(err, store.ErrTorn):
			p.add("quarantine", "container "+id, err.Error()+". The next start of the server ends it", func(ctx context.Context) error { return m.endTornContainer(ctx, podID, id) })
			continue
		case err != nil:
			return err
		}
		p.found.containers[id] = &containerState{&rec, rec.public()}
	}
	return nil
}

// readNames lists a directory; one that is missing is empty.
func readNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

func (m *Manager) planPod(ctx context.Context, p *Plan, rec *podRecord) {
	id := rec.ID
	if rec.BootID != m.cfg.BootID {
		m.planRebooted(p, rec)
		return
	}
	states := m.askShim(ctx, p, rec)
	for _, c := range p.found.containersOf(id) { // before the pod, whose end takes theirs for known
		m.planContainer(p, c, states)
	}
	switch {
	case rec.creating():
		p.add("remove", "pod "+id, "it was being made", func(ctx context.Context) error { return m.dropPod(ctx, id) })
	case rec.Removing:
		p.add("remove", "pod "+id, "it was being removed", func(ctx context.Context) error { return m.dropPod(ctx, id) })
	case rec.ready() && p.shims[id] == nil:
		p.add("end", "pod "+id, "its shim has died", func(ctx context.Context) error {
			m.podLost(id, "its shim has died")
			return m.teardownPod(ctx, id)
		})
	case rec.ready() && p.holders[id] == 0:
		p.add("end", "pod "+id, holderDied, func(context.Context) error { m.podLost(id, holderDied); return nil })
	case rec.ready():
	case rec.TornDownAt.IsZero() && rec.Message == holderDied && p.shims[id] != nil:
	case rec.TornDownAt.IsZero():
		p.add("end", "pod "+id, "it was being stopped", func(ctx context.Context) error { return m.teardownPod(ctx, id) })
	}
}

// askShim connects to the pod's shim, if it lives, and returns what it knows by container.
func (m *Manager) askShim(ctx context.Context, p *Plan, rec *podRecord) map[string]ProcState {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	shim, err := m.shims.Dial(ctx, rec.ID, m.dirs.run(rec.ID))
	if err != nil {
		return nil
	}
	states, err := shim.States(ctx)
	if err != nil {
		shim.Close()
		return nil
	}
	p.shims[rec.ID] = shim
	out := map[string]ProcState{}
	for _, st := range states {
		if st.ID == HolderID {
			if !st.Exited {
				p.holders[rec.ID] = st.Pid
			}
			continue
		}
		out[st.ID] = st
	}
	return out
}

func (m *Manager) planContainer(p *Plan, c *containerRecord, states map[string]ProcState) {
	id := c.ID
	st, known := states[id]
	remove := func(ctx context.Context) error { return m.dropContainer(ctx, id) }
	switch {
	case c.creating():
		p.add("remove", "container "+id, "it was being made", remove)
	case c.Removing:
		p.add("remove", "container "+id, "it was being removed", remove)
	case c.exited():
		if known {
			p.add("end", "container "+id, "its shim still knows of it", func(ctx context.Context) error { return m.teardownContainer(ctx, id) })
		}
	case c.running() && known && st.Exited:
		p.add("exit", "container "+id, "it ended while no server ran", func(context.Context) error {
			m.commitExit(id, st.Exit, "", "")
			return nil
		})
	case c.running() && !known && p.shims[c.PodID] != nil:
		p.add("exit", "container "+id, "its shim does not know of it", func(context.Context) error {
			m.recordLost(c)
			return nil
		})
	case c.running(): // adopted, or ended with its pod
	default:
		p.add("restart", "container "+id, "its start may not have been finished", func(ctx context.Context) error {
			if err := m.teardownContainer(ctx, id); err != nil {
				return err
			}
			m.live.container(id).reset()
			return nil
		})
	}
}

// planRebooted ends what another boot left: nothing of it runs.
func (m *Manager) planRebooted(p *Plan, rec *podRecord) {
	id := rec.ID
	const why = "the machine was restarted"
	if rec.creating() || rec.Removing {
		p.add("remove", "pod "+id, why, func(ctx context.Context) error { return m.dropPod(ctx, id) })
		return
	}
	for _, c := range p.found.containersOf(id) {
		cid := c.ID
		if c.creating() || c.Removing {
			p.add("remove", "container "+cid, why, func(ctx context.Context) error { return m.dropContainer(ctx, cid) })
		} else if !c.exited() {
			p.add("exit", "container "+cid, why, func(context.Context) error { return m.rebooted(cid, why) })
		}
	}
	if rec.TornDownAt.IsZero() {
		p.add("end", "pod "+id, why, func(ctx context.Context) error {
			m.podLost(id, why)
			return m.teardownPod(ctx, id)
		})
	}
}

func (m *Manager) rebooted(id, why string) error {
	_, err := m.updateContainer(id, func(r *containerRecord) bool {
		r.FinishedAt, r.ExitCode, r.Reason, r.Message = time.Now(), 255, "Unknown", why
		return true
	}, EventStopped)
	return err
}

// planOrphans finds what no record explains.
func (m *Manager) planOrphans(p *Plan) error {
	runs, err := readNames(m.dirs.runs())
	if err != nil {
		return err
	}
	for _, id := range runs {
		if p.found.pods[id] != nil {
			m.planLostContainers(p, id)
			continue
		}
		if _, err := os.Lstat(m.dirs.pod(id)); err == nil {
			continue
		}
		p.add("sweep", "run directory "+id, "no pod has it", func(ctx context.Context) error { return m.sweepRun(ctx, id) })
	}
	ids, err := m.images.Rootfses()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if p.found.containers[id] == nil {
			p.add("sweep", "root filesystem "+id, "no container has it", func(ctx context.Context) error { return m.images.RemoveRootfs(ctx, id) })
		}
	}
	for _, id := range m.images.Owners() {
		if p.found.containers[id] == nil {
			p.add("sweep", "image volumes of "+id, "no such container", func(context.Context) error { return m.images.ReleaseImage(id) })
		}
	}
	return nil
}

// apply does what the plan says. What fails is logged and tried again: by the background, the next call or the next start.
func (m *Manager) apply(ctx context.Context, p *Plan) {
	m.snap.Store(p.found)
	for id, shim := range p.shims {
		m.live.pod(id).set(shim, p.holders[id])
		m.watch(id, shim)
	}
	for _, a := range p.Actions {
		if err := m.perform(ctx, a); err != nil {
			m.logger(ctx).Error(err, "Recovered only in part", "action", a.Verb, "subject", a.Subject)
		}
	}
	s := m.snap.Load()
	live := make([]network.Pod, 0, len(s.pods))
	for id, pod := range s.pods {
		if pod.rec.TornDownAt.IsZero() {
			live = append(live, pod.rec.network(pod.rec.netns()))
		}
		if !pod.rec.ready() && pod.rec.TornDownAt.IsZero() && pod.rec.Message != holderDied {
			m.retryTeardown(id)
		}
	}
	if err := m.nets.GC(ctx, live); err != nil {
		m.logger(ctx).Error(err, "Left network resources without an owner")
	}
	for _, id := range sortedKeys(s.pods) {
		m.sweepTemp(id)
	}
	m.trash.sweep(m.dirs.rootTrash())
	m.trash.sweep(m.dirs.stateTrash())
	m.trash.wait()
}

// perform bounds an action: a start that hangs on one pod serves none.
func (m *Manager) perform(ctx context.Context, a Action) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	return a.do(ctx)
}

// recoverTime bounds one action of a start. What it leaves undone is tried again in the background.
const recoverTime = 30 * time.Second

func (m *Manager) sweepTemp(podID string) {
	for _, dir := range []string{m.dirs.pod(podID), m.dirs.containers(podID), m.dirs.run(podID)} {
		_ = store.SweepTemp(dir) // a missing directory has none
	}
}
