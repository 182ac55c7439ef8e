//go:build root

package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
)

func TestLife(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) { s.Annotations = map[string]string{"a": "b"} }, "sleep", "1000")
	pidFile := filepath.Join(t.TempDir(), "pid")
	b.ok("create", "--pid-file", pidFile, "--bundle", b.bundle, "c1")
	if s := b.status("c1"); s != statusCreated {
		t.Errorf("after create: %s", s)
	}
	var s shown
	if err := json.Unmarshal([]byte(b.ok("state", "c1")), &s); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(pidFile); err != nil || string(text) != strconv.Itoa(s.Pid) || s.Annotations["a"] != "b" || s.Rootfs != b.bundle+"/rootfs" {
		t.Errorf("%+v, pid file %s, %v", s, text, err)
	}
	for _, c := range []struct{ args, want string }{
		{"create --bundle " + b.bundle + " c1", "container with given ID already exists"},
		{"run --bundle " + b.bundle + " c1", "container with id exists"},
		{"resume c1", "container not paused"},
	} {
		if r := b.do(strings.Fields(c.args)...); r.code != 1 || !strings.Contains(r.err, c.want) {
			t.Errorf("%s: %+v", c.args, r)
		}
	}
	b.ok("start", "c1")
	if r := b.do("start", "c1"); r.code != 1 || !strings.Contains(r.err, "cannot start an already running container") {
		t.Errorf("%+v", r)
	}
	if r := b.do("delete", "c1"); r.code != 1 || !strings.Contains(r.err, "cannot delete container c1 that is not stopped: running") {
		t.Errorf("%+v", r)
	}
	b.wait("c1", statusRunning)
	b.ok("delete", "--force", "c1")
}

// TestNoProcess: a configuration need not say what to run until it is started.
func TestNoProcess(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) { s.Process = nil })
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "process property must not be empty") {
		t.Errorf("%+v", r)
	}
	b.ok("create", "--bundle", b.bundle, "c1")
	file := filepath.Join(t.TempDir(), "process.json")
	if err := os.WriteFile(file, []byte(`{"args":["id","-u"],"cwd":"/","env":["PATH=/bin"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := b.ok("exec", "--process", file, "c1"); out != "0\n" {
		t.Errorf("exec: %q", out)
	}
	if r := b.do("start", "c1"); r.code != 0 || !strings.Contains(r.err, "has no process to start") {
		t.Errorf("%+v", r)
	}
	b.wait("c1", statusStopped)
	b.ok("delete", "c1")
}

// TestPauseAndEnd goes on from a running container.
func TestPauseAndEnd(t *testing.T) {
	b := newBench(t)
	b.config("c1", nil, "sleep", "1000")
	b.ok("run", "--detach", "--bundle", b.bundle, "c1")
	var s shown
	if err := json.Unmarshal([]byte(b.ok("state", "c1")), &s); err != nil {
		t.Fatal(err)
	}
	b.wait("c1", statusRunning)
	b.ok("pause", "c1")
	if s := b.status("c1"); s != statusPaused {
		t.Errorf("after pause: %s", s)
	}
	if r := b.do("exec", "c1", "true"); r.code != 255 || !strings.Contains(r.err, "cannot exec in a paused container") {
		t.Errorf("%+v", r)
	}
	late := b.cmd("exec", "--ignore-paused", "c1", "true")
	if err := late.Start(); err != nil {
		t.Fatal(err)
	}
	b.ok("resume", "c1")
	if err := late.Wait(); err != nil {
		t.Errorf("exec in a container that was paused for a while: %v", err)
	}
	b.ok("update", "--pids-limit", "50", "--memory", "67108864", "c1")
	if out := b.ok("ps", "--format", "json", "c1"); out != "["+strconv.Itoa(s.Pid)+"]\n" {
		t.Errorf("ps: %s", out)
	}
	b.ok("kill", "c1", "KILL")
	b.wait("c1", statusStopped)
	if r := b.do("kill", "c1", "KILL"); r.code != 1 || !strings.Contains(r.err, "container not running") {
		t.Errorf("%+v", r)
	}
	b.ok("kill", "--all", "c1", "KILL")
	if r := b.do("start", "c1"); r.code != 1 || !strings.Contains(r.err, "cannot start a container that has stopped") {
		t.Errorf("%+v", r)
	}
	if r := b.do("exec", "c1", "true"); r.code != 255 || !strings.Contains(r.err, "cannot exec in a stopped container") {
		t.Errorf("%+v", r)
	}
	b.ok("delete", "c1")
	b.ok("create", "--bundle", b.bundle, "c1")
	if r := b.do("kill", "c1", "USR1"); r.code != 0 || b.status("c1") != statusCreated {
		t.Errorf("a signal that means nothing to what waits: %+v", r)
	}
	b.ok("kill", "c1")
	b.wait("c1", statusStopped)
	b.ok("delete", "c1")
	// A created container may be deleted, a running one by force.
	b.ok("create", "--bundle", b.bundle, "c1")
	b.ok("delete", "c1")
	b.ok("run", "--detach", "--bundle", b.bundle, "c1")
	b.ok("delete", "--force", "c1")
	b.ok("delete", "--force", "c1")
}

// TestNoLinux: the section that is for Linux may be missing, and then asks for nothing.
func TestNoLinux(t *testing.T) {
	b := newBench(t)
	b.config("", func(s *specs.Spec) { s.Linux, s.Hostname, s.Mounts = nil, "", nil }, "echo", "x")
	id := "cri-test-nolinux-" + strconv.Itoa(os.Getpid()) // in no cgroup of ours
	if out := b.ok("run", "--bundle", b.bundle, id); out != "x\n" {
		t.Error(out)
	}
}

// TestExplainHeld: the operations of a program that waits for its cgroup have other numbers, and start names the right ones.
func TestExplainHeld(t *testing.T) {
	b := newBench(t)
	b.config("c1", nil, "true")
	b.ok("create", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "--force", "c1")
	c, err := (&app{root: b.root}).load("c1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	const waits = 3 // operations
	texts := map[string]bool{}
	for i := 10; i < 40; i++ {
		c.Unit = nil
		want := c.explain(&launch.OpError{Index: i, Errno: unix.EPERM}).Error()
		c.Unit = &systemd.Unit{User: true}
		if got := c.explain(&launch.OpError{Index: i + waits, Errno: unix.EPERM}).Error(); got != want {
			t.Errorf("operation %d: %s, want %s", i, got, want)
		}
		texts[want] = true
	}
	if len(texts) < 3 {
		t.Errorf("that says nothing: %v", texts)
	}
}
