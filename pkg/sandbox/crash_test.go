package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/pkg/fault"
)

func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// job is a request that a crash sweep interrupts at every fault point it passes.
type job struct {
	name    string
	tables  []string // whose points it passes
	fail    string   // the call of the fakes that fails, so that the undo runs
	passes  int      // how many times it passes each point
	prepare func(w *world)
	request func(w *world, ctx context.Context) error
}

func firstPod(w *world) string { return w.mgr.Pods()[0].ID }

// byName finds the container; ids change with each attempt, names do not.
func byName(w *world, name string) string {
	for _, c := range w.mgr.Containers() {
		if c.Config.GetMetadata().GetName() == name {
			return c.ID
		}
	}
	return ""
}

func podOfTwo(w *world) {
	pod := w.runPod("a")
	w.start(w.create(pod, "one"))
	w.start(w.create(pod, "two"))
}

func runRequest(w *world, ctx context.Context) error {
	_, err := w.mgr.RunPod(ctx, podConfig("a"), "")
	return err
}

func createRequest(w *world, ctx context.Context) error {
	_, err := w.mgr.CreateContainer(ctx, firstPod(w), containerConfig("one"), nil)
	return err
}

func startRequest(w *world, ctx context.Context) error {
	return w.mgr.StartContainer(ctx, byName(w, "one"))
}

var crashJobs = []job{
	{name: "run", tables: []string{"RunPodSandbox"}, request: runRequest},
	{name: "run undone", tables: []string{"StopPodSandbox", "RemovePodSandbox"}, fail: "attach", request: runRequest},
	{name: "create", tables: []string{"CreateContainer"}, prepare: func(w *world) { w.runPod("a") }, request: createRequest},
	{name: "create undone", tables: []string{"StopContainer", "RemoveContainer"}, fail: "rootfs", prepare: func(w *world) { w.runPod("a") }, request: createRequest},
	{name: "start", tables: []string{"StartContainer"}, prepare: func(w *world) { w.create(w.runPod("a"), "one") }, request: startRequest},
	{name: "start undone", tables: []string{"StopContainer"}, fail: "start", prepare: func(w *world) { w.create(w.runPod("a"), "one") }, request: startRequest},
	{name: "stop pod", tables: []string{"StopPodSandbox", "StopContainer"}, passes: 2, prepare: podOfTwo, request: func(w *world, ctx context.Context) error {
		return w.mgr.StopPod(ctx, firstPod(w))
	}},
	{name: "remove pod", tables: []string{"StopPodSandbox", "StopContainer", "RemovePodSandbox", "RemoveContainer"}, passes: 2, prepare: podOfTwo, request: func(w *world, ctx context.Context) error {
		if len(w.mgr.Pods()) == 0 {
			return nil
		}
		return w.mgr.RemovePod(ctx, firstPod(w))
	}},
	{name: "stop container", tables: []string{"StopContainer"}, prepare: podOfTwo, request: func(w *world, ctx context.Context) error {
		return w.mgr.StopContainer(ctx, byName(w, "one"), time.Nanosecond)
	}},
	{name: "remove container", tables: []string{"StopContainer", "RemoveContainer"}, prepare: podOfTwo, request: func(w *world, ctx context.Context) error {
		return w.mgr.RemoveContainer(ctx, byName(w, "one"))
	}},
}

// TestCrashSweep dies at every step of every job and of its undo, restarts on what is left, and holds the result to
// three things: the audit finds nothing, the same request succeeds, and everything can be removed.
func TestCrashSweep(t *testing.T) {
	t.Cleanup(fault.Disarm)
	fired := map[string]bool{}
	for _, j := range crashJobs {
		for _, table := range j.tables {
			for _, point := range FaultPoints()[table] {
				for n := range max(j.passes, 1) {
					t.Run(fmt.Sprintf("%s/%s/%d", j.name, point, n+1), func(t *testing.T) {
						if crash(t, j, point, n+1) {
							fired[point] = true
						}
					})
				}
			}
		}
	}
	for _, points := range FaultPoints() {
		for _, p := range points {
			if !fired[p] {
				t.Errorf("no job died at %s", p)
			}
		}
	}
}

func crash(t *testing.T, j job, point string, n int) (fired bool) {
	w := newWorld(t)
	if j.prepare != nil {
		j.prepare(w)
	}
	if j.fail != "" {
		w.m.setFail(j.fail, errors.New("boom"))
	}
	died := make(chan struct{})
	fault.Arm(point, n, func() error { close(died); runtime.Goexit(); return nil })
	ctx, cancel := context.WithCancel(w.ctx)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_ = j.request(w, ctx)
	}()
	select {
	case <-died:
		fired = true
	case <-answered:
		fired = isClosed(died)
	}
	fault.Disarm()
	// The process is gone: nothing it still does may reach the records or the machine.
	w.mgr.Close()
	cancel()
	<-answered
	w.m.setFail(j.fail, nil)
	w.open()
	w.clean()
	if err := j.request(w, w.ctx); err != nil && !exitedAlready(w, j) {
		t.Errorf("the same request: %v", err)
	}
	w.clean()
	for _, p := range w.mgr.Pods() {
		if err := w.mgr.RemovePod(w.ctx, p.ID); err != nil {
			t.Error(err)
		}
	}
	w.clean()
	if left := slices.Collect(keysOf(w.m.rootfses)); len(left) != 0 {
		t.Errorf("root filesystems are left: %v", left)
	}
	return fired
}

// exitedAlready excuses a repeated start of a container whose failure to start was recorded before the crash.
func exitedAlready(w *world, j job) bool {
	id := byName(w, "one")
	return j.fail == "start" && id != "" && w.container(id).Reason == "StartError"
}

func keysOf[T any](m map[string]T) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
