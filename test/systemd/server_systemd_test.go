//go:build systemd

package systemd

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

const image = "registry.test/busybox:1"

// node is a scratch server with the systemd driver.
type node struct {
	t    *testing.T
	dir  string
	conn *grpc.ClientConn
	rt   cri.RuntimeServiceClient
	img  cri.ImageServiceClient
}

func newNode(t *testing.T) *node {
	t.Helper()
	tmp, err := os.MkdirTemp("", "node")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: filepath.Join(tmp, "node")}
	t.Cleanup(func() {
		n.hangUp()
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(n.dir, "cri-server.log"))
			t.Logf("the end of the server's log:\n%s", b[max(0, len(b)-4000):])
		}
		if b, _ := os.ReadFile(filepath.Join(n.dir, "cri-server.log")); bytes.Contains(b, []byte("in part")) {
			t.Errorf("a teardown was not finished: %s", b)
		}
		if out, err := exec.Command("../../hack/down", n.dir).CombinedOutput(); err != nil {
			t.Errorf("hack/down: %v: %s", err, out)
		}
		os.RemoveAll(tmp)
		if out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "cri-*.scope", "cri_server*.slice").Output(); err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("units are left: %v: %s", err, out)
		}
	})
	return n
}

// up starts the server, to die at the fault if there is one.
func (n *node) up(fault string) {
	n.t.Helper()
	n.hangUp()
	config := n.dir + ".toml"
	if err := os.WriteFile(config, []byte("cgroup_driver = \"auto\"\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("../../hack/up", n.dir)
	cmd.Env = append(os.Environ(), "CRI_CONFIG="+config, "CRI_MIRROR="+mirror(n.t), "CRI_SERVER_FAULT="+fault)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	socket, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("hack/up: %v: %s", err, &stderr)
	}
	n.conn, err = grpc.NewClient("passthrough:///"+strings.TrimSpace(string(socket)), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", addr)
		}))
	if err != nil {
		n.t.Fatal(err)
	}
	n.rt, n.img = cri.NewRuntimeServiceClient(n.conn), cri.NewImageServiceClient(n.conn)
}

func (n *node) hangUp() {
	if n.conn != nil {
		n.conn.Close()
		n.conn = nil
	}
}

// died waits for the server's end, after killing it with the signal if there is one.
func (n *node) died(sig unix.Signal) {
	n.t.Helper()
	var pid int
	b, err := os.ReadFile(filepath.Join(n.dir, "cri-server.pid"))
	if err == nil {
		_, err = fmt.Sscan(string(b), &pid)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if sig != 0 {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if k, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000); k == 1 {
			return
		}
	}
	n.t.Fatal("the server lives on")
}

var mirrorURL string

// mirror is the registry of the whole run.
func mirror(t *testing.T) string {
	t.Helper()
	if mirrorURL != "" {
		return mirrorURL
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	root := rootfs(t)
	err := filepath.WalkDir(filepath.Join(root, "bin"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		h := tar.Header{Typeflag: tar.TypeLink, Name: rel, Linkname: "bin/busybox", Mode: 0o755}
		if d.Name() == "busybox" {
			return nil
		}
		return tw.WriteHeader(&h)
	})
	if err != nil {
		t.Fatal(err)
	}
	whole := new(bytes.Buffer) // the file comes before its links
	first := tar.NewWriter(whole)
	busybox, err := os.ReadFile(filepath.Join(root, "bin/busybox"))
	if err != nil {
		t.Fatal(err)
	}
	_ = first.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))})
	_, _ = first.Write(busybox)
	_ = first.Flush()
	_ = tw.Close()
	whole.Write(buf.Bytes())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		cfg, _ := img.ConfigFile()
		cfg = cfg.DeepCopy()
		cfg.OS, cfg.Architecture, cfg.Config.Env = "linux", "amd64", []string{"PATH=/bin"}
		img, err = mutate.ConfigFile(img, cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	url := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)))).URL // ends with the process
	ref, err := name.ParseReference(strings.Replace(image, "registry.test", strings.TrimPrefix(url, "http://"), 1))
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	mirrorURL = url
	return url
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func podConfig(parent string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:    &cri.PodSandboxMetadata{Name: "p", Namespace: "default", Uid: "u" + parent},
		Annotations: map[string]string{"org.systemd.property.TimeoutStopUSec": "uint64 123456", "org.systemd.property.ExecStartPre": "'/bin/true'"},
		Linux:       &cri.LinuxPodSandboxConfig{CgroupParent: parent, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}}},
	}
}

