package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got code %v (%v), want %v", status.Code(err), err, code)
	}
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v does not say %q", err, w)
		}
	}
}

func TestVersionAndStatus(t *testing.T) {
	c := start(t, &fake{network: network.Status{Reason: "NoConfig", Message: "why"}}, func(cfg *Config) {
		cfg.Info = func() map[string]any { return map[string]any{"config": map[string]string{"stateDir": "/x"}} }
	})
	v, err := c.Version(t.Context(), &cri.VersionRequest{})
	if err != nil || v.RuntimeName != "cri-server" || v.RuntimeVersion != "1.2.3" || v.Version == "" || v.RuntimeApiVersion == "" {
		t.Errorf("Version: %v, %v", v, err)
	}
	st, err := c.RuntimeServiceClient.Status(t.Context(), &cri.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Reason: "NoConfig", Message: "why"},
		}},
		Info: map[string]string{"config": `{"stateDir":"/x"}`},
		RuntimeHandlers: []*cri.RuntimeHandler{
			{Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: true}},
			{Name: "test-handler", Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: true}},
		},
		Features: &cri.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true, MountOptions: true},
	}
	if d := cmp.Diff(want, st, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	for systemd, want := range map[bool]cri.CgroupDriver{false: cri.CgroupDriver_CGROUPFS, true: cri.CgroupDriver_SYSTEMD} {
		s := &Server{cfg: Config{Systemd: systemd}}
		rc, err := s.RuntimeConfig(t.Context(), &cri.RuntimeConfigRequest{})
		if err != nil || rc.Linux.CgroupDriver != want {
			t.Errorf("RuntimeConfig: %v, %v", rc, err)
		}
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	c := start(t, &fake{})
	update := func(cidr string) error {
		_, err := c.UpdateRuntimeConfig(t.Context(), &cri.UpdateRuntimeConfigRequest{
			RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	for _, ok := range []string{"", "10.0.0.0/24", "10.0.0.0/24,fd00::/64"} {
		if err := update(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	wantCode(t, update("10.0.0.0/24,nonsense"), codes.InvalidArgument, "pod_cidr", "nonsense")
}

// TestBadRequests holds every call to InvalidArgument for what is malformed, and to NotFound or success for
// what is absent.
func TestBadRequests(t *testing.T) {
	f := &fake{
		pods: []*sandbox.Pod{podOf("p1", true, nil), podOf("dead", false, nil)},
		containers: []*sandbox.Container{containerOf("run", "p1", sandbox.Running, nil), containerOf("made", "p1", sandbox.Created, nil),
			containerOf("tty", "p1", sandbox.Running, nil)},
	}
	f.containers[2].Config.Tty = true
	c := start(t, f)
	ctx := t.Context()
	meta := &cri.ContainerMetadata{Name: "x"}
	img, strange := &cri.ImageSpec{Image: "i"}, &cri.ImageSpec{Image: "i", RuntimeHandler: "kata"}
	for _, tc := range []struct {
		name string
		call func() (any, error)
		code codes.Code
		word string
	}{
		{"run pod: no config", func() (any, error) { return c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{}) }, codes.InvalidArgument, "config"},
		{"run pod: no metadata", func() (any, error) {
			return c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{}})
		}, codes.InvalidArgument, "metadata"},
		{"run pod: handler", func() (any, error) {
			return c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: f.pods[0].Config, RuntimeHandler: "kata"})
		}, codes.InvalidArgument, "kata"},
		{"stop pod: no id", func() (any, error) { return c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{}) }, codes.InvalidArgument, "pod_sandbox_id"},
		{"remove pod: no id", func() (any, error) { return c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{}) }, codes.InvalidArgument, "pod_sandbox_id"},
		{"pod status: no id", func() (any, error) { return c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{}) }, codes.InvalidArgument, "pod_sandbox_id"},
		{"pod status: absent", func() (any, error) { return c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: "zz"}) }, codes.NotFound, "zz"},
		{"pod stats: absent", func() (any, error) { return c.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: "zz"}) }, codes.NotFound, "zz"},
		{"create: no pod", func() (any, error) { return c.CreateContainer(ctx, &cri.CreateContainerRequest{}) }, codes.InvalidArgument, "pod_sandbox_id"},
		{"create: no config", func() (any, error) {
			return c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "p1"})
		}, codes.InvalidArgument, "config"},
		{"create: no metadata", func() (any, error) {
			return c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "p1", Config: &cri.ContainerConfig{Image: img}})
		}, codes.InvalidArgument, "metadata"},
		{"create: no image", func() (any, error) {
			return c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "p1", Config: &cri.ContainerConfig{Metadata: meta}})
		}, codes.InvalidArgument, "image"},
		{"create: handler of the image", func() (any, error) {
			return c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "p1", Config: &cri.ContainerConfig{Metadata: meta, Image: strange}})
		}, codes.InvalidArgument, "config.image.runtime_handler"},
		{"create: handler of a volume", func() (any, error) {
			return c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: "p1", Config: &cri.ContainerConfig{Metadata: meta, Image: img, Mounts: []*cri.Mount{{Image: strange}}}})
		}, codes.InvalidArgument, "config.mounts[0].image.runtime_handler"},
		{"status: absent", func() (any, error) { return c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: "zz"}) }, codes.NotFound, "zz"},
		{"status: no id", func() (any, error) { return c.ContainerStatus(ctx, &cri.ContainerStatusRequest{}) }, codes.InvalidArgument, "container_id"},
		{"stats: absent", func() (any, error) { return c.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: "zz"}) }, codes.NotFound, "zz"},
		{"stop: negative", func() (any, error) {
			return c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: "run", Timeout: -1})
		}, codes.InvalidArgument, "-1"},
		{"exec sync: no cmd", func() (any, error) { return c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "run"}) }, codes.InvalidArgument, "cmd"},
		{"exec sync: negative", func() (any, error) {
			return c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "run", Cmd: []string{"x"}, Timeout: -2})
		}, codes.InvalidArgument, "-2"},
		{"exec sync: not running", func() (any, error) {
			return c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "made", Cmd: []string{"x"}})
		}, codes.FailedPrecondition, "created"},
		{"exec sync: absent", func() (any, error) {
			return c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: "zz", Cmd: []string{"x"}})
		}, codes.NotFound, "zz"},
		{"exec: tty and stderr", func() (any, error) {
			return c.Exec(ctx, &cri.ExecRequest{ContainerId: "run", Cmd: []string{"x"}, Tty: true, Stderr: true})
		}, codes.InvalidArgument, "stderr"},
		{"exec: no stream", func() (any, error) {
			return c.Exec(ctx, &cri.ExecRequest{ContainerId: "run", Cmd: []string{"x"}})
		}, codes.InvalidArgument, "stdin"},
		{"exec: not running", func() (any, error) {
			return c.Exec(ctx, &cri.ExecRequest{ContainerId: "made", Cmd: []string{"x"}, Stdout: true})
		}, codes.FailedPrecondition, "created"},
		{"attach: tty differs", func() (any, error) { return c.Attach(ctx, &cri.AttachRequest{ContainerId: "tty", Stdout: true}) }, codes.InvalidArgument, "tty"},
		{"port forward: port", func() (any, error) {
			return c.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: "p1", Port: []int32{80, 65536}})
		}, codes.InvalidArgument, "65536"},
		{"port forward: not ready", func() (any, error) { return c.PortForward(ctx, &cri.PortForwardRequest{PodSandboxId: "dead"}) }, codes.FailedPrecondition, "dead"},
		{"reopen: not running", func() (any, error) {
			return c.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: "made"})
		}, codes.FailedPrecondition, "made"},
		{"pull: no image", func() (any, error) { return c.PullImage(ctx, &cri.PullImageRequest{}) }, codes.InvalidArgument, "image"},
		{"image status: no image", func() (any, error) { return c.ImageStatus(ctx, &cri.ImageStatusRequest{}) }, codes.InvalidArgument, "image"},
		{"remove image: no image", func() (any, error) { return c.RemoveImage(ctx, &cri.RemoveImageRequest{}) }, codes.InvalidArgument, "image"},
		{"pull: handler", func() (any, error) { return c.PullImage(ctx, &cri.PullImageRequest{Image: strange}) }, codes.InvalidArgument, "kata"},
		{"image status: handler", func() (any, error) { return c.ImageStatus(ctx, &cri.ImageStatusRequest{Image: strange}) }, codes.InvalidArgument, "kata"},
		{"remove image: handler", func() (any, error) { return c.RemoveImage(ctx, &cri.RemoveImageRequest{Image: strange}) }, codes.InvalidArgument, "kata"},
		{"list images: handler", func() (any, error) {
			return c.ListImages(ctx, &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: strange}})
		}, codes.InvalidArgument, "filter.image.runtime_handler"},
		{"checkpoint container", func() (any, error) { return c.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{}) }, codes.Unimplemented, ""},
		{"checkpoint pod", func() (any, error) { return c.CheckpointPod(ctx, &cri.CheckpointPodRequest{}) }, codes.Unimplemented, ""},
		{"restore pod", func() (any, error) { return c.RestorePod(ctx, &cri.RestorePodRequest{}) }, codes.Unimplemented, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tc.call()
			wantCode(t, err, tc.code, tc.word)
		})
	}
	if len(f.calls) != 0 {
		t.Errorf("bad requests reached the lower packages: %v", f.calls)
	}
}

