package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/server"
	"github.com/cri-server/cri-server/pkg/server/admin"
	"github.com/cri-server/cri-server/pkg/stream"
)

// fake is a CRI server with one container and one pod, and a command that echoes.
type fake struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	mu       sync.Mutex
	state    cri.ContainerState
	calls    []string
	logs     string // directory of the pod that was run
	streams  *stream.Server
	network  bool
	pulled   bool
	problems []sandbox.Problem
	pod      *cri.PodSandboxConfig // of the pod that was run
	run      *cri.CreateContainerRequest
	refusal  error // of StartContainer
	exitCode int32
}

func (f *fake) call(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fake) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "cri-server", RuntimeVersion: "9.9.9", RuntimeApiVersion: "1.0.0"}, nil
}
func (f *fake) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{{Type: cri.NetworkReady, Status: f.network, Message: "nothing configured"}}}}, nil
}
func (f *fake) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	c := &cri.Container{Id: "c123456789abcdef", PodSandboxId: "p123456789abcdef", Metadata: &cri.ContainerMetadata{Name: "web"},
		Image: &cri.ImageSpec{Image: "sha256:0123456789abcdef"}, State: cri.ContainerState_CONTAINER_EXITED}
	if r.GetFilter().GetState() != nil {
		return &cri.ListContainersResponse{}, nil
	}
	return &cri.ListContainersResponse{Containers: []*cri.Container{c}}, nil
}
func (f *fake) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{{Id: "p123456789abcdef", Metadata: &cri.PodSandboxMetadata{Name: "pod", Namespace: "ns"}}}}, nil
}
func (f *fake) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	if !strings.HasPrefix(r.GetContainerId(), "c") {
		return nil, status.Error(codes.NotFound, "container \"x\": no such container")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	st := &cri.ContainerStatus{Id: "c123456789abcdef", State: f.state, ExitCode: f.exitCode, Reason: "Completed"}
	if f.logs != "" {
		st.LogPath = filepath.Join(f.logs, "log")
	}
	return &cri.ContainerStatusResponse{Status: st}, nil
}
func (f *fake) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	if !strings.HasPrefix(r.GetPodSandboxId(), "p") {
		return nil, status.Error(codes.NotFound, "no such pod")
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Id: "p123456789abcdef", Metadata: f.pod.GetMetadata(), Annotations: f.pod.GetAnnotations(), Network: &cri.PodSandboxNetworkStatus{Ip: "10.0.0.2"}}}, nil
}
func (f *fake) StopContainer(_ context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	f.call("stop %s %d", r.GetContainerId(), r.GetTimeout())
	return &cri.StopContainerResponse{}, nil
}
func (f *fake) RemoveContainer(_ context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	f.call("rm %s", r.GetContainerId())
	return &cri.RemoveContainerResponse{}, nil
}
func (f *fake) StopPodSandbox(_ context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	f.call("stop pod %s", r.GetPodSandboxId())
	return &cri.StopPodSandboxResponse{}, nil
}
func (f *fake) RemovePodSandbox(_ context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	f.call("rm pod %s", r.GetPodSandboxId())
	return &cri.RemovePodSandboxResponse{}, nil
}
func (f *fake) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	f.logs, f.pod = r.GetConfig().GetLogDirectory(), r.GetConfig()
	return &cri.RunPodSandboxResponse{PodSandboxId: "p123456789abcdef"}, nil
}
func (f *fake) CreateContainer(_ context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	f.run = r
	return &cri.CreateContainerResponse{ContainerId: "c123456789abcdef"}, nil
}
func (f *fake) StartContainer(context.Context, *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refusal != nil {
		return nil, f.refusal
	}
	f.state = cri.ContainerState_CONTAINER_EXITED
	return &cri.StartContainerResponse{}, os.WriteFile(filepath.Join(f.logs, "log"), []byte("t stdout P hel\nt stdout F lo\nt stderr F oops\n"), 0o600)
}
func (f *fake) Exec(_ context.Context, r *cri.ExecRequest) (*cri.ExecResponse, error) {
	return f.streams.GetExec(r)
}

