//go:build root

package pods

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/internal/testroot"
)

// long bounds every wait for something that has to come: a slow machine may take its time, none waits for ever.
const long = time.Minute

// node is a server of bin/ and what it keeps in its directory.
type node struct {
	t      testing.TB
	ctx    context.Context
	dir    string
	group  string // below which its cgroups are, in every hierarchy
	logs   string
	config string // more of it, TOML
	down   bool

	conn *grpc.ClientConn
	rt   cri.RuntimeServiceClient
	img  cri.ImageServiceClient
}

var nodes int // made so far: each has names of its own

// newNode starts a server. When the test ends, hack/down must find nothing left.
func newNode(t testing.TB, config ...string) *node {
	t.Helper()
	n := idleNode(t, config...)
	n.up("")
	n.pull(busybox)
	return n
}

// idleNode is a node whose server has not been started.
func idleNode(t testing.TB, config ...string) *node {
	t.Helper()
	testroot.NeedRoot(t)
	if _, err := os.Stat("../../bin/cri-server"); err != nil {
		t.Fatal("the executables are missing. Run make build.")
	}
	parent := os.Getenv("TMPDIR") // on a disk: overlays do not go on every temporary filesystem
	if parent == "" {
		parent = "/var/tmp"
	}
	tmp, err := os.MkdirTemp(parent, "pods-")
	if err != nil {
		t.Fatal(err)
	}
	nodes++
	n := &node{t: t, ctx: context.Background(), dir: filepath.Join(tmp, "node"), logs: filepath.Join(tmp, "logs"), config: strings.Join(config, "\n"),
		group: filepath.Join(testroot.Cgroup(t), "node"+strconv.Itoa(nodes))}
	t.Cleanup(func() {
		n.end()
		os.RemoveAll(tmp)
	})
	return n
}

// end is hack/down, once.
func (n *node) end() {
	if n.down {
		return
	}
	n.down = true
	n.hangUp()
	if n.t.Failed() {
		if b, err := os.ReadFile(n.path("cri-server.log")); err == nil {
			n.t.Logf("the end of the server's log:\n%s", b[max(0, len(b)-4000):])
		}
	}
	out, err := exec.Command("../../hack/down", n.dir).CombinedOutput()
	if err != nil {
		n.t.Errorf("hack/down: %v: %s", err, out)
	}
}

func (n *node) path(elem ...string) string { return filepath.Join(append([]string{n.dir}, elem...)...) }

// up starts the server, to die at the fault if there is one, and connects to it.
func (n *node) up(fault string) {
	n.t.Helper()
	config := n.dir + ".toml"
	if err := os.WriteFile(config, fmt.Appendf(nil, "cgroup_root = %q\n%s", n.group, n.config), 0o600); err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.ctx, long)
	defer cancel()
	cmd := exec.CommandContext(ctx, "../../hack/up", n.dir)
	cmd.Env = append(os.Environ(), "CRI_CONFIG="+config, "CRI_MIRROR="+registryURL(n.t))
	if fault != "" {
		cmd.Env = append(cmd.Env, "CRI_SERVER_FAULT="+fault)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	socket, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("hack/up: %v: %s", err, &stderr)
	}
	n.dial(strings.TrimSpace(string(socket)))
}

// dial connects anew: a connection that saw its server die waits before it tries again.
func (n *node) dial(socket string) {
	n.t.Helper()
	n.hangUp()
	conn, err := grpc.NewClient("passthrough:///"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", addr)
		}))
	if err != nil {
		n.t.Fatal(err)
	}
	n.conn, n.rt, n.img = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
}

func (n *node) hangUp() {
	if n.conn != nil {
		n.conn.Close()
		n.conn = nil
	}
}

// pid is the server's.
func (n *node) pid() int {
	n.t.Helper()
	b, err := os.ReadFile(n.path("cri-server.pid"))
	if err != nil {
		n.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		n.t.Fatal(err)
	}
	return pid
}

