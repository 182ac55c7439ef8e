package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// The pod that a case starts from has one container in the state the row names.
var containerStates = map[string]func(w *world) string{
	"created": func(w *world) string { return w.create(w.runPod("a"), "c") },
	"running": func(w *world) string {
		id := w.create(w.runPod("a"), "c")
		w.start(id)
		return id
	},
	"exited": func(w *world) string {
		id := w.create(w.runPod("a"), "c")
		w.start(id)
		w.m.exit(id, 5, false)
		w.awaitState(id, Exited)
		return id
	},
	"created, pod stopped": func(w *world) string {
		id := w.create(w.runPod("a"), "c")
		if err := w.mgr.StopPod(w.ctx, firstPod(w)); err != nil {
			w.t.Fatal(err)
		}
		return id
	},
}

type outcome struct {
	kind  errs.Kind // of the error; ok means none
	state string    // afterwards: a State's name, or "gone"
}

const ok = errs.Kind(255)

// containerMatrix says what every event does in every state.
var containerMatrix = map[string]map[string]outcome{
	"start": {
		"created": {ok, "running"}, "running": {errs.Conflict, "running"}, "exited": {errs.Conflict, "exited"},
		"created, pod stopped": {errs.Conflict, "created"},
	},
	"stop": {
		"created": {ok, "created"}, "running": {ok, "exited"}, "exited": {ok, "exited"}, "created, pod stopped": {ok, "created"},
	},
	"remove": {
		"created": {ok, "gone"}, "running": {ok, "gone"}, "exited": {ok, "gone"}, "created, pod stopped": {ok, "gone"},
	},
	"stop pod": {
		"created": {ok, "created"}, "running": {ok, "exited"}, "exited": {ok, "exited"}, "created, pod stopped": {ok, "created"},
	},
	"remove pod": {
		"created": {ok, "gone"}, "running": {ok, "gone"}, "exited": {ok, "gone"}, "created, pod stopped": {ok, "gone"},
	},
	"update": {
		"created": {ok, "created"}, "running": {ok, "running"}, "exited": {errs.Conflict, "exited"}, "created, pod stopped": {errs.Conflict, "created"},
	},
	"exec": {
		"created": {errs.Conflict, "created"}, "running": {ok, "running"}, "exited": {errs.Conflict, "exited"},
		"created, pod stopped": {errs.Conflict, "created"},
	},
	"reopen log": {
		"created": {errs.Conflict, "created"}, "running": {ok, "running"}, "exited": {errs.Conflict, "exited"},
		"created, pod stopped": {errs.Conflict, "created"},
	},
	"attach with a terminal": {
		"created": {errs.Conflict, "created"}, "running": {errs.Invalid, "running"}, "exited": {errs.Conflict, "exited"},
		"created, pod stopped": {errs.Conflict, "created"},
	},
	"same create": {
		"created": {errs.Exists, "created"}, "running": {errs.Exists, "running"}, "exited": {errs.Exists, "exited"},
		"created, pod stopped": {errs.Exists, "created"},
	},
	"process ends": {
		"created": {ok, "created"}, "running": {ok, "exited"}, "exited": {ok, "exited"}, "created, pod stopped": {ok, "created"},
	},
	"shim dies": {
		"created": {ok, "created"}, "running": {ok, "exited"}, "exited": {ok, "exited"}, "created, pod stopped": {ok, "created"},
	},
	"holder dies": {
		"created": {ok, "created"}, "running": {ok, "running"}, "exited": {ok, "exited"}, "created, pod stopped": {ok, "created"},
	},
	"restart": {
		"created": {ok, "created"}, "running": {ok, "running"}, "exited": {ok, "exited"}, "created, pod stopped": {ok, "created"},
	},
	"reboot": {
		"created": {ok, "exited"}, "running": {ok, "exited"}, "exited": {ok, "exited"}, "created, pod stopped": {ok, "exited"},
	},
}

