package server

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// fake stands in for everything below the server. What it was asked is in calls; fail, when set, answers.
type fake struct {
	mu         sync.Mutex
	pods       []*sandbox.Pod
	containers []*sandbox.Container
	images     []*image.Image
	network    network.Status
	events     chan sandbox.Event
	subscribed chan struct{}   // closed when somebody subscribes
	left       <-chan struct{} // closed when the subscription ends
	calls      []string
	fail       error
	panics     bool
	auth       *image.Auth
	timeout    time.Duration
	output     []byte               // of ExecSync
	unheard    func(time.Time) bool // of the last RunPod
}

func (f *fake) call(parts ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.panics {
		panic("a bug")
	}
	f.calls = append(f.calls, strings.Join(parts, " "))
	return f.fail
}

func (f *fake) RunPod(ctx context.Context, c *cri.PodSandboxConfig, handler string) (string, error) {
	f.mu.Lock()
	f.unheard = sandbox.Unheard(ctx)
	f.mu.Unlock()
	return "new-pod", f.call("RunPod", c.GetMetadata().GetName(), handler)
}
func (f *fake) StopPod(_ context.Context, id string) error   { return f.call("StopPod", id) }
func (f *fake) RemovePod(_ context.Context, id string) error { return f.call("RemovePod", id) }
func (f *fake) UpdatePod(_ context.Context, id string, _, _ *cri.LinuxContainerResources) error {
	return f.call("UpdatePod", id)
}

func (f *fake) Pod(id string) (*sandbox.Pod, error) {
	var found []*sandbox.Pod
	for _, p := range f.pods {
		if strings.HasPrefix(p.ID, id) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return nil, errs.New(errs.NotFound, "pod sandbox (%s): no such", id)
	}
	return found[0], nil
}
func (f *fake) Pods() []*sandbox.Pod { return f.pods }

func (f *fake) CreateContainer(_ context.Context, pod string, c *cri.ContainerConfig, _ *cri.PodSandboxConfig) (string, error) {
	return "new-container", f.call("CreateContainer", pod, c.GetMetadata().GetName())
}
func (f *fake) StartContainer(_ context.Context, id string) error {
	return f.call("StartContainer", id)
}
func (f *fake) StopContainer(_ context.Context, id string, timeout time.Duration) error {
	f.timeout = timeout
	return f.call("StopContainer", id)
}
func (f *fake) RemoveContainer(_ context.Context, id string) error {
	return f.call("RemoveContainer", id)
}
func (f *fake) UpdateContainer(_ context.Context, id string, _ *cri.LinuxContainerResources, _ map[string]string) error {
	return f.call("UpdateContainer", id)
}
func (f *fake) ReopenLog(_ context.Context, id string) error { return f.call("ReopenLog", id) }

func (f *fake) Container(id string) (*sandbox.Container, error) {
	for _, c := range f.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return nil, errs.New(errs.NotFound, "container (%s): no such", id)
}
func (f *fake) Containers() []*sandbox.Container { return f.containers }

func (f *fake) ExecSync(_ context.Context, id string, cmd []string, _ time.Duration) ([]byte, []byte, int32, error) {
	if f.output != nil {
		return f.output, f.output, 3, nil
	}
	return []byte("out"), []byte("err"), 3, f.call("ExecSync", id, strings.Join(cmd, " "))
}
func (f *fake) Subscribe(ctx context.Context) <-chan sandbox.Event {
	if f.subscribed != nil {
		f.left = ctx.Done()
		close(f.subscribed)
	}
	return f.events
}

func (f *fake) GetExec(r *cri.ExecRequest) (*cri.ExecResponse, error) {
	return &cri.ExecResponse{Url: "exec/" + r.GetContainerId()}, nil
}
func (f *fake) GetAttach(r *cri.AttachRequest) (*cri.AttachResponse, error) {
	return &cri.AttachResponse{Url: "attach/" + r.GetContainerId()}, nil
}
func (f *fake) GetPortForward(r *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	return &cri.PortForwardResponse{Url: "portforward/" + r.GetPodSandboxId()}, nil
}

// fakeImages and fakeStats are the fake under the method names that clash with those of Sandboxes.
type fakeImages struct{ *fake }