func (n *node) pod(config *cri.PodSandboxConfig) string {
	n.t.Helper()
	r, err := n.rt.RunPodSandbox(n.t.Context(), &cri.RunPodSandboxRequest{Config: config})
	n.must(err)
	return r.PodSandboxId
}

func (n *node) container(pod string, config *cri.PodSandboxConfig, res *cri.LinuxContainerResources, command string) string {
	n.t.Helper()
	_, err := n.img.PullImage(n.t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	n.must(err)
	c, err := n.rt.CreateContainer(n.t.Context(), &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: image}, Command: []string{"/bin/sh", "-c", command}, Annotations: config.Annotations,
		Linux: &cri.LinuxContainerConfig{Resources: res, SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions}},
	}})
	n.must(err)
	_, err = n.rt.StartContainer(n.t.Context(), &cri.StartContainerRequest{ContainerId: c.ContainerId})
	n.must(err)
	return c.ContainerId
}

func (n *node) status(id string) *cri.ContainerStatus {
	n.t.Helper()
	r, err := n.rt.ContainerStatus(n.t.Context(), &cri.ContainerStatusRequest{ContainerId: id})
	n.must(err)
	return r.Status
}

func (n *node) remove(pod string) {
	n.t.Helper()
	_, err := n.rt.StopPodSandbox(n.t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: pod})
	n.must(err)
	_, err = n.rt.RemovePodSandbox(n.t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	n.must(err)
}

func (n *node) check() (string, error) {
	out, err := exec.Command("../../bin/cri-server", "--config", filepath.Join(n.dir, "server.toml"), "--config", filepath.Join(n.dir, "more.toml"), "check").CombinedOutput()
	return string(out), err
}

func TestServer(t *testing.T) {
	n := newNode(t)
	n.up("")
	rc, err := n.rt.RuntimeConfig(t.Context(), &cri.RuntimeConfigRequest{})
	n.must(err)
	if rc.Linux.CgroupDriver != cri.CgroupDriver_SYSTEMD {
		t.Errorf("the driver is %s", rc.Linux.CgroupDriver)
	}
	config := podConfig("kubepods-burstable-podabc.slice")
	pod := n.pod(config)
	const slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podabc.slice/"
	want(t, "cri-"+pod+".scope", "ActiveState", "active", "Slice", "kubepods-burstable-podabc.slice", "ControlGroup", slice+"cri-"+pod+".scope", "TimeoutStopUSec", "1min 30s")
	c := n.container(pod, config, &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20}, "exec sleep 1000")
	unit, group := "cri-"+c+".scope", slice+"cri-"+c+".scope"
	want(t, unit, "ActiveState", "active", "Delegate", "yes", "CPUQuotaPerSecUSec", "200ms", "TimeoutStopUSec", "1min 30s", "ControlGroup", group, "DevicePolicy", "strict")
	limit := "MemoryMax"
	if machine(t).Mode() != cgroup.V2 {
		limit = "MemoryLimit"
	}
	want(t, unit, limit, fmt.Sprint(64<<20))
	x, err := n.rt.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", "echo > /dev/null && echo $$"}, Timeout: 60})
	if err != nil || x.ExitCode != 0 {
		t.Errorf("exec: %v, %v", x, err)
	}
	_, err = n.rt.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{ContainerId: c, Linux: &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 128 << 20}})
	n.must(err)
	want(t, unit, "CPUQuotaPerSecUSec", "500ms", limit, fmt.Sprint(128<<20))
	if got := file(t, group, "memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(128<<20) {
		t.Errorf("memory is limited to %s", got)
	}
	own := n.pod(podConfig(""))
	want(t, "cri-"+own+".scope", "ActiveState", "active")

	n.died(unix.SIGKILL)
	n.up("")
	if st := n.status(c); st.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the server's death the container is %s", st.State)
	}
	if out, err := n.check(); err != nil {
		t.Errorf("check: %v: %s", err, out)
	}
	if out, err := exec.Command("systemd-run", "--unit=cri-left.scope", "--scope", "--description=cri-server (/cri-server-"+n.suffix()+"): left", "../../bin/cri-server",
		"--config", n.dir+"/server.toml", "--config", n.dir+"/more.toml", "check").CombinedOutput(); err == nil || !strings.Contains(string(out), "cri-left.scope") {
		t.Errorf("check of a left scope: %v: %s", err, out)
	}
	n.remove(own)
	n.remove(pod)
	gone(t, unit, group)
	gone(t, "cri-"+pod+".scope", slice)
	if _, err := n.rt.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: podConfig("/kubepods/podabc")}); err == nil {
		t.Error("a parent that is no slice is taken")
	}
}