func TestAbsentIsGone(t *testing.T) {
	f := &fake{fail: errs.New(errs.NotFound, "no such")}
	c := start(t, f)
	for name, call := range map[string]func() error{
		"StopPodSandbox": func() error {
			_, e := c.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: "x"})
			return e
		},
		"RemovePodSandbox": func() error {
			_, e := c.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: "x"})
			return e
		},
		"StopContainer": func() error {
			_, e := c.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: "x"})
			return e
		},
		"RemoveContainer": func() error {
			_, e := c.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: "x"})
			return e
		},
		"RemoveImage": func() error {
			_, e := c.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "x"}})
			return e
		},
		"ImageStatus": func() error {
			r, e := c.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "x"}})
			if r.GetImage() != nil {
				t.Error("ImageStatus of an absent image has one")
			}
			return e
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCodes(t *testing.T) {
	f := &fake{pods: []*sandbox.Pod{podOf("p", true, nil)}}
	c := start(t, f)
	for kind, code := range kindCodes {
		if kind == errs.NotFound {
			continue
		}
		f.fail = fmt.Errorf("stop: %w", errs.New(kind, "cause"))
		_, err := c.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: "p"})
		wantCode(t, err, code, "stop: cause")
	}
	pull := func(e error) error {
		f.fail = e
		_, err := c.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "i"}})
		return err
	}
	for _, e := range []error{
		errs.New(errs.Unavailable, "registry (r): connection refused"),
		errs.New(errs.Unavailable, "RegistryUnavailable: registry (r): connection refused"),
		errs.New(errs.Invalid, "SignatureValidationFailed: bad"),
	} {
		got := status.Convert(pull(e))
		if got.Code() != codes.Unknown || strings.Count(got.Message(), "RegistryUnavailable")+strings.Count(got.Message(), "SignatureValidationFailed") != 1 {
			t.Errorf("pull failing with %q: %v", e, got)
		}
	}
	wantCode(t, pull(errs.New(errs.NotFound, "image (i): no such")), codes.NotFound)
}

