package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// machine is a fake of everything below the sandbox that outlives a manager: processes, cgroups, root filesystems and
// networks. Its three faces are the package's three seams.
type machine struct {
	mu       sync.Mutex
	rootfs   string // a directory that stands for every root filesystem
	nextPid  int
	shims    map[string]*shimProc // by run directory
	cgroups  map[string]bool
	limits   map[string]*specs.LinuxResources
	rootfses map[string]bool
	holds    map[string]bool
	attached map[string]bool
	log      []string

	fail   map[string]error // by call: "attach", "detach", "holder", "start", "rootfs"…
	onCall func(call string)
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return &machine{
		rootfs: dir, nextPid: 100, shims: map[string]*shimProc{}, cgroups: map[string]bool{}, limits: map[string]*specs.LinuxResources{},
		rootfses: map[string]bool{}, holds: map[string]bool{}, attached: map[string]bool{}, fail: map[string]error{},
	}
}

func (m *machine) call(name string) error {
	m.mu.Lock()
	m.log = append(m.log, name)
	err, hook := m.fail[name], m.onCall
	m.mu.Unlock()
	if hook != nil {
		hook(name)
	}
	return err
}

func (m *machine) setFail(call string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail[call] = err
}

func (m *machine) pid() int { m.nextPid++; return m.nextPid }

// proc is a process: the holder or a container's.
type proc struct {
	id      string
	pid     int
	cgroup  string
	started time.Time
	exit    *Exit
	ignores bool // SIGTERM
}

// shimProc is a shim; it lives on when the manager that spawned it is gone.
type shimProc struct {
	m     *machine
	id    string
	dir   string
	pid   int
	procs map[string]*proc
	done  chan struct{}
	conns []*shimConn
}

func (s *shimProc) alive() bool { return !isClosed(s.done) }

// ended notes the end of a process and tells every connection. m.mu is held.
func (s *shimProc) ended(p *proc, e Exit) {
	if p.exit != nil {
		return
	}
	p.exit = &e
	if !s.alive() {
		return
	}
	for _, c := range s.conns {
		c.tell(ShimEvent{p.id, e})
	}
}

// die ends the shim alone: what it ran goes on without it. m.mu is held.
func (s *shimProc) die() {
	if !s.alive() {
		return
	}
	close(s.done)
	for _, c := range s.conns {
		c.shut()
	}
	s.conns = nil
}

func (m *machine) shimOf(podID string) *shimProc {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.shims {
		if s.id == podID && s.alive() {
			return s
		}
	}
	return nil
}

// exit ends a container by itself.
func (m *machine) exit(id string, code int32, oom bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.shims {
		if p := s.procs[id]; p != nil {
			s.ended(p, Exit{Code: code, At: time.Now(), OOMKilled: oom})
		}
	}
}

func (m *machine) killShim(podID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.shims {
		if s.id == podID {
			s.die()
		}
	}
}

func (m *machine) running(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.shims {
		if p := s.procs[id]; p != nil && p.exit == nil {
			return true
		}
	}
	return false
}

// Spawn and the rest are Shims.
func (m *machine) Spawn(_ context.Context, podID, dir string, _ bool) (Shim, error) {
	if err := m.call("spawn"); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &shimProc{m: m, id: podID, dir: dir, pid: m.pid(), procs: map[string]*proc{}, done: make(chan struct{})}
	m.shims[dir] = s
	return s.connect(), nil
}

func (s *shimProc) connect() *shimConn {
	c := &shimConn{s: s, events: make(chan ShimEvent, 1000)}
	s.conns = append(s.conns, c)
	return c
}

func (m *machine) Dial(_ context.Context, _, dir string) (Shim, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.shims[dir]
	if s == nil || !s.alive() {
		return nil, errs.New(errs.NotFound, "no shim at %s", dir)
	}
	return s.connect(), nil
}

func (m *machine) EndShim(_ context.Context, podID string, _ int) error {
	if m.shimOf(podID) != nil {
		m.killShim(podID)
	}
	return nil
}

func (m *machine) ExitRecord(dir string) (Exit, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.shims[filepath.Dir(dir)]
	if s == nil || !s.alive() && s.procs[filepath.Base(dir)] == nil {
		return Exit{}, false
	}
	p := s.procs[filepath.Base(dir)]
	if p == nil || p.exit == nil || p.exit.Code == 137 {
		return Exit{}, false
	}
	return *p.exit, true
}

