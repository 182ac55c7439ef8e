//go:build root

package host

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// buffer is a bytes.Buffer for two goroutines that tells of every write.
type buffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	wake chan struct{}
}

func newBuffer() *buffer { return &buffer{wake: make(chan struct{}, 1)} }

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// until waits for text to appear.
func (b *buffer) until(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for !strings.Contains(b.String(), text) {
		select {
		case <-b.wake:
		case <-timeout:
			t.Fatalf("%q did not appear in %q", text, b.String())
		}
	}
}

func TestExecStreams(t *testing.T) {
	r := newRig(t)
	id := r.container(r.runPod(r.podConfig("a")), "c", "exec sleep 1000")
	out, errOut := newBuffer(), newBuffer()
	code, err := r.mgr.Exec(r.ctx, id, sandbox.ExecStreams{
		Cmd: []string{"sh", "-c", "cat; echo err >&2; exit 3"}, Stdin: strings.NewReader("in\n"), Stdout: out, Stderr: errOut,
	})
	if err != nil || code != 3 || out.String() != "in\n" || errOut.String() != "err\n" {
		t.Errorf("exit %d, %v, %q, %q", code, err, out, errOut)
	}
	r.removeAll()
}

func TestExecTerminal(t *testing.T) {
	r := newRig(t)
	id := r.container(r.runPod(r.podConfig("a")), "c", "exec sleep 1000")
	in, typed := io.Pipe()
	out := newBuffer()
	resize := make(chan sandbox.Size, 1)
	resize <- sandbox.Size{Width: 123, Height: 45}
	done := make(chan error, 1)
	go func() {
		code, err := r.mgr.Exec(r.ctx, id, sandbox.ExecStreams{Cmd: []string{"sh"}, TTY: true, Stdin: in, Stdout: out, Resize: resize})
		if err == nil && code != 7 {
			err = fmt.Errorf("exit %d", code)
		}
		done <- err
	}()
	fmt.Fprint(typed, "tty\n")
	out.until(t, "/dev/pts/")
	fmt.Fprint(typed, "sleep 999 & exit 7\n") // a child that keeps the terminal open holds nobody
	if err := <-done; err != nil {
		t.Error(err)
	}
	typed.Close()
	r.removeAll()
}

func TestExecEndsWithItsClient(t *testing.T) {
	r := newRig(t)
	id := r.container(r.runPod(r.podConfig("a")), "c", "exec sleep 1000")
	ctx, leave := context.WithCancel(r.ctx)
	out := newBuffer()
	done := make(chan error, 1)
	go func() {
		_, err := r.mgr.Exec(ctx, id, sandbox.ExecStreams{Cmd: []string{"sh", "-c", "echo up; exec sleep 4321"}, Stdout: out})
		done <- err
	}()
	out.until(t, "up")
	leave()
	if err := <-done; !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
	if got := r.exec(id, "ps"); strings.Contains(got, "4321") {
		t.Errorf("it lives on: %s", got)
	}
	r.removeAll()
}

// TestExecSyncLeavesNothing runs commands whose children keep the streams open, in the daemon's view and the shim's.
func TestExecSyncLeavesNothing(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	id := r.container(pod, "c", "exec sleep 1000")
	p, _ := r.mgr.Pod(pod)
	count := func() (fds, goroutines, shim int) {
		ours, _ := os.ReadDir("/proc/self/fd")
		theirs, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.ShimPid))
		return len(ours), runtime.NumGoroutine(), len(theirs)
	}
	r.exec(id, "sleep 1000 & true")
	fds, goroutines, shim := count()
	for range 60 {
		r.exec(id, "sleep 1000 & true")
	}
	fds2, goroutines2, shim2 := count()
	if fds2 > fds+8 || goroutines2 > goroutines+8 || shim2 > shim+8 {
		t.Errorf("descriptors %d then %d, goroutines %d then %d, the shim's descriptors %d then %d", fds, fds2, goroutines, goroutines2, shim, shim2)
	}
	r.removeAll()
}

func TestAttach(t *testing.T) {
	r := newRig(t)
	id := r.container(r.runPod(r.podConfig("a")), "c", "while read x; do echo got $x; done; echo end", func(c *cri.ContainerConfig) {
		c.Stdin, c.StdinOnce = true, true
	})
	in, typed := io.Pipe()
	out := newBuffer()
	done := make(chan error, 1)
	go func() { done <- r.mgr.Attach(r.ctx, id, sandbox.AttachStreams{Stdin: in, Stdout: out, Stderr: out}) }()
	fmt.Fprint(typed, "one\n")
	out.until(t, "got one")
	typed.Close() // stdin_once: the container reads its end
	if err := <-done; err != nil {
		t.Error(err)
	}
	if c := r.await(id); c.ExitCode != 0 || !strings.Contains(out.String(), "end") {
		t.Errorf("exit %d, %q", c.ExitCode, out)
	}
	if log := r.log(id); !strings.Contains(log, "got one") || !strings.Contains(log, "stdout F end") {
		t.Errorf("log %q", log)
	}
	r.removeAll()
}

