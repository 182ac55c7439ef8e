package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/shim/internal/server"
)

// ctx bounds a test: no call of a healthy shim takes so long.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// inProcess serves a shim in the test's process, which needs no root, and returns its directory.
func inProcess(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	d, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := listen(d)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { // d is left to its finalizer: a late request may still use it
		over <- server.Run(server.Config{Pod: "test", Listener: os.NewFile(uintptr(fd), "listener"), Dir: d})
	}()
	t.Cleanup(func() {
		if c, err := Dial(context.Background(), dir); err == nil {
			if err := c.Kill(context.Background()); err != nil {
				t.Errorf("end the shim: %v", err)
			}
			c.Close()
		}
		if err := <-over; err != nil {
			t.Errorf("the shim ended with: %v", err)
		}
	})
	return dir
}

func dial(t testing.TB, dir string) *Client {
	t.Helper()
	c, err := Dial(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// box is one container's directory and what was started in it.
type box struct {
	id, dir string
	req     StartRequest
}

func newBox(t testing.TB, id, steps string) *box {
	t.Helper()
	b := &box{id: id, dir: t.TempDir()}
	req, files := script(t, steps)
	b.req = StartRequest{ID: id, Launch: req, Files: files, TTY: req.Terminal}
	b.req.Log = b.openLog(t)
	exit, err := os.Open(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exit.Close() })
	b.req.ExitDir = exit
	return b
}

func (b *box) openLog(t testing.TB) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(b.dir, "0.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func start(t testing.TB, c *Client, id, steps string) *box {
	t.Helper()
	b := newBox(t, id, steps)
	if _, err := c.Start(testContext(t), b.req); err != nil {
		t.Fatalf("start %q: %v", steps, err)
	}
	return b
}

// log returns the log without time stamps.
func (b *box) log(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		ts, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, ts); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		out.WriteString(rest)
	}
	return out.String()
}

// exit waits for the event of a container's exit.
func waitExit(t testing.TB, c *Client, id string) ContainerState {
	t.Helper()
	for {
		select {
		case e, ok := <-c.Events():
			if !ok {
				t.Fatalf("the events ended before %q did", id)
			}
			if e.Type == EventExit && e.State.ID == id {
				return e.State
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%q does not exit", id)
		}
	}
}

func TestContainerLogsAndExits(t *testing.T) {
	c := dial(t, inProcess(t))
	b := start(t, c, "c1", "out:hello;err:oops;printf:no newline;exit:3")
	st := waitExit(t, c, "c1")
	if st.ExitCode != 3 || st.Signal != 0 || !st.Exited || st.OOMKilled || st.FinishedAt.Before(st.StartedAt) {
		t.Errorf("state %+v", st)
	}
	r, err := ReadExit(b.dir) // there before the event
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != "c1" || r.ExitCode != 3 || r.Pid != st.Pid || !r.FinishedAt.Equal(st.FinishedAt) {
		t.Errorf("record %+v", r)
	}
	got := b.log(t, "0.log")
	for _, want := range []string{"stdout F hello\n", "stderr F oops\n", "stdout P no newline\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("the log lacks %q:\n%s", want, got)
		}
	}
}

func TestSignalledContainer(t *testing.T) {
	c := dial(t, inProcess(t))
	start(t, c, "c1", "wait")
	ctx := testContext(t)
	if err := c.Forget(ctx, "c1"); !errs.Is(err, errs.Conflict) {
		t.Errorf("forget of a running container: %v", err)
	}
	if err := c.Signal(ctx, "c1", 9, false); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, c, "c1"); st.ExitCode != 137 || st.Signal != 9 {
		t.Errorf("state %+v", st)
	}
	if err := c.Signal(ctx, "c1", 9, false); !errs.Is(err, errs.NotFound) {
		t.Errorf("signal to an exited container: %v", err)
	}
	if err := c.Signal(ctx, "nobody", 9, false); !errs.Is(err, errs.NotFound) {
		t.Errorf("signal to an unknown container: %v", err)
	}
	states, err := c.States(ctx)
	if err != nil || len(states) != 1 || !states[0].Exited {
		t.Errorf("states %+v, %v", states, err)
	}
	for range 2 {
		if err := c.Forget(ctx, "c1"); err != nil {
			t.Errorf("forget: %v", err)
		}
	}
	if states, err := c.States(ctx); err != nil || len(states) != 0 {
		t.Errorf("states after forget %+v, %v", states, err)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	c := dial(t, inProcess(t))
	ctx := testContext(t)
	_, err := c.Start(ctx, newBox(t, "c1", "fail").req)
	var op *launch.OpError
	if !errors.As(err, &op) || op.Index != 7 || op.Errno != unix.EPERM || !errors.Is(err, os.ErrPermission) {
		t.Errorf("a failed operation came back as %v", err)
	}
	if _, err := c.Start(ctx, newBox(t, "c1", "die").req); err == nil {
		t.Error("a program that died before READY was started")
	}
	if states, err := c.States(ctx); err != nil || len(states) != 0 {
		t.Errorf("states %+v, %v", states, err)
	}
	b := start(t, c, "c1", "out:x;wait")
	if _, err := c.Start(ctx, b.req); !errs.Is(err, errs.Exists) {
		t.Errorf("a second start of the same ID: %v", err)
	}
	if _, err := c.Start(ctx, StartRequest{Launch: b.req.Launch}); !errs.Is(err, errs.Invalid) {
		t.Errorf("a start without ID: %v", err)
	}
}