func (w *world) event(name, id string) error {
	pod := firstPod(w)
	ctx := w.ctx
	switch name {
	case "start":
		return w.mgr.StartContainer(ctx, id)
	case "stop":
		return w.mgr.StopContainer(ctx, id, time.Second)
	case "remove":
		return w.mgr.RemoveContainer(ctx, id)
	case "stop pod":
		return w.mgr.StopPod(ctx, pod)
	case "remove pod":
		return w.mgr.RemovePod(ctx, pod)
	case "update":
		return w.mgr.UpdateContainer(ctx, id, &cri.LinuxContainerResources{CpuShares: 512}, nil)
	case "exec":
		_, _, _, err := w.mgr.ExecSync(ctx, id, []string{"print", "hi"}, time.Minute)
		return err
	case "reopen log":
		return w.mgr.ReopenLog(ctx, id)
	case "attach with a terminal":
		return w.mgr.Attach(ctx, id, AttachStreams{TTY: true})
	case "same create":
		_, err := w.mgr.CreateContainer(ctx, pod, w.container(id).Config, nil)
		return err
	case "process ends":
		w.m.exit(id, 4, false)
		return w.settle(id, "running")
	case "shim dies":
		if w.m.shimOf(pod) != nil {
			w.m.killShim(pod)
			return w.awaitNotReady(pod)
		}
		return nil
	case "holder dies":
		w.m.exit(HolderID, 9, false)
		return w.awaitNotReady(pod)
	case "restart":
		w.restart()
	case "reboot":
		w.reboot()
	}
	return nil
}

// settle waits for the state to leave the one that the fakes' event ends.
func (w *world) settle(id, leaving string) error {
	if w.container(id).State().String() == leaving {
		w.awaitState(id, Exited)
	}
	return nil
}

func (w *world) awaitNotReady(pod string) error {
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	events := w.mgr.Subscribe(ctx)
	for {
		p, err := w.mgr.Pod(pod)
		if err != nil || !p.Ready {
			break
		}
		if _, open := <-events; !open {
			return errors.New("the pod stays ready")
		}
	}
	unlock, err := w.mgr.ops.lock(ctx, pod) // and until whoever tears it down is done
	if err != nil {
		return err
	}
	unlock()
	return nil
}

func (w *world) reboot() {
	w.mgr.Close()
	w.m.mu.Lock()
	for _, s := range w.m.shims {
		s.die()
	}
	w.m.shims, w.m.cgroups = map[string]*shimProc{}, map[string]bool{}
	w.m.mu.Unlock()
	w.cfg.BootID += "+"
	w.open()
}

func (w *world) stateOf(id string) string {
	c, err := w.mgr.Container(id)
	if err != nil {
		return "gone"
	}
	return c.State().String()
}

func TestEveryEventInEveryState(t *testing.T) {
	for event, row := range containerMatrix {
		for state, make := range containerStates {
			want, named := row[state]
			if !named {
				t.Errorf("the matrix says nothing of %q in state %q", event, state)
				continue
			}
			t.Run(event+"/"+state, func(t *testing.T) {
				w := newWorld(t)
				w.withLogs(t)
				id := make(w)
				err := w.event(event, id)
				if got := errs.KindOf(err); err == nil && want.kind != ok || err != nil && got != want.kind {
					t.Errorf("error %v, want kind %v", err, want.kind)
				}
				if event == "shim dies" && want.state == "exited" {
					w.awaitState(id, Exited)
				}
				if got := w.stateOf(id); got != want.state {
					t.Errorf("state %s, want %s", got, want.state)
				}
				for _, p := range w.mgr.Pods() {
					if err := w.mgr.RemovePod(w.ctx, p.ID); err != nil {
						t.Error(err)
					}
				}
				w.clean()
			})
		}
	}
}

// withLogs gives the pods that follow a log directory, and their containers a log.
func (w *world) withLogs(t *testing.T) { w.logs = t.TempDir() }

func TestRepeatedRequests(t *testing.T) {
	w := newWorld(t)
	gate, entered := make(chan struct{}), make(chan struct{}, 1)
	w.m.onCall = func(call string) {
		if call == "holder" {
			entered <- struct{}{}
			<-gate
		}
	}
	first, leave := context.WithCancel(w.ctx)
	ids := make(chan string, 2)
	var wg sync.WaitGroup
	run := func(ctx context.Context) {
		defer wg.Done()
		id, _ := w.mgr.RunPod(ctx, podConfig("a"), "")
		ids <- id
	}
	wg.Add(2)
	go run(first)
	<-entered
	go run(w.ctx)
	for waiters(w.mgr) < 2 {
		time.Sleep(time.Millisecond) // until the second has joined
	}
	leave()
	if id := <-ids; id != "" {
		t.Fatal("the caller that left got an answer")
	}
	close(gate)
	id := <-ids
	wg.Wait()
	if p, err := w.mgr.Pod(id); err != nil || !p.Ready {
		t.Fatalf("the request that joined: %v", err)
	}
	if _, err := w.mgr.RunPod(w.ctx, podConfig("a"), ""); !errs.Is(err, errs.Exists) {
		t.Errorf("a request repeated after its answer: %v", err)
	}
	w.clean()
}

// lateCaller is a context whose time limit is about to end.
type lateCaller struct{ context.Context }