func (m *machine) MakeCgroup(_ context.Context, path string, res *specs.LinuxResources) error {
	if err := m.call("cgroup"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := path; p != "/" && p != "/test"; p = filepath.Dir(p) {
		m.cgroups[p] = true
	}
	m.limits[path] = res
	return nil
}

func (m *machine) UpdateCgroup(_ context.Context, path string, res *specs.LinuxResources, _ *int) error {
	if err := m.call("update"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.cgroups[path] {
		return errs.New(errs.NotFound, "cgroup %s", path)
	}
	m.limits[path] = res
	return nil
}

func (m *machine) RemoveCgroup(_ context.Context, path string) error {
	if err := m.call("rmcgroup"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	within := func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") }
	for _, s := range m.shims {
		for _, p := range s.procs {
			if within(p.cgroup) {
				s.ended(p, Exit{Code: 137, At: time.Now()})
			}
		}
	}
	for p := range m.cgroups {
		if within(p) {
			delete(m.cgroups, p)
		}
	}
	return nil
}

func (m *machine) CgroupOffer(string) (*cgroup.Offer, error) {
	return &cgroup.Offer{Cpus: "0-1", Mems: "0", PageSizes: []string{"2MB"}, Unified: []string{"memory.high"}}, nil
}

func (m *machine) CgroupExists(path string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cgroups[path]
}

func (m *machine) TrimCgroup(_ context.Context, path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	within := func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") }
	for _, s := range m.shims {
		for _, p := range s.procs {
			if p.exit == nil && within(p.cgroup) {
				return nil
			}
		}
	}
	for p := range m.cgroups {
		if within(p) {
			delete(m.cgroups, p)
		}
	}
	return nil
}

func (m *machine) Namespace(int, string) (*os.File, error) { return os.Open(m.rootfs) }

func (m *machine) MakeNetns() (*os.File, error) { return os.Open(m.rootfs) }

func (m *machine) Shm(string, bool) string { return "/dev/shm" }

func (m *machine) Connect(context.Context, int, int32) (net.Conn, error) {
	a, b := net.Pipe()
	go func() { defer b.Close(); _, _ = io.Copy(b, b) }()
	return a, nil
}

func (m *machine) Audit(_ context.Context, live []LivePod) ([]Problem, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	shims, procs, cgroups := map[int]bool{}, map[int]bool{}, map[string]bool{}
	for _, p := range live {
		if p.ShimPid != 0 {
			shims[p.ShimPid] = true
		}
		procs[p.HolderPid] = true
		if p.CgroupPath != "" {
			cgroups[p.CgroupPath], cgroups[p.Parent] = true, true
		}
		for _, c := range p.Containers {
			procs[c.Pid] = true
			if c.CgroupPath != "" {
				cgroups[c.CgroupPath] = true
			}
		}
	}
	var out []Problem
	for _, s := range m.shims {
		if s.alive() && !shims[s.pid] {
			out = append(out, Problem{"process", fmt.Sprint("shim ", s.pid), "no pod has it"})
		}
		for _, p := range s.procs {
			if p.exit == nil && !procs[p.pid] {
				out = append(out, Problem{"process", fmt.Sprint(p.id, " ", p.pid), "no record has it"})
			}
		}
	}
	above := func(c string) bool { // of a pod's: made on the way; a server's own slice stays
		for p := range cgroups {
			if strings.HasPrefix(p, c+"/") {
				return true
			}
		}
		return c == "/test.slice"
	}
	for c := range m.cgroups {
		if !cgroups[c] && !above(c) {
			out = append(out, Problem{"cgroup", c, "nothing has it"})
		}
	}
	return append(out, m.missing(live)...), nil
}

// missing finds what records say and the machine does not have. m.mu is held.
func (m *machine) missing(live []LivePod) []Problem {
	var out []Problem
	alive := map[int]bool{0: true}
	for _, s := range m.shims {
		alive[s.pid] = s.alive()
		for _, p := range s.procs {
			alive[p.pid] = p.exit == nil
		}
	}
	for _, p := range live {
		if !alive[p.ShimPid] || !alive[p.HolderPid] {
			out = append(out, Problem{"process", p.ID, "its shim or holder is dead"})
		}
		for _, c := range p.Containers {
			if !alive[c.Pid] {
				out = append(out, Problem{"process", c.ID, "it is recorded as running and dead"})
			}
		}
	}
	return out
}