func TestAttachStdinAlone(t *testing.T) {
	r := newRig(t)
	id := r.container(r.runPod(r.podConfig("a")), "c", "read x; echo got $x", func(c *cri.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
	if err := r.mgr.Attach(r.ctx, id, sandbox.AttachStreams{Stdin: strings.NewReader("one\n")}); err != nil {
		t.Error(err)
	}
	r.await(id)
	if log := r.log(id); !strings.Contains(log, "got one") {
		t.Errorf("log %q", log)
	}
	r.removeAll()
}

func TestAttachDetaches(t *testing.T) {
	r := newRig(t)
	id := r.container(r.runPod(r.podConfig("a")), "c", "while :; do echo tick; sleep 0.05; done")
	ctx, leave := context.WithCancel(r.ctx)
	out := newBuffer()
	done := make(chan error, 1)
	go func() { done <- r.mgr.Attach(ctx, id, sandbox.AttachStreams{Stdout: out}) }()
	out.until(t, "tick")
	leave()
	if err := <-done; !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
	if c, _ := r.mgr.Container(id); c.State() != sandbox.Running {
		t.Error("the container ended with its client")
	}
	r.removeAll()
}

func TestPortForward(t *testing.T) {
	r := newRig(t)
	pod := r.runPod(r.podConfig("a"))
	// Whether nc listens is read, not tried: it serves one connection.
	r.exec(r.container(pod, "c", "nc -l -p 8000 -e cat"), "until cat /proc/net/tcp /proc/net/tcp6 | grep -q ':1F40 [0-9A-F:]* 0A '; do sleep 0.05; done")
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	go func() { done <- r.mgr.PortForward(ctx, pod, 8000, theirs) }()
	fmt.Fprint(ours, "hello\n")
	buf := make([]byte, 6)
	if _, err := io.ReadFull(ours, buf); err != nil || string(buf) != "hello\n" {
		t.Errorf("%q, %v", buf, err)
	}
	ours.Close()
	<-done
	refused, other := net.Pipe()
	defer refused.Close()
	if err := r.mgr.PortForward(ctx, pod, 9, other); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a port that nobody has: %v", err)
	}
	r.removeAll()
}

func TestReopenLogLosesNothing(t *testing.T) {
	r := newRig(t)
	id := r.container(r.runPod(r.podConfig("a")), "c", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done")
	c, _ := r.mgr.Container(id)
	var parts []string
	for n := 0; ; n++ {
		if s, _ := r.mgr.Container(id); s.State() == sandbox.Exited {
			break
		}
		old := fmt.Sprintf("%s.%d", c.LogPath, n)
		if err := os.Rename(c.LogPath, old); err != nil {
			t.Fatal(err)
		}
		parts = append(parts, old)
		if err := r.mgr.ReopenLog(r.ctx, id); err != nil {
			if _, serr := os.Lstat(c.LogPath); serr == nil {
				t.Error("a failed reopening left a file")
			}
			break // it has ended meanwhile
		}
	}
	r.await(id)
	lines := 0
	for _, p := range append(parts, c.LogPath) {
		data, err := os.ReadFile(p)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		lines += bytes.Count(data, []byte(" stdout F line "))
	}
	if lines != 5000 {
		t.Errorf("%d of 5000 lines", lines)
	}
	r.removeAll()
}

// TestLimitedParent is a pod whose parent cgroup, which is the client's, is small.
func TestLimitedParent(t *testing.T) {
	r := newRig(t)
	parent := r.cfg.CgroupRoot + "-limited"
	g, err := r.m.cgroups.Create(parent, cgroupOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Delete(r.ctx); err != nil {
			t.Error(err)
		}
	}()
	if err := g.Apply(limits(20, 64<<20)); err != nil {
		t.Fatal(err)
	}
	other := r.container(r.runPod(r.podConfig("b")), "c", "exec sleep 1000")
	config := r.podConfig("a")
	config.Linux.CgroupParent = parent
	pod := r.runPod(config)
	p, _ := r.mgr.Pod(pod)
	bomb := r.container(pod, "memory", "echo before; x=a; while :; do x=$x$x; done")
	if c := r.await(bomb); c.ExitCode != 137 || c.Reason != "OOMKilled" {
		t.Errorf("memory bomb: exit %d, reason %s", c.ExitCode, c.Reason)
	}
	if log := r.log(bomb); !strings.Contains(log, "before") {
		t.Errorf("log %q", log)
	}
	forks := r.container(pod, "forks", "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; exit 0")
	if c := r.await(forks); c.Reason == "OOMKilled" || c.ExitCode == 137 {
		t.Errorf("fork bomb: exit %d, reason %s", c.ExitCode, c.Reason)
	}
	if !alive(p.ShimPid) {
		t.Error("the shim died")
	}
	if got := r.exec(other, "echo ok"); got != "ok" {
		t.Error("another pod is harmed")
	}
	r.clean()
	r.removeAll()
}