// suffix is what sets the server apart from others.
func (n *node) suffix() string {
	out, err := exec.Command("sh", "-c", "printf %s '"+n.dir+"/lib' | sha256sum | cut -c1-8").Output()
	n.must(err)
	return strings.TrimSpace(string(out))
}

func TestServerOutOfMemory(t *testing.T) {
	n := newNode(t)
	n.up("")
	config := podConfig("kubepods-podoom.slice")
	pod := n.pod(config)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	events, err := n.rt.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	n.must(err)
	c := n.container(pod, config, &cri.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}, "x=0123456789abcdef; while :; do x=$x$x; done")
	for n.status(c).State == cri.ContainerState_CONTAINER_RUNNING {
		if _, err := events.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if st := n.status(c); st.ExitCode != 137 || st.Reason != "OOMKilled" {
		t.Errorf("it ended with %d, %s", st.ExitCode, st.Reason)
	}
	n.remove(pod)
}

// TestServerDies dies when systemd knows a scope whose program waits at its gate: of a pod, then of a container.
func TestServerDies(t *testing.T) {
	for _, fault := range []string{"host/adopted=kill", "host/adopted@2=kill"} {
		n := newNode(t)
		n.up(fault)
		config := podConfig("kubepods-poddie.slice")
		r, err := n.rt.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
		if strings.Contains(fault, "@2") {
			n.must(err)
			_, err = n.img.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
			n.must(err)
			c, err := n.rt.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: r.PodSandboxId, SandboxConfig: config, Config: &cri.ContainerConfig{
				Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: image}, Command: []string{"/bin/sleep", "1000"}}})
			n.must(err)
			if _, err := n.rt.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: c.ContainerId}); err == nil {
				t.Errorf("%s: started", fault)
			}
			n.died(0)
			n.up("")
			if out, err := n.check(); err != nil {
				t.Errorf("%s: check: %v: %s", fault, err, out)
			}
			want(t, "cri-"+c.ContainerId+".scope", "LoadState", "not-found")
			_, err = n.rt.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: c.ContainerId})
			n.must(err)
			want(t, "cri-"+c.ContainerId+".scope", "ActiveState", "active")
			n.remove(r.PodSandboxId)
			continue
		}
		if err == nil {
			t.Errorf("%s: the pod runs", fault)
		}
		n.died(0)
		n.up("")
		if out, err := n.check(); err != nil {
			t.Errorf("%s: check: %v: %s", fault, err, out)
		}
		n.remove(n.pod(config))
	}
}