func TestPanicIsInternal(t *testing.T) {
	f := &fake{panics: true}
	c := start(t, f)
	_, err := c.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: "p"})
	wantCode(t, err, codes.Internal, "StopPodSandbox", "a bug")
	f.panics = false
	if _, err := c.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: "p"}); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

func TestFilters(t *testing.T) {
	ab, a := map[string]string{"a": "1", "b": "2"}, map[string]string{"a": "1"}
	f := &fake{
		pods:       []*sandbox.Pod{podOf("p10", true, ab), podOf("p11", false, a), podOf("q", true, nil)},
		containers: []*sandbox.Container{containerOf("c10", "p10", sandbox.Running, ab), containerOf("d", "p11", sandbox.Exited, a), containerOf("e", "q", sandbox.Created, nil)},
	}
	c := start(t, f)
	pods := func(f *cri.PodSandboxFilter) string {
		r, err := c.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, p := range r.Items {
			ids = append(ids, p.Id)
		}
		return strings.Join(ids, " ")
	}
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	for want, flt := range map[string]*cri.PodSandboxFilter{
		"p10 p11 q": nil, "p10 p11": {LabelSelector: a}, "p10": {LabelSelector: a, State: ready}, "p11": {Id: "p11"},
		"q": {Id: "q", State: ready}, "": {Id: "p1"}, /* two have the prefix */
	} {
		if got := pods(flt); got != want {
			t.Errorf("pods %v: got %q, want %q", flt, got, want)
		}
	}
	containers := func(f *cri.ContainerFilter) string {
		r, err := c.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, p := range r.Containers {
			ids = append(ids, p.Id)
		}
		return strings.Join(ids, " ")
	}
	exited := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_EXITED}
	for want, flt := range map[string]*cri.ContainerFilter{
		"c10 d e": nil, "c10": {Id: "c"}, "d": {State: exited}, "e": {PodSandboxId: "q"}, "c10 d": {LabelSelector: a},
		"": {PodSandboxId: "p10", State: exited},
	} {
		if got := containers(flt); got != want {
			t.Errorf("containers %v: got %q, want %q", flt, got, want)
		}
	}
	st, err := c.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{})
	if err != nil || len(st.Stats) != 1 || st.Stats[0].Attributes.Id != "c10" {
		t.Errorf("stats of the running ones: %v, %v", st, err)
	}
	ps, err := c.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{LabelSelector: a}})
	if err != nil || len(ps.Stats) != 1 || ps.Stats[0].Attributes.Id != "p10" {
		t.Errorf("stats of the ready pods: %v, %v", ps, err)
	}
}