func TestGate(t *testing.T) {
	c := dial(t, inProcess(t))
	ctx := testContext(t)
	b := start(t, c, "c1", "gate;out:through")
	if states, err := c.States(ctx); err != nil || len(states) != 1 || !states[0].Gated {
		t.Errorf("states %+v, %v", states, err)
	}
	if err := c.Release(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, c, "c1"); st.ExitCode != 0 || st.Gated {
		t.Errorf("state %+v", st)
	}
	if got := b.log(t, "0.log"); got != "stdout F through\n" {
		t.Errorf("log %q", got)
	}
	start(t, c, "c2", "gate;fail")
	if err := c.Release(ctx, "c2"); err == nil || !strings.Contains(err.Error(), "operation 7") {
		t.Errorf("release of a program that fails: %v", err)
	}
	start(t, c, "c3", "gate;out:never")
	if err := c.Signal(ctx, "c3", 9, false); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, c, "c3"); !st.Gated || st.Signal != 9 {
		t.Errorf("its end is told as %+v", st)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		states, err := c.States(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(states) == 1 { // c1: what died at its gate has never been a container
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("states %+v", states)
		}
	}
}

func TestBackgroundProcessDoesNotHoldTheExit(t *testing.T) {
	c := dial(t, inProcess(t))
	b := start(t, c, "c1", "background:30;out:last words;exit:5")
	began := time.Now()
	if st := waitExit(t, c, "c1"); st.ExitCode != 5 {
		t.Errorf("state %+v", st)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the exit was told after %v", took)
	}
	if got := b.log(t, "0.log"); got != "stdout F last words\n" {
		t.Errorf("log %q", got)
	}
	if err := c.Forget(testContext(t), "c1"); err != nil {
		t.Error(err)
	}
}

func TestReopenLogLosesNoLine(t *testing.T) {
	c := dial(t, inProcess(t))
	const lines = 5000
	b := start(t, c, "c1", fmt.Sprintf("tick:%d", lines))
	ctx := testContext(t)
	var names []string
	for i := range 10 {
		name := fmt.Sprintf("rotated-%d.log", i)
		if err := os.Rename(filepath.Join(b.dir, "0.log"), filepath.Join(b.dir, name)); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
		if err := c.ReopenLog(ctx, "c1", b.openLog(t)); err != nil {
			t.Fatal(err)
		}
	}
	waitExit(t, c, "c1")
	var all strings.Builder
	for _, name := range append(names, "0.log") {
		all.WriteString(b.log(t, name))
	}
	checkLines(t, all.String(), lines)
	if err := c.ReopenLog(ctx, "nobody", nil); !errs.Is(err, errs.NotFound) {
		t.Errorf("reopen of an unknown container: %v", err)
	}
}

func checkLines(t testing.TB, log string, n int) {
	t.Helper()
	i := 0
	for line := range strings.Lines(log) {
		if want := fmt.Sprintf("stdout F line %d\n", i); line != want {
			t.Fatalf("entry %d is %q, want %q", i, line, want)
		}
		i++
	}
	if i != n {
		t.Fatalf("the log has %d lines, want %d", i, n)
	}
}

