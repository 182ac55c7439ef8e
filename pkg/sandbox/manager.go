package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/oci"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Config says where a manager keeps its state and how its pods are made.
type Config struct {
	Root       string   // records: /var/lib/cri-server
	State      string   // what a reboot may lose: /run/cri-server
	CgroupRoot string   // cgroup under which pods without a cgroup_parent go, e.g. "/cri-server"
	Systemd    bool     // containers are scopes of systemd's, and a cgroup_parent is a slice
	Handlers   []string // runtime handlers a pod may ask for beside ""
	BootID     string   // of this boot; "" reads the kernel's
	// Translate carries what pkg/oci has to know of the machine and the configuration beside the request.
	Translate Translate
	// OnStep, when set, hears how long each step of a job took. It must not block.
	OnStep func(job, step string, took time.Duration, err error)
}

// Translate are the parts of an oci.ContainerInput that are the same for every container.
type Translate struct {
	Defaults oci.Defaults
	Host     oci.HostFacts
	CDI      oci.CDI
}

// Manager decides and records the life of every pod and container. All methods may be called at the same time.
// Errors carry the kinds of pkg/errs.
type Manager struct {
	cfg    Config
	dirs   layout
	images Images
	nets   Networks
	shims  Shims

	ctx    context.Context //nolint:containedctx // ends with the manager, not with a request
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// closing keeps goroutines from starting while Close waits for them.
	closing sync.Mutex
	lock    *os.File // flock on the state

	snap    atomic.Pointer[snapshot]
	mu      sync.Mutex         // one commit at a time
	write   func(change) error // writeRecord, but for tests
	ballast ballast
	events  broker
	ops     opLocks
	trims   sync.RWMutex // cgroups above pods are not removed while a pod is put below them
	joins   flights
	trash   *trashman
	live    liveSet
}

// Close ends the manager and waits for what it was doing. Pods go on: their shims keep them. Without any, the
// server's own cgroup goes too.
func (m *Manager) Close() error {
	m.closing.Lock()
	m.cancel()
	m.closing.Unlock()
	m.wg.Wait()
	m.live.closeAll()
	m.trash.wait()
	var err error
	if m.cfg.CgroupRoot != "" && !m.anyLive() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err = m.trimOwn(ctx)
	}
	return errors.Join(err, m.lock.Close())
}

func (m *Manager) anyLive() bool {
	for _, p := range m.snap.Load().pods {
		if p.rec.TornDownAt.IsZero() {
			return true
		}
	}
	return false
}

// goDo runs f on a goroutine that Close waits for. It reports false, and runs nothing, once the manager is closing.
func (m *Manager) goDo(f func()) bool {
	m.closing.Lock()
	defer m.closing.Unlock()
	if m.ctx.Err() != nil {
		return false
	}
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		f()
	}()
	return true
}

func errClosing() error {
	return errs.New(errs.Unavailable, "this server is shutting down. Retry")
}

func (m *Manager) stepped(job, step string, took time.Duration, err error) {
	if m.cfg.OnStep != nil {
		m.cfg.OnStep(job, step, took, err)
	}
}

// Pods returns a snapshot of every pod, the newest first. Pods that are being created are not in it.
func (m *Manager) Pods() []*Pod {
	s := m.snap.Load()
	out := make([]*Pod, 0, len(s.pods))
	for _, p := range s.pods {
		if !p.rec.creating() {
			out = append(out, p.pub)
		}
	}
	slices.SortFunc(out, func(a, b *Pod) int { return newest(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	return out
}

// Containers returns a snapshot of every container, the newest first.
func (m *Manager) Containers() []*Container {
	s := m.snap.Load()
	out := make([]*Container, 0, len(s.containers))
	for _, c := range s.containers {
		if !c.rec.creating() {
			out = append(out, c.pub)
		}
	}
	slices.SortFunc(out, func(a, b *Container) int { return newest(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	return out
}

func newest(a, b time.Time, aID, bID string) int {
	if c := b.Compare(a); c != 0 {
		return c
	}
	return strings.Compare(aID, bID)
}

// Pod finds a pod by ID or unambiguous prefix; errs.NotFound when there is none.
func (m *Manager) Pod(id string) (*Pod, error) {
	s := m.snap.Load()
	p, err := find(id, "pod", s.pods, func(p *podState) bool { return !p.rec.creating() })
	if err != nil {
		return nil, err
	}
	return p.pub, nil
}

// Container finds a container by ID or unambiguous prefix; errs.NotFound when there is none.
func (m *Manager) Container(id string) (*Container, error) {
	s := m.snap.Load()
	c, err := find(id, "container", s.containers, func(c *containerState) bool { return !c.rec.creating() })
	if err != nil {
		return nil, err
	}
	return c.pub, nil
}

func find[T any](id, noun string, in map[string]T, visible func(T) bool) (T, error) {
	var zero, found T
	if v, ok := in[id]; ok && visible(v) {
		return v, nil
	}
	if id == "" {
		return zero, errs.New(errs.NotFound, "%s %q: no such %s, the ID is empty", noun, id, noun)
	}
	n := 0
	for k, v := range in {
		if strings.HasPrefix(k, id) && visible(v) {
			found = v
			n++
		}
	}
	switch n {
	case 0:
		return zero, errs.New(errs.NotFound, "%s %q: no such %s", noun, id, noun)
	case 1:
		return found, nil
	}
	return zero, errs.New(errs.Invalid, "%s %q: %d IDs begin with this. Give more of it", noun, id, n)
}

// podRec and containerRec resolve an ID or prefix to the record as it is now.
func (m *Manager) podRec(id string) (*podRecord, error) {
	p, err := m.Pod(id)
	if err != nil {
		return nil, err
	}
	if s := m.snap.Load().pods[p.ID]; s != nil {
		return s.rec, nil
	}
	return nil, errs.New(errs.NotFound, "pod %q: no such pod", id)
}

func (m *Manager) containerRec(id string) (*containerRecord, error) {
	c, err := m.Container(id)
	if err != nil {
		return nil, err
	}
	if s := m.snap.Load().containers[c.ID]; s != nil {
		return s.rec, nil
	}
	return nil, errs.New(errs.NotFound, "container %q: no such container", id)
}

// newID returns 256 random bits in hex.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// lockRoot keeps a second server away from the same state.
func lockRoot(path string) (*os.File, error) {
	f, err := sys.LockFile(path)
	if errors.Is(err, sys.ErrLocked) {
		return nil, errs.New(errs.Unavailable, "lock state (%s): another cri-server uses it. Stop that one, or choose another root", path)
	}
	return f, err
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// teardownTime bounds what nobody waits for any more.
const teardownTime = 2 * time.Minute

// detached is a context for undoing: it has the values of ctx, and a bound of its own. It ends with the manager,
// since after that the next start finishes the work from the records.
func (m *Manager) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
	stop := context.AfterFunc(m.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

func (m *Manager) logger(ctx context.Context) klog.Logger { return klog.FromContext(ctx) }