func TestStatuses(t *testing.T) {
	p := podOf("p", true, map[string]string{"l": "v"})
	p.Network.IPs = []string{"10.0.0.2", "fd00::2"}
	p.Handler, p.HolderPid = "test-handler", 42
	ctr := containerOf("c", "p", sandbox.Exited, map[string]string{"l": "v"})
	ctr.StopSignal, ctr.LogPath, ctr.Message = "SIGRTMIN+3", "/log", "bad \xff byte"
	ctr.Resources = &cri.LinuxContainerResources{CpuShares: 7}
	f := &fake{pods: []*sandbox.Pod{p}, containers: []*sandbox.Container{ctr},
		images: []*image.Image{{ID: "sha256:1", RepoTags: []string{"r:1"}}}}
	c := start(t, f)
	r, err := c.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: "p", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Timestamp == 0 || !strings.Contains(r.Info["info"], `"namespaces":[{"type":"network","path":"/proc/42/ns/net"},`) {
		t.Errorf("timestamp %d, info %v", r.Timestamp, r.Info)
	}
	want := &cri.PodSandboxStatus{Id: "p", Metadata: p.Config.Metadata, CreatedAt: 1e9 + 2, RuntimeHandler: "test-handler",
		Network: &cri.PodSandboxNetworkStatus{Ip: "10.0.0.2", AdditionalIps: []*cri.PodIP{{Ip: "fd00::2"}}},
		Linux:   &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{}}},
		Labels:  p.Config.Labels, Annotations: p.Config.Annotations}
	if d := cmp.Diff(want, r.Status, protocmp.Transform()); d != "" {
		t.Error(d)
	}
	wantItem := &cri.Container{Id: "c", PodSandboxId: "p", Metadata: ctr.Config.Metadata, State: cri.ContainerState_CONTAINER_EXITED, CreatedAt: 1e9,
		Image: &cri.ImageSpec{Image: "sha256:1"}, ImageRef: "r@sha256:2", ImageId: "sha256:1", Labels: ctr.Config.Labels}
	if d := cmp.Diff(wantItem, containerItem(ctr), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	wantC := &cri.ContainerStatus{Id: "c", Metadata: ctr.Config.Metadata, State: cri.ContainerState_CONTAINER_EXITED,
		CreatedAt: 1e9, StartedAt: 2e9, FinishedAt: 3e9, ExitCode: 137, Reason: "OOMKilled", Message: "bad \uFFFD byte",
		Image: &cri.ImageSpec{Image: "r:1"}, ImageRef: "r@sha256:2", ImageId: "sha256:1", Labels: ctr.Config.Labels,
		LogPath: "/log", Resources: &cri.ContainerResources{Linux: &cri.LinuxContainerResources{CpuShares: 7}},
		StopSignal: cri.Signal_SIGNAL_SIGRTMINPLUS3}
	if d := cmp.Diff([]*cri.ContainerStatus{wantC}, r.ContainersStatuses, protocmp.Transform()); d != "" {
		t.Error(d)
	}
}

