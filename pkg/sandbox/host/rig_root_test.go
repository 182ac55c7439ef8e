//go:build root

package host

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/oci"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" { // a daemon that is to die, already inside
		os.Exit(m.Run())
	}
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	if os.Getpid() == 1 {
		go reapOrphans()
	}
	testroot.Main(m)
}

// reapOrphans does what a machine's first process does, for the programs of shims that were killed: until they are
// reaped, the first process of their PID namespace cannot end. Shims are left to those who spawned them.
func reapOrphans() {
	for range time.Tick(20 * time.Millisecond) {
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			stat, _ := os.ReadFile(dir + "/stat")
			group, _ := os.ReadFile(dir + "/cgroup")
			if _, after, _ := bytes.Cut(stat, []byte(") ")); !bytes.HasPrefix(after, []byte("Z 1 ")) || !bytes.Contains(group, []byte("/pod")) {
				continue
			}
			if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
				_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			}
		}
	}
}

// rig is a whole node on real parts: images, network, machine and the manager on top.
type rig struct {
	t      testing.TB
	ctx    context.Context
	dir    string
	name   string // sets its cgroup and its network's names apart
	cfg    sandbox.Config
	m      *Machine
	images *image.Store
	nets   *network.Manager
	mgr    *sandbox.Manager
	onStep func(job, step string, took time.Duration, err error)
	ref    string // of the busybox image
	logs   string
	cdi    oci.CDI
}

var rigs int // made so far: each has names of its own