func (f fakeImages) Pull(_ context.Context, ref string, o image.PullOptions) (string, error) {
	f.auth = o.Auth
	return "sha256:1", f.call("Pull", ref)
}
func (f fakeImages) Get(ref string) (*image.Image, error) {
	for _, img := range f.images {
		if img.ID == ref || strings.Contains(strings.Join(img.RepoTags, " "), ref) {
			return img, nil
		}
	}
	return nil, errs.New(errs.NotFound, "image (%s): no such", ref)
}
func (f fakeImages) List() []*image.Image                       { return f.images }
func (f fakeImages) Remove(_ context.Context, ref string) error { return f.call("Remove", ref) }
func (f *fake) Status(context.Context) network.Status           { return f.network }
func (f fakeImages) FsUsage(context.Context) (i, c image.Usage, e error) {
	return image.Usage{Mountpoint: "/i", Bytes: 1, Inodes: 2}, image.Usage{Mountpoint: "/c", Bytes: 3, Inodes: 4}, nil
}

type fakeStats struct{ *fake }

func (f fakeStats) Container(id string) (*cri.ContainerStats, error) {
	return &cri.ContainerStats{Attributes: &cri.ContainerAttributes{Id: id}}, nil
}
func (f fakeStats) Containers(flt *cri.ContainerStatsFilter) (out []*cri.ContainerStats, _ error) {
	for _, c := range f.containers {
		if c.State() == sandbox.Running && (flt.GetId() == "" || flt.GetId() == c.ID) && (flt.GetPodSandboxId() == "" || flt.GetPodSandboxId() == c.PodID) && hasLabels(c.Config.GetLabels(), flt.GetLabelSelector()) {
			out = append(out, &cri.ContainerStats{Attributes: &cri.ContainerAttributes{Id: c.ID}})
		}
	}
	return out, nil
}
func (f fakeStats) Pod(id string) (*cri.PodSandboxStats, error) {
	return &cri.PodSandboxStats{Attributes: &cri.PodSandboxAttributes{Id: id}}, nil
}
func (f fakeStats) Pods(flt *cri.PodSandboxStatsFilter) (out []*cri.PodSandboxStats, _ error) {
	for _, p := range f.pods {
		if p.Ready && (flt.GetId() == "" || flt.GetId() == p.ID) && hasLabels(p.Config.GetLabels(), flt.GetLabelSelector()) {
			out = append(out, &cri.PodSandboxStats{Attributes: &cri.PodSandboxAttributes{Id: p.ID}})
		}
	}
	return out, nil
}
func (f fakeStats) Descriptors() []*cri.MetricDescriptor { return []*cri.MetricDescriptor{{Name: "m"}} }
func (f fakeStats) Metrics() (out []*cri.PodSandboxMetrics, _ error) {
	for _, p := range f.pods {
		out = append(out, &cri.PodSandboxMetrics{PodSandboxId: p.ID})
	}
	return out, nil
}

type client struct {
	cri.RuntimeServiceClient
	cri.ImageServiceClient
	server *Server
	conn   *grpc.ClientConn
}

// start serves the fake on a unix socket and returns a client of it.
func start(t *testing.T, f *fake, change ...func(*Config)) *client {
	t.Helper()
	cfg := Config{Sandboxes: f, Images: fakeImages{f}, Networks: f, Stats: fakeStats{f}, Streams: f,
		Version: "1.2.3", Handlers: []string{"test-handler"}, Features: Features{true, true, true, true, true}}
	for _, c := range change {
		c(&cfg)
	}
	s := New(cfg)
	path := filepath.Join(t.TempDir(), "cri.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, p string) (net.Conn, error) { return Dial(ctx, p) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		s.Stop(t.Context())
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return &client{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn), s, conn}
}

func podOf(id string, ready bool, labels map[string]string) *sandbox.Pod {
	return &sandbox.Pod{ID: id, Ready: ready, CreatedAt: time.Unix(1, 2), Config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "n-" + id, Namespace: "ns", Uid: "u"}, Labels: labels, Annotations: map[string]string{"a": "b"}}}
}

func containerOf(id, pod string, state sandbox.State, labels map[string]string) *sandbox.Container {
	c := &sandbox.Container{ID: id, PodID: pod, CreatedAt: time.Unix(1, 0), ImageID: "sha256:1", ImageRef: "r@sha256:2",
		Config: &cri.ContainerConfig{Metadata: &cri.ContainerMetadata{Name: "n-" + id}, Image: &cri.ImageSpec{Image: "sha256:1"}, Labels: labels}}
	if state != sandbox.Created {
		c.StartedAt, c.Pid = time.Unix(2, 0), 7
	}
	if state == sandbox.Exited {
		c.FinishedAt, c.Pid, c.ExitCode, c.Reason = time.Unix(3, 0), 0, 137, "OOMKilled"
	}
	return c
}