func TestVerboseContainerStatus(t *testing.T) {
	ctr := containerOf("c", "p", sandbox.Running, nil)
	c := start(t, &fake{containers: []*sandbox.Container{ctr}}, func(cfg *Config) {
		cfg.Spec = func(c *sandbox.Container) ([]byte, error) { return []byte(`{"ociVersion":"` + c.ID + `"}`), nil }
	})
	r, err := c.ContainerStatus(t.Context(), &cri.ContainerStatusRequest{ContainerId: "c", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"pid":7`, `"sandboxID":"p"`, `"runtimeSpec":{"ociVersion":"c"}`} {
		if !strings.Contains(r.Info["info"], want) {
			t.Errorf("info %s has no %s", r.Info["info"], want)
		}
	}
}

func TestImages(t *testing.T) {
	f := &fake{images: []*image.Image{{ID: "sha256:1", RepoTags: []string{"r:1", "s:2"}, Size: 9}, {ID: "sha256:2", RepoTags: []string{"t:1"}}}}
	f.images[1].Config.User = "\xff"
	c := start(t, f)
	all, err := c.ListImages(t.Context(), &cri.ListImagesRequest{})
	if err != nil || len(all.Images) != 2 {
		t.Fatalf("list: %v, %v", all, err)
	}
	one, err := c.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: "s:2"}}})
	if err != nil || len(one.Images) != 1 || one.Images[0].Id != "sha256:1" {
		t.Errorf("list s:2: %v, %v", one, err)
	}
	none, err := c.ListImages(t.Context(), &cri.ListImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: "zz"}}})
	if err != nil || len(none.Images) != 0 {
		t.Errorf("list zz: %v, %v", none, err)
	}
	if _, err := c.RemoveImage(t.Context(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "s:2"}}); err != nil {
		t.Error(err)
	}
	if _, err := c.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "x"}, Auth: &cri.AuthConfig{Username: "u", RegistryToken: "t"}}); err != nil {
		t.Error(err)
	}
	if f.auth == nil || f.auth.Username != "u" || f.auth.RegistryToken != "t" {
		t.Errorf("auth: %v", f.auth)
	}
	if d := cmp.Diff([]string{"Remove sha256:1", "Pull x"}, f.calls); d != "" {
		t.Error(d)
	}
	fs, err := c.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{})
	if err != nil || fs.ImageFilesystems[0].UsedBytes.Value != 1 || fs.ContainerFilesystems[0].InodesUsed.Value != 4 || fs.ImageFilesystems[0].Timestamp == 0 {
		t.Errorf("fs info: %v, %v", fs, err)
	}
}

func TestBatches(t *testing.T) {
	small, large := &cri.PodSandbox{Id: "s"}, &cri.PodSandbox{Id: strings.Repeat("x", batchBytes)}
	for _, tc := range []struct {
		items []*cri.PodSandbox
		want  []int
	}{
		{nil, nil},
		{[]*cri.PodSandbox{small}, []int{1}},
		{[]*cri.PodSandbox{large, large, small}, []int{1, 1, 1}},
		{[]*cri.PodSandbox{small, small, large, small}, []int{2, 1, 1}},
		{make([]*cri.PodSandbox, 2*batchItems+1), []int{batchItems, batchItems, 1}},
	} {
		var got []int
		var all []*cri.PodSandbox
		if err := batches(tc.items, func(b []*cri.PodSandbox) error {
			got, all = append(got, len(b)), append(all, b...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !cmp.Equal(got, tc.want) || len(all) != len(tc.items) {
			t.Errorf("got batches %v, want %v", got, tc.want)
		}
	}
}

func drain[T any](t *testing.T, s grpc.ServerStreamingClient[T], err error) int {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if _, err := s.Recv(); errors.Is(err, io.EOF) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestStreamsOfLists(t *testing.T) {
	for _, n := range []int{0, 1} {
		f := &fake{}
		if n == 1 {
			f.pods = []*sandbox.Pod{podOf("p", true, nil)}
			f.containers = []*sandbox.Container{containerOf("c", "p", sandbox.Running, nil)}
			f.images = []*image.Image{{ID: "i"}}
		}
		c := start(t, f)
		got := []int{}
		s1, err := c.StreamPodSandboxes(t.Context(), &cri.StreamPodSandboxesRequest{})
		got = append(got, drain(t, s1, err))
		s2, err := c.StreamContainers(t.Context(), &cri.StreamContainersRequest{})
		got = append(got, drain(t, s2, err))
		s3, err := c.StreamContainerStats(t.Context(), &cri.StreamContainerStatsRequest{})
		got = append(got, drain(t, s3, err))
		s4, err := c.StreamPodSandboxStats(t.Context(), &cri.StreamPodSandboxStatsRequest{})
		got = append(got, drain(t, s4, err))
		s5, err := c.StreamPodSandboxMetrics(t.Context(), &cri.StreamPodSandboxMetricsRequest{})
		got = append(got, drain(t, s5, err))
		s6, err := c.StreamImages(t.Context(), &cri.StreamImagesRequest{})
		got = append(got, drain(t, s6, err))
		if d := cmp.Diff([]int{n, n, n, n, n, n}, got); d != "" {
			t.Error(d)
		}
	}
}

func TestEvents(t *testing.T) {
	p, ctr := podOf("p", true, nil), containerOf("c", "p", sandbox.Running, nil)
	f := &fake{events: make(chan sandbox.Event), pods: []*sandbox.Pod{p}, containers: []*sandbox.Container{ctr, containerOf("d", "p", sandbox.Created, nil)}}
	c := start(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := c.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	f.events <- sandbox.Event{Type: sandbox.EventStarted, At: ctr.StartedAt, Pod: p, Container: ctr}
	got, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if got.ContainerId != "c" || got.ContainerEventType != cri.ContainerEventType_CONTAINER_STARTED_EVENT || got.CreatedAt != 2e9 ||
		got.PodSandboxStatus.GetMetadata().GetName() != "n-p" || len(got.ContainersStatuses) != 2 {
		t.Errorf("event: %v", got)
	}
	f.events <- sandbox.Event{Type: sandbox.EventDeleted, Pod: p, Container: ctr}
	if got, err = stream.Recv(); err != nil || len(got.ContainersStatuses) != 1 {
		t.Errorf("deleted: %v, %v", got, err)
	}
	f.events <- sandbox.Event{Type: sandbox.EventStopped, Pod: p}
	if got, err = stream.Recv(); err != nil || got.ContainerId != "p" {
		t.Errorf("pod's own event: %v, %v", got, err)
	}
	cancel()
	_, err = stream.Recv()
	wantCode(t, err, codes.Canceled)
}

// TestSlowClientIsDropped floods a client that never reads: first the transport's window fills, then the
// queue, then the client gets an error, and goleak sees to the goroutines.
func TestSlowClientIsDropped(t *testing.T) {
	p := podOf("p", true, map[string]string{"l": strings.Repeat("x", 1000)})
	f := &fake{events: make(chan sandbox.Event), pods: []*sandbox.Pod{p}, subscribed: make(chan struct{})}
	c := start(t, f)
	stream, err := c.GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-f.subscribed
	n := 0
	for dropped := false; !dropped; {
		select {
		case f.events <- sandbox.Event{Type: sandbox.EventStarted, Pod: p}:
			n++
		case <-f.left:
			dropped = true
		}
	}
	if n < eventQueue {
		t.Errorf("dropped after %d events, want at least %d", n, eventQueue)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.ResourceExhausted, "fast enough")
}

func TestStopEndsEventStreams(t *testing.T) {
	f := &fake{events: make(chan sandbox.Event), subscribed: make(chan struct{})}
	c := start(t, f)
	stream, err := c.GetContainerEvents(t.Context(), &cri.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-f.subscribed
	c.server.Stop(t.Context())
	_, err = stream.Recv()
	wantCode(t, err, codes.Unavailable)
}

func TestOutputsFit(t *testing.T) {
	for _, tc := range [][4]int{{5, 5, 5, 5}, {20, 0, 10, 0}, {0, 20, 0, 10}, {20, 20, 5, 5}, {20, 3, 7, 3}, {3, 20, 3, 7}, {6, 6, 5, 5}} {
		o, e := fit(make([]byte, tc[0]), make([]byte, tc[1]), 10)
		if len(o) != tc[2] || len(e) != tc[3] {
			t.Errorf("%d and %d: got %d and %d", tc[0], tc[1], len(o), len(e))
		}
	}
}

// TestLargestExecSync runs a command whose outputs are as large as the sandbox lets them be: the answer still
// fits a kubelet's message.
func TestLargestExecSync(t *testing.T) {
	f := &fake{containers: []*sandbox.Container{containerOf("c", "p", sandbox.Running, nil)}, output: make([]byte, 16<<20)}
	c := start(t, f)
	r, err := c.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: "c", Cmd: []string{"x"}}, grpc.MaxCallRecvMsgSize(MaxMessage))
	if err != nil || len(r.Stdout)+len(r.Stderr) < MaxMessage-responseOverhead || r.ExitCode != 3 {
		t.Errorf("got %d and %d bytes, exit %d, %v", len(r.GetStdout()), len(r.GetStderr()), r.GetExitCode(), err)
	}
}

func TestGracePeriodIsClamped(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	if _, err := c.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: "x", Timeout: 1 << 62}); err != nil {
		t.Fatal(err)
	}
	if f.timeout <= 0 {
		t.Errorf("timeout overflowed to %v", f.timeout)
	}
}

func TestLongErrors(t *testing.T) {
	c := start(t, &fake{fail: errs.New(errs.Invalid, "hostname: %q is none", strings.Repeat("é", 1<<20))})
	_, err := c.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "a"}}})
	wantCode(t, err, codes.InvalidArgument, "hostname: \"é", "bytes", "is none")
	if n := len(err.Error()); n > 5000 {
		t.Errorf("a text of %d bytes", n)
	}
}