// kill ends the server as a crash does.
func (n *node) kill() { n.t.Helper(); kill(n.t, n.pid()) }

// died waits for the server to die of its fault, and reports whether it does.
func (n *node) died() bool { n.t.Helper(); return gone(n.pid(), long) }

// kill sends SIGKILL and returns when the process is gone.
func kill(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatalf("kill process %d: %v", pid, err)
	}
	if !gone(pid, long) {
		t.Fatalf("process %d outlives SIGKILL", pid)
	}
}

// gone waits until the process has ended.
func gone(pid int, limit time.Duration) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err == unix.ESRCH
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(limit)
	for {
		k, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(deadline).Milliseconds())))
		if err != unix.EINTR {
			return err == nil && k == 1
		}
	}
}

// cli runs the operator's command line against the node.
func (n *node) cli(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(n.ctx, long)
	defer cancel()
	out, err := exec.CommandContext(ctx, "../../bin/cri-server", append([]string{"--config", n.path("server.toml"), "--config", n.path("more.toml")}, args...)...).CombinedOutput()
	return string(out), err
}

// check runs cri-server check, which must find nothing.
func (n *node) check() {
	n.t.Helper()
	if out, err := n.cli("check"); err != nil {
		n.t.Errorf("check: %v: %s", err, out)
	}
}

// eventually waits for ok to hold.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(long); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to this: %s", what)
		}
	}
}

// processes lists the processes of this test's PID namespace that are neither the test's nor the server's, nor dead.
func (n *node) processes() []string {
	var out []string
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range names {
		pid, _ := strconv.Atoi(filepath.Base(p))
		stat, err := os.ReadFile(p + "/stat")
		if err != nil || pid == 1 || pid == os.Getpid() || pid == n.pid() {
			continue
		}
		if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(f) == 0 || f[0] == "Z" || f[0] == "X" {
			continue
		}
		cmdline, _ := os.ReadFile(p + "/cmdline")
		out = append(out, fmt.Sprintf("process %d %.120q", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte(" "))))
	}
	return out
}

// nothing holds the machine to having nothing of a pod, by other means than the server's own.
func (n *node) nothing() {
	n.t.Helper()
	left := n.files()
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.HasPrefix(strings.Fields(line)[4], n.dir) {
			left = append(left, "mount "+line)
		}
	}
	left = append(left, n.cgroups()...)
	// What the kernel still does: links go with their namespace, a shim ends after it has said so.
	going := append(n.processes(), n.links()...)
	for deadline := time.Now().Add(10 * time.Second); len(going) > 0 && time.Now().Before(deadline); going = append(n.processes(), n.links()...) {
		time.Sleep(5 * time.Millisecond)
	}
	if left = append(left, going...); len(left) > 0 {
		n.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// files lists what lies where the files of pods and containers are.
func (n *node) files() (left []string) {
	n.t.Helper()
	for _, dir := range []string{"lib/pods", "run/pods", "lib/image/rootfs", "lib/image/owners", "lib/image/tmp", "netns", "lib/network/pods"} {
		names, err := os.ReadDir(n.path(dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			n.t.Error(err)
		}
		for _, e := range names {
			left = append(left, "file "+n.path(dir, e.Name()))
		}
	}
	return left
}

// links lists the hosts' ends of pods' links.
func (n *node) links() (left []string) {
	n.t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		n.t.Error(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "veth") {
			left = append(left, "link "+l.Name)
		}
	}
	return left
}

// cgroups lists the groups of pods and containers: their names, or those of the groups below, are ids.
func (n *node) cgroups() []string {
	var out []string
	seen := map[string]bool{}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		tops, _ := filepath.Glob(pattern + n.group)
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() && len(d.Name()) >= 64 && !seen[p] {
					seen[p] = true
					out = append(out, "cgroup "+p)
				}
				return nil
			})
		}
	}
	return out
}

// clean is check and nothing.
func (n *node) clean() { n.t.Helper(); n.check(); n.nothing() }
