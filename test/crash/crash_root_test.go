//go:build root

package crash

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

func TestMain(m *testing.M) { testroot.Main(m) }

// call is a request that is interrupted at the points, after what it needs has been prepared.
type call struct {
	name    string
	points  []string
	prepare func(s *server)
	request func(s *server) error
}

func calls() []call {
	of := sandbox.FaultPoints()
	return []call{
		{"PullImage", image.PullSteps(), func(s *server) { s.must(s.pull()); s.publish("second") }, (*server).pull},
		{"RunPodSandbox", of["RunPodSandbox"], func(s *server) { s.must(s.pull()) }, (*server).run},
		{"CreateContainer", of["CreateContainer"], func(s *server) { s.must(s.pull()); s.must(s.run()) }, (*server).create},
		{"StartContainer", of["StartContainer"], func(s *server) { s.must(s.pull()); s.must(s.run()); s.must(s.create()) }, (*server).start},
		{"StopContainer", of["StopContainer"], (*server).running, (*server).stopContainer},
		{"StopPodSandbox", of["StopPodSandbox"], (*server).running, (*server).stop},
		{"RemoveContainer", of["RemoveContainer"], (*server).running, (*server).removeContainer},
		{"RemovePodSandbox", of["RemovePodSandbox"], (*server).running, (*server).remove},
	}
}

// TestRealServerDiesAtEveryStep holds the restarted server to three things: its audit finds nothing, the same request
// succeeds, and hack/down finds nothing when all is removed.
func TestRealServerDiesAtEveryStep(t *testing.T) {
	testroot.NeedRoot(t)
	for _, c := range calls() {
		for _, point := range c.points {
			t.Run(point, func(t *testing.T) {
				s := newServer(t)
				s.up("")
				c.prepare(s)
				s.end(syscall.SIGTERM)
				s.up(point)
				if err := c.request(s); err == nil {
					t.Errorf("the server answered, though it was to die at %s", point)
				}
				s.end(0)
				s.up("")
				if out, err := s.cri("check"); err != nil {
					t.Errorf("check after the crash: %v\n%s", err, out)
				}
				if err := c.request(s); err != nil {
					t.Errorf("the same request: %v", err)
				}
				s.down()
			})
		}
	}
}

// server is a scratch server and a client of it.
type server struct {
	t    *testing.T
	ctx  context.Context
	dir  string
	ref  string
	conn *grpc.ClientConn
	rt   cri.RuntimeServiceClient
	img  cri.ImageServiceClient
}

const repo = "../.."

func newServer(t *testing.T) *server {
	t.Helper()
	for _, exe := range []string{"cri-server", "cri-runtime"} {
		if _, err := os.Stat(filepath.Join(repo, "bin", exe)); err != nil {
			testroot.Skip(t, "bin/"+exe+" is not built (make build)")
		}
	}
	dir, err := os.MkdirTemp(os.Getenv("TMPDIR"), "cri-crash-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	s := &server{t: t, ctx: ctx, dir: filepath.Join(dir, "node")}
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	s.ref = strings.TrimPrefix(srv.URL, "http://") + "/crash:1"
	s.publish("first")
	return s
}

func (s *server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// publish gives the tag an image of busybox and a file with the text.
func (s *server) publish(text string) {
	s.t.Helper()
	bin, err := os.ReadFile(testroot.Busybox(s.t))
	s.must(err)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct {
		name string
		data []byte
	}{{"bin/sleep", bin}, {"etc/text", []byte(text)}} {
		s.must(w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.data)), Typeflag: tar.TypeReg}))
		_, err := w.Write(f.data)
		s.must(err)
	}
	s.must(w.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	s.must(err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	s.must(err)
	cfg, err := img.ConfigFile()
	s.must(err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Config.Cmd = "linux", "amd64", []string{"/bin/sleep", "1000"}
	img, err = mutate.ConfigFile(img, cfg)
	s.must(err)
	ref, err := name.ParseReference(s.ref, name.Insecure)
	s.must(err)
	s.must(remote.Write(ref, img))
}

// up starts the server, to die at the point if one is given, and connects.
func (s *server) up(point string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.ctx, filepath.Join(repo, "hack/up"), s.dir)
	if point != "" {
		cmd.Env = append(os.Environ(), fault.Env+"="+point+"=kill")
	}
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("hack/up: %v: %s", err, out)
	}
	s.conn, err = grpc.NewClient("unix://"+strings.TrimSpace(string(out)), grpc.WithTransportCredentials(insecure.NewCredentials()))
	s.must(err)
	s.rt, s.img = cri.NewRuntimeServiceClient(s.conn), cri.NewImageServiceClient(s.conn)
}