func (lateCaller) Deadline() (time.Time, bool) { return time.Now().Add(answerMargin / 2), true }

func TestAnswerThatCameTooLateIsGivenAgain(t *testing.T) {
	w := newWorld(t)
	late := lateCaller{w.ctx}
	pod, err := w.mgr.RunPod(late, podConfig("a"), "")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.mgr.RunPod(w.ctx, podConfig("a"), ""); err != nil || again != pod {
		t.Errorf("the retry of a pod: %q, %v; want %q", again, err, pod)
	}
	c, err := w.mgr.CreateContainer(late, pod, containerConfig("c"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.mgr.CreateContainer(w.ctx, pod, containerConfig("c"), nil); err != nil || again != c {
		t.Errorf("the retry of a container: %q, %v; want %q", again, err, c)
	}
	w.clean()
}

// TestAnswerThatNobodyHeardIsGivenAgain is a caller that left when the call was over and its answer not there yet.
func TestAnswerThatNobodyHeardIsGivenAgain(t *testing.T) {
	w := newWorld(t)
	left := false
	caller := WithUnheard(w.ctx, func(until time.Time) bool { return left && time.Until(until) > 0 })
	pod, err := w.mgr.RunPod(caller, podConfig("a"), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.mgr.RunPod(caller, podConfig("a"), ""); !errs.Is(err, errs.Exists) {
		t.Errorf("a pod again, whose caller heard of it: %v", err)
	}
	left = true
	other := podConfig("a")
	other.Hostname = "other"
	if _, err := w.mgr.RunPod(w.ctx, other, ""); !errs.Is(err, errs.Exists) {
		t.Errorf("another pod of the name: %v", err)
	}
	if again, err := w.mgr.RunPod(w.ctx, podConfig("a"), ""); err != nil || again != pod {
		t.Errorf("the retry of a pod: %q, %v; want %q", again, err, pod)
	}
	if _, err := w.mgr.RunPod(w.ctx, podConfig("a"), ""); !errs.Is(err, errs.Exists) {
		t.Errorf("a pod once more, after the retry was answered: %v", err)
	}
	c, err := w.mgr.CreateContainer(caller, pod, containerConfig("c"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.mgr.CreateContainer(caller, pod, containerConfig("c"), nil); err != nil || again != c {
		t.Errorf("the retry of a container: %q, %v; want %q", again, err, c)
	}
	if err := w.mgr.StartContainer(caller, c); err != nil {
		t.Fatal(err)
	}
	if err := w.mgr.StartContainer(w.ctx, c); err != nil {
		t.Errorf("the retry of a start: %v", err)
	}
	if err := w.mgr.StartContainer(w.ctx, c); !errs.Is(err, errs.Conflict) {
		t.Errorf("a start once more: %v", err)
	}
	w.clean()
}

func waiters(m *Manager) int {
	m.joins.mu.Lock()
	defer m.joins.mu.Unlock()
	for _, f := range m.joins.jobs {
		return f.waiters
	}
	return 0
}

func TestAbandonedRequestLeavesNothing(t *testing.T) {
	w := newWorld(t)
	ctx, leave := context.WithCancel(w.ctx)
	w.m.onCall = func(call string) {
		if call == "holder" {
			leave()
		}
	}
	if _, err := w.mgr.RunPod(ctx, podConfig("a"), ""); !errs.Is(err, errs.Canceled) {
		t.Fatal(err)
	}
	w.m.mu.Lock()
	w.m.onCall = nil
	w.m.mu.Unlock()
	if _, err := w.mgr.RunPod(w.ctx, podConfig("a"), ""); err != nil {
		t.Fatalf("the next request: %v", err)
	}
	if n := len(w.mgr.Pods()); n != 1 {
		t.Fatalf("%d pods", n)
	}
	w.clean()
}

func TestSecondServerIsRefused(t *testing.T) {
	w := newWorld(t)
	if _, err := Open(w.ctx, w.cfg, images{w.m}, nets{w.m}, w.m); !errs.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
}

func TestSecretsStayOffTheDisk(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	c := containerConfig("c")
	c.Envs = []*cri.KeyValue{{Key: "TOKEN", Value: []byte("hunter2")}}
	id, err := w.mgr.CreateContainer(w.ctx, pod, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(w.mgr.dirs.container(pod, id))
	if err != nil || strings.Contains(string(data), "TOKEN") {
		t.Errorf("the record has the environment: %s, %v", data, err)
	}
	if got := w.container(id).Config.GetEnvs(); len(got) != 1 {
		t.Errorf("envs %v", got)
	}
}