func (f *fake) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: []*cri.Image{{Id: "sha256:0123456789abcdef", RepoTags: []string{"r:1", "r:2"}, Size: 3_800_000}, {Id: "sha256:fedcba98765", RepoDigests: []string{"r@sha256:1"}}}}, nil
}
func (f *fake) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	if r.GetImage().GetImage() == "here" {
		return &cri.ImageStatusResponse{Image: &cri.Image{Id: "sha256:0123456789abcdef"}}, nil
	}
	return &cri.ImageStatusResponse{}, nil
}
func (f *fake) RemoveImage(_ context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	f.call("rmi %s", r.GetImage().GetImage())
	return &cri.RemoveImageResponse{}, nil
}

// fakeAdmin, fakeRuntime are the other services of the fake.
type fakeAdmin struct{ *fake }

func (f fakeAdmin) Check(context.Context, bool) ([]sandbox.Problem, error) { return f.problems, nil }
func (f fakeAdmin) EnableDefaultNetwork(context.Context) error             { f.network = true; return nil }
func (f fakeAdmin) RemoveDefaultNetwork(context.Context) error             { f.network = false; return nil }
func (f fakeAdmin) Pull(context.Context, string, func(image.Progress)) (string, error) {
	f.pulled = true
	return "sha256:1", nil
}

type fakeRuntime struct{}

func (fakeRuntime) Exec(_ context.Context, _ string, s sandbox.ExecStreams) (int, error) {
	if s.Stdin != nil {
		if _, err := io.Copy(s.Stdout, s.Stdin); err != nil {
			return 0, err
		}
	}
	fmt.Fprint(s.Stdout, strings.Join(s.Cmd, " "))
	fmt.Fprint(s.Stderr, "err")
	if s.Cmd[0] == "bad" {
		return 0, errors.New("no such command")
	}
	return len(s.Cmd), nil
}
func (fakeRuntime) Attach(context.Context, string, sandbox.AttachStreams) error { return nil }
func (fakeRuntime) PortForward(context.Context, string, int32, io.ReadWriteCloser) error {
	return nil
}

// run serves the fake and runs a command line against it.
func run(t *testing.T, f *fake, stdin string, args ...string) (out, errOut string, err error) {
	t.Helper()
	var s error
	if f.streams, s = stream.Listen(stream.Config{}, fakeRuntime{}); s != nil {
		t.Fatal(s)
	}
	go func(s *stream.Server) { _ = s.Serve() }(f.streams) // f serves the next run by another
	defer f.streams.Close()
	path := filepath.Join(t.TempDir(), "s")
	l, s := server.Listen(path)
	if s != nil {
		t.Fatal(s)
	}
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, f)
	cri.RegisterImageServiceServer(g, f)
	admin.Register(g, fakeAdmin{f})
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	return offline(t, stdin, append([]string{"--socket", path}, args...)...)
}

func offline(t *testing.T, stdin string, args ...string) (string, string, error) {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app{version: "v1", in: strings.NewReader(stdin), out: &out, err: &errOut}
	cmd := a.command()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

func contains(t *testing.T, got string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(got, w) {
			t.Errorf("%q does not contain %q", got, w)
		}
	}
}

func TestLists(t *testing.T) {
	f := &fake{}
	out, _, err := run(t, f, "", "ps")
	if err != nil || strings.Contains(out, "web") {
		t.Errorf("ps shows a container that does not run: %q, %v", out, err)
	}
	out, _, err = run(t, f, "", "ps", "-a")
	contains(t, out, "CONTAINER", "c123456789abc ", "web", "ns/pod", "exited", "0123456789abc")
	if err != nil {
		t.Error(err)
	}
	out, _, _ = run(t, f, "", "ps", "-aq")
	if out != "c123456789abcdef\n" {
		t.Errorf("ps -q: %q", out)
	}
	out, _, _ = run(t, f, "", "pods")
	contains(t, out, "POD", "p123456789abc ", "ns", "pod", "ready", "10.0.0.2")
	out, _, _ = run(t, f, "", "images")
	contains(t, out, "r:1", "r:2", "3.8 MB", "r@sha256:1")
	out, _, _ = run(t, f, "", "version")
	contains(t, out, "client: cri-server v1", "server: cri-server 9.9.9")
}

