//go:build root

package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cri-server/cri-server/internal/testroot"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(crashEnv); job != "" {
		if err := crashChild(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testroot.Main(m)
}

// host is one server's network on the test's host.
type host struct {
	*Manager
	t   testing.TB
	dir string
}

func newHost(t testing.TB, change func(*Config)) *host {
	t.Helper()
	testroot.NeedRoot(t)
	dir := t.TempDir()
	cfg := Config{ConfDir: dir + "/net.d", BinDirs: []string{dir + "/bin"}, CacheDir: dir + "/cache", StateDir: dir + "/state", NetnsDir: dir + "/netns",
		Suffix: fmt.Sprintf("t%06x", time.Now().UnixNano()&0xffffff)}
	for _, d := range []string{cfg.ConfDir, cfg.BinDirs[0]} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(&cfg)
	}
	m, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{Manager: m, t: t, dir: dir}
	t.Cleanup(func() {
		left, err := h.Leftovers(context.Background(), nil) // of the manager that is open by then
		if err != nil || len(left) > 0 {
			t.Errorf("leftovers: %v, %v", left, err)
		}
		if err := h.RemoveDefault(context.Background()); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func defaultNetwork(c *Config) { c.DefaultNetwork.Enabled = true }

func dualStack(c *Config) {
	c.DefaultNetwork.Enabled = true
	c.DefaultNetwork.Subnets = []netip.Prefix{netip.MustParsePrefix(DefaultSubnet), netip.MustParsePrefix("fd5c:7269::/48")}
}

var podNumber struct {
	sync.Mutex
	n int
}

// holder is a process in a network namespace of its own.
type holder struct {
	stop func()
	Pod  Pod
}

func newPod(t testing.TB, ports ...PortMapping) *holder {
	t.Helper()
	return newPodIn(t, []string{"unshare", "--net"}, ports...)
}

func newPodIn(t testing.TB, unshare []string, ports ...PortMapping) *holder {
	t.Helper()
	podNumber.Lock()
	podNumber.n++
	n := podNumber.n
	podNumber.Unlock()
	cmd := exec.Command(unshare[0], append(unshare[1:], "sh", "-c", "echo up; read x")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	h := &holder{stop: func() { once.Do(func() { in.Close(); cmd.Wait() }) }, Pod: Pod{ID: fmt.Sprintf("%064x", n), Name: fmt.Sprintf("pod%d", n), Namespace: "test", UID: fmt.Sprintf("uid-%d", n),
		Netns: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), Ports: ports}}
	t.Cleanup(h.stop)
	return h
}

// newNamedPod is a network namespace with a name and no process.
func newNamedPod(t testing.TB, ports ...PortMapping) *holder {
	t.Helper()
	podNumber.Lock()
	podNumber.n++
	n := podNumber.n
	podNumber.Unlock()
	name := fmt.Sprintf("named%d", n)
	sh(t, "ip", "netns", "add", name)
	t.Cleanup(func() { sh(t, "ip", "netns", "del", name) })
	return &holder{stop: func() {}, Pod: Pod{ID: fmt.Sprintf("%064x", n), Name: name, Namespace: "test", UID: name, Netns: "/run/netns/" + name, Ports: ports}}
}

func (h *holder) run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := h.try(args...)
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return out
}

func (h *holder) try(args ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"--net=" + h.Pod.Netns, "--"}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (h *host) attach(p *holder) Result {
	h.t.Helper()
	res, err := h.Attach(context.Background(), p.Pod)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { h.detach(p) })
	return res
}

func (h *host) detach(p *holder) {
	h.t.Helper()
	if err := h.Detach(context.Background(), p.Pod); err != nil {
		h.t.Error(err)
	}
}

func (h *host) conf(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, "net.d", name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

const dialTimeout = 2 * time.Second

func sh(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}
