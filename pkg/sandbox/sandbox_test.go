package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/oci"
)

// world is a machine, its state directories and the manager of the moment.
type world struct {
	t   *testing.T
	m   *machine
	cfg Config
	mgr *Manager
	ctx context.Context
	// logs, when set, is the parent of the log directories of the pods that follow.
	logs string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, m: newMachine(t), ctx: context.Background(), cfg: Config{
		Root: filepath.Join(dir, "lib"), State: filepath.Join(dir, "run"), CgroupRoot: "/test", BootID: "boot-1", Handlers: []string{"other"},
		Translate: Translate{Defaults: *oci.NewDefaults()},
	}}
	w.open()
	t.Cleanup(func() {
		if w.mgr != nil {
			w.mgr.Close()
		}
	})
	return w
}

func (w *world) open() {
	w.t.Helper()
	mgr, err := Open(w.ctx, w.cfg, images{w.m}, nets{w.m}, w.m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mgr = mgr
}

// restart ends the manager as a crash does, with its pods left alone, and starts another.
func (w *world) restart() {
	w.t.Helper()
	w.mgr.Close()
	w.open()
}

func (w *world) clean() {
	w.t.Helper()
	problems, err := w.mgr.Check(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range problems {
		w.t.Errorf("check: %s %s: %s", p.Kind, p.Subject, p.Detail)
	}
}

func podConfig(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name, Labels: map[string]string{"app": name},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	}
}

func containerConfig(name string, args ...string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: "busybox"}, Args: args,
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	}
}