func TestStopAndRemove(t *testing.T) {
	f := &fake{state: cri.ContainerState_CONTAINER_RUNNING}
	_, _, err := run(t, f, "", "stop", "-t", "3", "c1", "p1", "x")
	if err == nil || !strings.Contains(err.Error(), "(x)") {
		t.Errorf("stop of an unknown one: %v", err)
	}
	_, _, err = run(t, f, "", "rm", "c1")
	contains(t, fmt.Sprint(err), "running", "--force")
	if _, _, err = run(t, f, "", "rm", "-f", "c1", "p1"); err != nil {
		t.Error(err)
	}
	want := "[stop c123456789abcdef 3 stop pod p123456789abcdef rm c123456789abcdef rm pod p123456789abcdef]"
	if got := fmt.Sprint(f.calls); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestExec(t *testing.T) {
	out, errOut, err := run(t, &fake{}, "input ", "exec", "-i", "c1", "a", "-b")
	var code exitCode
	if !errors.As(err, &code) || code != 2 || out != "input a -b" || errOut != "err" {
		t.Errorf("got %q, %q, %v", out, errOut, err)
	}
	_, _, err = run(t, &fake{}, "", "exec", "c1", "bad")
	contains(t, fmt.Sprint(err), "no such command")
}

func TestRun(t *testing.T) {
	f := &fake{exitCode: 4}
	out, errOut, err := run(t, f, "", "run", "-e", "A=b=c", "-v", "/h:/c:ro", "-p", "80:8080/udp", "-u", "7:8", "img", "cmd", "-x")
	var code exitCode
	if !errors.As(err, &code) || code != 4 || out != "hello\n" {
		t.Errorf("got %q, %v", out, err)
	}
	contains(t, errOut, "oops", "switching on the default")
	if !f.network || !f.pulled {
		t.Errorf("network %t, pulled %t", f.network, f.pulled)
	}
	c := f.run.GetConfig()
	sc := c.GetLinux().GetSecurityContext()
	if string(c.GetEnvs()[0].GetValue()) != "b=c" || !c.GetMounts()[0].GetReadonly() || sc.GetRunAsUser().GetValue() != 7 || sc.GetRunAsGroup().GetValue() != 8 || fmt.Sprint(c.GetArgs()) != "[cmd -x]" {
		t.Errorf("config %v", c)
	}
	pm := f.run.GetSandboxConfig().GetPortMappings()[0]
	if pm.GetHostPort() != 80 || pm.GetContainerPort() != 8080 || pm.GetProtocol() != cri.Protocol_UDP {
		t.Errorf("port %v", pm)
	}
	if got := fmt.Sprint(f.calls); got != "[stop c123456789abcdef 2 stop pod p123456789abcdef rm pod p123456789abcdef]" {
		t.Errorf("cleaned by %s", got)
	}
	if _, err := os.Stat(f.logs); err == nil {
		t.Error("the log directory is left")
	}
}

func TestRunKeeps(t *testing.T) {
	f := &fake{network: true}
	if _, _, err := run(t, f, "", "run", "--keep", "img"); err != nil || len(f.calls) != 0 {
		t.Fatalf("%v, removed by %v", err, f.calls)
	}
	if out, _, err := run(t, f, "", "logs", "c1"); err != nil || out != "hello\n" {
		t.Errorf("the log that was kept: %q, %v", out, err)
	}
	if _, _, err := run(t, f, "", "rm", "p1"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(f.logs); err == nil {
		t.Error("the log directory is left when its pod has been removed")
	}
}

// What a pod says of its log directory is not believed.
func TestRemoveLogsOfAPodThatLies(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, logsPrefix+"x"), os.TempDir() + "/" + logsPrefix + "x/../" + filepath.Base(dir), "", "/"} {
		f := &fake{pod: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Namespace: runNamespace}, Annotations: map[string]string{logsAnnotation: path}}}
		if err := os.MkdirAll(filepath.Join(dir, logsPrefix+"x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, _, err := run(t, f, "", "rm", "p1"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, logsPrefix+"x")); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestRunTellsWhyTheCommandDidNotStart(t *testing.T) {
	for text, want := range map[string]int{
		"exec: \"/nope\": stat /nope: no such file or directory": 127, "exec: \"/etc/passwd\": permission denied": 126, "no memory": 1,
	} {
		code := map[int]codes.Code{127: codes.NotFound, 126: codes.InvalidArgument, 1: codes.Unknown}[want]
		_, _, err := run(t, &fake{network: true, refusal: status.Error(code, text)}, "", "run", "img", "/nope")
		if got := failureCode(err); err == nil || got != want {
			t.Errorf("%s: exit code %d, %v", text, got, err)
		}
		contains(t, explain(err), text)
	}
}

func TestRemoveImage(t *testing.T) {
	f := &fake{}
	_, _, err := run(t, f, "", "rmi", "NOPE", "here")
	contains(t, fmt.Sprint(err), "(NOPE)", "cri-server images")
	if got := fmt.Sprint(f.calls); got != "[rmi here]" {
		t.Errorf("calls %s", got)
	}
}

func TestMisuseSaysHow(t *testing.T) {
	for _, args := range [][]string{{"rm"}, {"pull", "a", "b"}, {"exec", "c1"}, {"ps", "x"}, {"network", "status", "x"}, {"run", "--nope"}, {"nosuch"}} {
		_, _, err := offline(t, "", args...)
		contains(t, fmt.Sprint(err), args[0], "arguments (cri-server", "Use: ", "--help")
	}
}

func TestRunRefusesFlags(t *testing.T) {
	for _, args := range [][]string{{"-v", "x"}, {"-v", "a:b:c"}, {"-p", "80"}, {"-p", "0:80"}, {"-p", "1:2/x"}, {"-u", "a:b"}, {"-e", "=x"}} {
		f := &fake{network: true}
		if _, _, err := run(t, f, "", append(append([]string{"run"}, args...), "img")...); err == nil || f.run != nil {
			t.Errorf("%v was taken: %v", args, err)
		}
	}
}

func TestCheck(t *testing.T) {
	f := &fake{problems: []sandbox.Problem{{Kind: "mount", Subject: "/x", Detail: "nobody's"}}}
	out, _, err := run(t, f, "", "check")
	var code exitCode
	if !errors.As(err, &code) || code != 1 || out != "mount /x: nobody's\n" {
		t.Errorf("got %q, %v", out, err)
	}
	f = &fake{problems: []sandbox.Problem{{Kind: sandbox.Note, Subject: "/torn/x", Detail: "look"}}}
	if out, errOut, err := run(t, f, "", "check"); err != nil || out != "" || errOut != "note /torn/x: look\n" {
		t.Errorf("a note: %q, %q, %v", out, errOut, err)
	}
	if out, _, err = run(t, &fake{}, "", "check"); err != nil || out != "" {
		t.Errorf("a clean machine: %q, %v", out, err)
	}
}

func TestNetwork(t *testing.T) {
	f := &fake{}
	out, _, err := run(t, f, "", "network", "status")
	if err == nil {
		t.Error("no error without a network")
	}
	contains(t, out, "nothing configured")
	if _, _, err := run(t, f, "", "network", "enable-default"); err != nil || !f.network {
		t.Errorf("enable: %v", err)
	}
	if out, _, err = run(t, f, "", "network", "status"); err != nil || out != "ready\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestWithoutServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "s")
	_, _, err := offline(t, "", "--socket", path, "ps")
	if !errors.Is(err, errNoServer) {
		t.Errorf("got %v", err)
	}
	contains(t, err.Error(), path, "no such file or directory", "cri-server serve")
	out, _, err := offline(t, "", "--socket", path, "version")
	if err != nil {
		t.Error(err)
	}
	contains(t, out, "server: not running")
	out, _, err = offline(t, "", "config", "default")
	if err != nil {
		t.Error(err)
	}
	contains(t, out, "[network.default]")
}