// end sends the signal, if any, and waits until the server has ended.
func (s *server) end(sig syscall.Signal) {
	s.t.Helper()
	s.conn.Close()
	data, err := os.ReadFile(filepath.Join(s.dir, "cri-server.pid"))
	s.must(err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	s.must(err)
	if sig != 0 {
		_ = syscall.Kill(pid, sig)
	}
	for deadline := time.Now().Add(30 * time.Second); running(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			s.t.Fatalf("the server (process %d) did not end", pid)
		}
	}
}

func running(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := data[bytes.LastIndexByte(data, ')')+1:]
	return len(rest) > 1 && rest[1] != 'Z'
}

// cri runs the operator's command line.
func (s *server) cri(args ...string) ([]byte, error) {
	args = append([]string{"--config", filepath.Join(s.dir, "server.toml")}, args...)
	return exec.CommandContext(s.ctx, filepath.Join(repo, "bin/cri-server"), args...).CombinedOutput()
}

func (s *server) down() {
	s.t.Helper()
	s.conn.Close()
	if out, err := exec.CommandContext(s.ctx, filepath.Join(repo, "hack/down"), s.dir).CombinedOutput(); err != nil {
		s.t.Errorf("hack/down: %v\n%s", err, out)
	}
}

func (s *server) pull() error {
	_, err := s.img.PullImage(s.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: s.ref}})
	return err
}

func (s *server) podConfig() *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "crash", Namespace: "default", Uid: "1"}, LogDirectory: filepath.Join(s.dir, "logs"),
		PortMappings: []*cri.PortMapping{{ContainerPort: 80, HostPort: 18080}},
		Linux:        &cri.LinuxPodSandboxConfig{},
	}
}

func (s *server) run() error {
	_, err := s.rt.RunPodSandbox(s.ctx, &cri.RunPodSandboxRequest{Config: s.podConfig()})
	return err
}

func (s *server) pod() string {
	s.t.Helper()
	list, err := s.rt.ListPodSandbox(s.ctx, &cri.ListPodSandboxRequest{})
	if err != nil || len(list.Items) == 0 {
		return "none"
	}
	return list.Items[0].Id
}

func (s *server) container() string {
	s.t.Helper()
	list, err := s.rt.ListContainers(s.ctx, &cri.ListContainersRequest{})
	if err != nil || len(list.Containers) == 0 {
		return "none"
	}
	return list.Containers[0].Id
}

func (s *server) create() error {
	_, err := s.rt.CreateContainer(s.ctx, &cri.CreateContainerRequest{PodSandboxId: s.pod(), SandboxConfig: s.podConfig(), Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: s.ref}, LogPath: "c.log", Linux: &cri.LinuxContainerConfig{},
	}})
	return err
}

func (s *server) start() error {
	_, err := s.rt.StartContainer(s.ctx, &cri.StartContainerRequest{ContainerId: s.container()})
	return err
}

func (s *server) running() {
	s.t.Helper()
	for _, do := range []func(*server) error{(*server).pull, (*server).run, (*server).create, (*server).start} {
		s.must(do(s))
	}
}

func (s *server) stopContainer() error {
	_, err := s.rt.StopContainer(s.ctx, &cri.StopContainerRequest{ContainerId: s.container()})
	return err
}

func (s *server) stop() error {
	_, err := s.rt.StopPodSandbox(s.ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.pod()})
	return err
}

func (s *server) removeContainer() error {
	_, err := s.rt.RemoveContainer(s.ctx, &cri.RemoveContainerRequest{ContainerId: s.container()})
	return err
}

func (s *server) remove() error {
	_, err := s.rt.RemovePodSandbox(s.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.pod()})
	return err
}