func (w *world) runPod(name string) string {
	w.t.Helper()
	config := podConfig(name)
	if w.logs != "" {
		config.LogDirectory = filepath.Join(w.logs, name)
	}
	id, err := w.mgr.RunPod(w.ctx, config, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) create(pod, name string, args ...string) string {
	w.t.Helper()
	config := containerConfig(name, args...)
	config.LogPath = name + "/0.log"
	id, err := w.mgr.CreateContainer(w.ctx, pod, config, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) start(id string) {
	w.t.Helper()
	if err := w.mgr.StartContainer(w.ctx, id); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) container(id string) *Container {
	w.t.Helper()
	c, err := w.mgr.Container(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// awaitState follows events until the container is in the state.
func (w *world) awaitState(id string, want State) *Container {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	events := w.mgr.Subscribe(ctx)
	for {
		if c := w.container(id); c.State() == want {
			return c
		}
		if _, ok := <-events; !ok {
			w.t.Fatalf("container %s is %s, want %s", id, w.container(id).State(), want)
		}
	}
}

func TestPodLife(t *testing.T) {
	w := newWorld(t)
	events := w.mgr.Subscribe(w.ctx)
	pod := w.runPod("a")
	p, err := w.mgr.Pod(pod[:8])
	if err != nil || !p.Ready || p.Network.IPs[0] != "10.0.0.2" || p.HolderPid == 0 || p.ShimPid == 0 {
		t.Fatalf("pod %+v, %v", p, err)
	}
	id := w.create(pod, "c")
	if c := w.container(id); c.State() != Created || c.ImageID != "sha256:busybox" || c.StopSignal != "SIGTERM" {
		t.Fatalf("container %+v", c)
	}
	w.start(id)
	if c := w.container(id); c.State() != Running || c.Pid == 0 {
		t.Fatalf("container %+v", c)
	}
	w.clean()
	if err := w.mgr.StopContainer(w.ctx, id, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if c := w.container(id); c.State() != Exited || c.ExitCode != 143 || c.Reason != "Error" || c.Pid != 0 {
		t.Fatalf("container %+v", c)
	}
	w.clean()
	if err := w.mgr.StopPod(w.ctx, pod); err != nil {
		t.Fatal(err)
	}
	if p, _ := w.mgr.Pod(pod); p.Ready || len(p.Network.IPs) != 0 {
		t.Fatalf("a stopped pod is ready or has an address: %+v", p)
	}
	w.clean()
	if err := w.mgr.RemovePod(w.ctx, pod); err != nil {
		t.Fatal(err)
	}
	if len(w.mgr.Pods())+len(w.mgr.Containers()) != 0 {
		t.Fatal("a removed pod is listed")
	}
	w.clean()
	var got []string
	for range 8 {
		ev := <-events
		who := "pod"
		if ev.Container != nil {
			who = "container"
		}
		got = append(got, fmt.Sprint(who, ev.Type))
	}
	want := "pod0 pod1 container0 container1 container2 pod2 container3 pod3"
	if strings.Join(got, " ") != want {
		t.Errorf("events %v, want %s", got, want)
	}
}

func TestFastExitIsRecorded(t *testing.T) {
	w := newWorld(t)
	id := w.create(w.runPod("a"), "c", "true")
	w.start(id)
	if c := w.awaitState(id, Exited); c.ExitCode != 0 || c.Reason != "Completed" || c.StartedAt.IsZero() {
		t.Fatalf("container %+v", c)
	}
}

func TestStopKillsAfterGrace(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	id := w.create(pod, "c")
	w.start(id)
	s := w.m.shimOf(pod)
	w.m.mu.Lock()
	s.procs[id].ignores = true
	w.m.mu.Unlock()
	if err := w.mgr.StopContainer(w.ctx, id, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if c := w.container(id); c.ExitCode != 137 {
		t.Fatalf("container %+v", c)
	}
}

// A pod that is removed without having been stopped stops, for those who listen, too.
func TestRemoveTellsOfTheStop(t *testing.T) {
	w := newWorld(t)
	events := w.mgr.Subscribe(w.ctx)
	pod := w.runPod("a")
	if err := w.mgr.RemovePod(w.ctx, pod); err != nil {
		t.Fatal(err)
	}
	for _, want := range []EventType{EventCreated, EventStarted, EventStopped, EventDeleted} {
		if ev := <-events; ev.Type != want || ev.Pod.ID != pod || ev.Pod.Ready != (want < EventStopped) {
			t.Errorf("event %d of pod %+v, want %d", ev.Type, ev.Pod, want)
		}
	}
}

// What a start in flight starts has its grace period, too, when a stop comes meanwhile.
func TestStopDuringStartAsks(t *testing.T) {
	w := newWorld(t)
	id := w.create(w.runPod("a"), "c")
	stopped := make(chan error, 1)
	w.m.onCall = func(call string) {
		if call != "start" {
			return
		}
		go func() { stopped <- w.mgr.StopContainer(w.ctx, id, time.Minute) }()
		for waits := false; !waits; time.Sleep(time.Millisecond) {
			w.mgr.ops.mu.Lock()
			waits = w.mgr.ops.locks[id].refs == 2
			w.mgr.ops.mu.Unlock()
		}
	}
	w.start(id)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if c := w.container(id); c.ExitCode != 128+15 {
		t.Errorf("exit code %d, want that of SIGTERM", c.ExitCode)
	}
}

// TestExitOutlivesAFullDisk makes the record unwritable for a while.
func TestExitOutlivesAFullDisk(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	id := w.create(pod, "c")
	w.start(id)
	dir := w.mgr.dirs.containers(pod)
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	w.m.exit(id, 6, false)
	for w.m.running(id) {
		time.Sleep(time.Millisecond)
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	if c := w.awaitState(id, Exited); c.ExitCode != 6 {
		t.Errorf("container %+v", c)
	}
	w.clean()
}

func TestOOMIsTheReason(t *testing.T) {
	w := newWorld(t)
	id := w.create(w.runPod("a"), "c")
	w.start(id)
	w.m.exit(id, 137, true)
	if c := w.awaitState(id, Exited); c.Reason != "OOMKilled" {
		t.Fatalf("container %+v", c)
	}
	id = w.create(w.runPod("b"), "c") // of which a child or an exec was killed
	w.start(id)
	w.m.exit(id, 0, true)
	if c := w.awaitState(id, Exited); c.Reason != "Completed" {
		t.Fatalf("container %+v", c)
	}
}

func TestUnknownObjects(t *testing.T) {
	w := newWorld(t)
	for name, err := range map[string]error{
		"stop pod": w.mgr.StopPod(w.ctx, "x"), "remove pod": w.mgr.RemovePod(w.ctx, "x"),
		"stop container": w.mgr.StopContainer(w.ctx, "x", 0), "remove container": w.mgr.RemoveContainer(w.ctx, "x"),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.mgr.Pod(""); !errs.Is(err, errs.NotFound) {
		t.Errorf("pod \"\": %v", err)
	}
	if err := w.mgr.StartContainer(w.ctx, "x"); !errs.Is(err, errs.NotFound) {
		t.Errorf("start: %v", err)
	}
	if _, err := w.mgr.RunPod(w.ctx, podConfig("a"), "nope"); err == nil {
		t.Error("an unknown handler was accepted")
	}
	if _, err := w.mgr.CreateContainer(w.ctx, "x", containerConfig("c"), nil); !errs.Is(err, errs.NotFound) {
		t.Errorf("create: %v", err)
	}
	c := containerConfig("c")
	c.Image.Image = "missing"
	if _, err := w.mgr.CreateContainer(w.ctx, w.runPod("a"), c, nil); !errs.Is(err, errs.NotFound) {
		t.Errorf("create without image: %v", err)
	}
	w.clean()
}

func TestFailedStepLeavesNothing(t *testing.T) {
	boom := errors.New("boom")
	for _, call := range []string{"spawn", "cgroup", "holder", "attach", "rootfs", "start"} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t)
			w.m.setFail(call, boom)
			pod, err := w.mgr.RunPod(w.ctx, podConfig("a"), "")
			var id string
			if err == nil {
				id, err = w.mgr.CreateContainer(w.ctx, pod, containerConfig("c"), nil)
			}
			if err == nil {
				err = w.mgr.StartContainer(w.ctx, id)
				if c := w.container(id); c.State() != Exited || c.ExitCode != 128 || c.Reason != "StartError" {
					t.Errorf("container %+v", c)
				}
			}
			if !errors.Is(err, boom) {
				t.Fatalf("error %v", err)
			}
			w.clean()
			if pod == "" && len(w.mgr.Pods()) != 0 {
				t.Error("a failed pod is listed")
			}
		})
	}
}

func TestFailedDetachIsRetried(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	w.m.setFail("detach", errors.New("plugin gone"))
	if err := w.mgr.StopPod(w.ctx, pod); err == nil {
		t.Fatal("a failed detach was hidden")
	}
	if p, _ := w.mgr.Pod(pod); p.Ready {
		t.Error("the pod is still ready")
	}
	if w.m.shimOf(pod) == nil {
		t.Error("the network namespace was released before its detach")
	}
	w.m.setFail("detach", nil)
	if err := w.mgr.RemovePod(w.ctx, pod); err != nil {
		t.Fatal(err)
	}
	w.clean()
}

func TestShimDeathTakesThePod(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	done, runs := w.create(pod, "done"), w.create(pod, "runs")
	w.start(done)
	w.start(runs)
	w.m.exit(done, 3, false)
	w.awaitState(done, Exited)
	w.m.killShim(pod)
	if c := w.awaitState(runs, Exited); c.ExitCode != 137 || c.Reason != "ShimDied" {
		t.Fatalf("container %+v", c)
	}
	if c := w.container(done); c.ExitCode != 3 {
		t.Fatalf("container %+v", c)
	}
	if err := w.mgr.StopPod(w.ctx, pod); err != nil {
		t.Fatal(err)
	}
	w.clean()
}

func TestRestartFindsWhatHappened(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	lives, died := w.create(pod, "lives"), w.create(pod, "died")
	w.start(lives)
	w.start(died)
	w.mgr.Close()
	w.m.exit(died, 7, false)
	w.open()
	if c := w.container(died); c.State() != Exited || c.ExitCode != 7 {
		t.Fatalf("container %+v", c)
	}
	if c := w.container(lives); c.State() != Running {
		t.Fatalf("container %+v", c)
	}
	w.m.exit(lives, 9, false)
	if c := w.awaitState(lives, Exited); c.ExitCode != 9 {
		t.Fatalf("container %+v", c)
	}
	w.clean()
}

func TestReboot(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	id := w.create(pod, "c")
	created := w.create(pod, "created")
	w.start(id)
	w.reboot()
	if p, _ := w.mgr.Pod(pod); p.Ready {
		t.Error("the pod is ready")
	}
	for _, c := range []string{id, created} {
		if c := w.container(c); c.State() != Exited || c.ExitCode != 255 {
			t.Errorf("container %+v", c)
		}
	}
	w.clean()
}

func TestCgroupParentThatWasMissingGoesWithItsLastPod(t *testing.T) {
	w := newWorld(t)
	run := func(name string) string {
		c := podConfig(name)
		c.Linux.CgroupParent = "/new/deep"
		id, err := w.mgr.RunPod(w.ctx, c, "")
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, second := run("a"), run("b")
	for _, id := range []string{first, second} {
		if !w.m.CgroupExists("/new/deep") {
			t.Fatal("the parent of a living pod is gone")
		}
		if err := w.mgr.RemovePod(w.ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	w.clean()
}