func newRig(t testing.TB) *rig {
	t.Helper()
	testroot.NeedRoot(t)
	dir, err := os.MkdirTemp(cmp.Or(os.Getenv("TMPDIR"), "/var/tmp"), "sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	rigs++
	r := &rig{t: t, ctx: context.Background(), dir: dir, name: fmt.Sprint("t", rigs), logs: filepath.Join(dir, "logs")}
	r.open()
	r.pull()
	t.Cleanup(func() {
		if r.mgr == nil {
			return
		}
		for _, p := range r.mgr.Pods() { // of a test that failed
			_ = r.mgr.RemovePod(r.ctx, p.ID)
		}
		r.close()
	})
	return r
}

// open starts the node on what its directory holds.
func (r *rig) open() {
	r.t.Helper()
	group := filepath.Join(testroot.Cgroup(r.t), r.name)
	root, state := filepath.Join(r.dir, "lib"), filepath.Join(r.dir, "run")
	var err error
	if r.m, err = New(Config{Runtime: testroot.Runtime(r.t), CgroupRoot: group, Root: root, State: state}); err != nil {
		r.t.Fatal(err)
	}
	if r.images, err = image.Open(r.ctx, image.Config{Root: root}); err != nil {
		r.t.Fatal(err)
	}
	r.nets, err = network.Open(network.Config{
		ConfDir: filepath.Join(r.dir, "net.d"), CacheDir: filepath.Join(r.dir, "cache"), StateDir: filepath.Join(root, "network"),
		NetnsDir: filepath.Join(r.dir, "netns"), Suffix: r.name, DefaultNetwork: network.DefaultNetwork{Enabled: true},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.cfg = sandbox.Config{
		Root: root, State: state, CgroupRoot: group,
		Translate: sandbox.Translate{Defaults: *oci.NewDefaults(), Host: *oci.ProbeHost(), CDI: r.cdi},
	}
	r.cfg.OnStep = r.onStep
	if r.mgr, err = sandbox.Open(r.ctx, r.cfg, r.images, r.nets, r.m); err != nil {
		r.t.Fatal(err)
	}
}

// close ends the node and leaves its pods running.
func (r *rig) close() {
	r.t.Helper()
	if err := r.mgr.Close(); err != nil {
		r.t.Error(err)
	}
	r.mgr = nil
	if err := errors.Join(r.nets.Close(), r.images.Close()); err != nil {
		r.t.Error(err)
	}
	r.m.Close()
}

func (r *rig) pull() {
	r.t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	r.t.Cleanup(srv.Close)
	r.ref = strings.TrimPrefix(srv.URL, "http://") + "/busybox:1"
	ref, err := name.ParseReference(r.ref, name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Write(ref, busybox(r.t)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.images.Pull(r.ctx, r.ref, image.PullOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

// busybox is an image of a static busybox and its links.
func busybox(t testing.TB) v1.Image {
	t.Helper()
	bin, err := os.ReadFile(testroot.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h *tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	add(&tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, bin)
	for _, applet := range []string{"sh", "sleep", "cat", "true", "false", "id", "ps", "hostname", "ls", "nc", "echo", "ip", "grep", "stat", "mount", "touch"} {
		add(&tar.Header{Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink}, nil)
	}
	add(&tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	add(&tar.Header{Name: "etc/group", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:\n"))
	add(&tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil)
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Config.Cmd = "linux", "amd64", []string{"sh"}
	cfg.Config.Env = []string{"PATH=/bin"}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

func (r *rig) podConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name, LogDirectory: filepath.Join(r.logs, name),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	}
}

func (r *rig) runPod(config *cri.PodSandboxConfig) string {
	r.t.Helper()
	id, err := r.mgr.RunPod(r.ctx, config, "")
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *rig) container(pod, name string, script string, edit ...func(*cri.ContainerConfig)) string {
	r.t.Helper()
	p, err := r.mgr.Pod(pod)
	if err != nil {
		r.t.Fatal(err)
	}
	ns := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: r.ref},
		Command: []string{"sh", "-c", script}, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: ns}},
	}
	for _, e := range edit {
		e(config)
	}
	id, err := r.mgr.CreateContainer(r.ctx, pod, config, p.Config)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.mgr.StartContainer(r.ctx, id); err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *rig) exec(id string, script string) string {
	r.t.Helper()
	out, errOut, code, err := r.mgr.ExecSync(r.ctx, id, []string{"sh", "-c", script}, 30*time.Second)
	if err != nil || code != 0 {
		r.t.Fatalf("exec %q: exit %d, %v, %s%s", script, code, err, out, errOut)
	}
	return strings.TrimSpace(string(out))
}

// await follows events until the container has exited.
func (r *rig) await(id string) *sandbox.Container {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	events := r.mgr.Subscribe(ctx)
	for {
		c, err := r.mgr.Container(id)
		if err != nil {
			r.t.Fatal(err)
		}
		if c.State() == sandbox.Exited {
			return c
		}
		if _, ok := <-events; !ok {
			r.t.Fatalf("container %s is %s, want exited", id, c.State())
		}
	}
}

func (r *rig) log(id string) string {
	r.t.Helper()
	c, err := r.mgr.Container(id)
	if err != nil {
		r.t.Fatal(err)
	}
	data, err := os.ReadFile(c.LogPath)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(data)
}

func (r *rig) clean() {
	r.t.Helper()
	problems, err := r.mgr.Check(r.ctx)
	if err != nil {
		r.t.Error(err)
	}
	for _, p := range problems {
		r.t.Errorf("check: %s %s: %s", p.Kind, p.Subject, p.Detail)
	}
}

// removeAll removes every pod and holds the machine to what it was.
func (r *rig) removeAll() {
	r.t.Helper()
	for _, p := range r.mgr.Pods() {
		if err := r.mgr.RemovePod(r.ctx, p.ID); err != nil {
			r.t.Error(err)
		}
	}
	r.clean()
	m := r.m
	r.close()
	if m.CgroupExists(r.cfg.CgroupRoot) {
		r.t.Error("the server's cgroup is left: ", fmt.Sprint(m.subtree(r.cfg.CgroupRoot)))
	}
}

var cgroupOptions cgroup.CreateOptions

func limits(pids, memory int64) *specs.LinuxResources {
	return &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}, Memory: &specs.LinuxMemory{Limit: &memory}}
}