func TestExec(t *testing.T) {
	c := dial(t, inProcess(t))
	ctx := testContext(t)
	start(t, c, "c1", "wait")
	exec := func(id, container, steps string, stdio [3]*os.File) (*Exec, error) {
		req, files := script(t, steps)
		return c.Exec(ctx, ExecRequest{ID: id, ContainerID: container, Launch: req, Files: files, Stdio: stdio})
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	e, err := exec("e1", "c1", "out:from exec;exit:4", [3]*os.File{nil, w, nil})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(r); string(out) != "from exec\n" {
		t.Errorf("output %q, %v", out, err)
	}
	if st, err := e.Wait(ctx); err != nil || st.ExitCode != 4 {
		t.Errorf("status %+v, %v", st, err)
	}
	e, err = exec("e2", "c1", "background:30;wait", [3]*os.File{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.KillAll(ctx, 9); err != nil {
		t.Fatal(err)
	}
	if st, err := e.Wait(ctx); err != nil || st.ExitCode != 137 {
		t.Errorf("status %+v, %v", st, err)
	}
	if _, err := exec("e3", "nobody", "wait", [3]*os.File{}); !errs.Is(err, errs.NotFound) {
		t.Errorf("exec in an unknown container: %v", err)
	}
	if _, err := exec("e4", "c1", "fail", [3]*os.File{}); err == nil {
		t.Error("an exec that fails was started")
	}
	if err := c.Signal(ctx, "c1", 9, false); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c, "c1")
	if _, err := exec("e5", "c1", "wait", [3]*os.File{}); !errs.Is(err, errs.Conflict) {
		t.Errorf("exec in an exited container: %v", err)
	}
}

func TestHolderAndShutdown(t *testing.T) {
	dir := inProcess(t)
	c := dial(t, dir)
	ctx := testContext(t)
	req, files := script(t, "wait")
	pid, err := c.Holder(ctx, req, files)
	if err != nil || pid <= 0 {
		t.Fatalf("holder: %d, %v", pid, err)
	}
	if _, err := c.Holder(ctx, req, files); !errs.Is(err, errs.Exists) {
		t.Errorf("a second holder: %v", err)
	}
	b := start(t, c, "c1", "wait")
	if err := c.Shutdown(ctx); !errs.Is(err, errs.Conflict) {
		t.Errorf("shutdown with a running container: %v", err)
	}
	if err := c.Signal(ctx, "", 9, false); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, c, ""); !st.Holder || st.ExitCode != 137 {
		t.Errorf("holder's state %+v", st)
	}
	if _, err := c.Holder(ctx, req, files); err != nil {
		t.Errorf("a holder after the first has gone: %v", err)
	}
	if err := c.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadExit(b.dir); err != nil || r.ExitCode != 137 {
		t.Errorf("record of the killed container: %+v, %v", r, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "shim.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after shutdown: %v", err)
	}
	if _, err := Dial(ctx, dir); !errs.Is(err, errs.NotFound) {
		t.Errorf("dial after shutdown: %v", err)
	}
}

func TestNewClientFindsWhatTheFormerLeft(t *testing.T) {
	dir := inProcess(t)
	first := dial(t, dir)
	b := start(t, first, "c1", "out:one;wait")
	gone := start(t, first, "c2", "exit:6")
	waitExit(t, first, "c2")
	first.Close()
	if _, err := first.States(testContext(t)); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a call on a closed client: %v", err)
	}
	second := dial(t, dir)
	ctx := testContext(t)
	states, err := second.States(ctx)
	if err != nil || len(states) != 2 {
		t.Fatalf("states %+v, %v", states, err)
	}
	for _, st := range states {
		if st.ID == "c1" && st.Exited || st.ID == "c2" && (!st.Exited || st.ExitCode != 6) {
			t.Errorf("state %+v", st)
		}
	}
	if _, err := ReadExit(gone.dir); err != nil {
		t.Error(err)
	}
	if err := second.Signal(ctx, "c1", 15, false); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, second, "c1"); st.ExitCode != 0 {
		t.Errorf("state %+v", st)
	}
	if got := b.log(t, "0.log"); got != "stdout F one\n" {
		t.Errorf("log %q", got)
	}
}

func TestUnusedShimEndsWithItsClient(t *testing.T) {
	dir := inProcess(t)
	c := dial(t, dir)
	c.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "shim.sock")); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a shim that keeps nothing and that nobody speaks to lives on")
		}
	}
}
