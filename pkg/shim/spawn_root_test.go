//go:build root

package shim

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

func spawnConfig(t testing.TB) SpawnConfig {
	t.Helper()
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if libs, err := self.ImportedLibraries(); err != nil || len(libs) > 0 {
		testroot.Skip(t, "the test binary is what containers run and is linked to libraries, which they do not have: set CGO_ENABLED=0")
	}
	return SpawnConfig{PodID: "test", Exe: testroot.Runtime(t), Dir: t.TempDir()}
}

func spawn(t testing.TB, cfg SpawnConfig) *Client {
	t.Helper()
	c, err := Spawn(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		endShim(t, cfg.Dir)
	})
	return c
}

// endShim ends the shim that lives in dir, if one does.
func endShim(t testing.TB, dir string) {
	c, err := Dial(context.Background(), dir)
	if errs.Is(err, errs.NotFound) {
		return
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if err := c.Kill(context.Background()); err != nil && !errs.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Error("the shim does not end")
	}
}

func procFile(t testing.TB, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSpawnedShimIsClosedToOthers(t *testing.T) {
	cfg := spawnConfig(t)
	leak, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0) // a descriptor that would be inherited
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	c := spawn(t, cfg)
	if _, err := c.States(testContext(t)); err != nil {
		t.Fatal(err)
	}
	pid := c.Info().Pid
	if st, err := os.Stat(filepath.Join(cfg.Dir, "shim.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
	status := procFile(t, pid, "status")
	if !strings.Contains(status, "NSsid:\t"+strconv.Itoa(pid)) {
		t.Error("it has no session of its own")
	}
	if got := strings.TrimSpace(procFile(t, pid, "environ")); strings.Trim(got, "\x00") != "GOGC=10\x00GOMAXPROCS=1\x00GODEBUG=containermaxprocs=0" {
		t.Errorf("its environment is %q", got)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		n, _ := strconv.Atoi(fd.Name())
		if n >= firstFD && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "socket:") {
			t.Errorf("descriptor %d of the shim is %s", n, to)
		}
	}
	var seen []string
	for line := range strings.Lines(procFile(t, pid, "mountinfo")) {
		seen = append(seen, strings.Fields(line)[4])
	}
	if got := strings.Join(seen, " "); got != "/ /proc /sys" {
		t.Errorf("its mounts are %s", got)
	}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	ns := map[string]bool{}
	for _, task := range tasks {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/task/%s/ns/mnt", pid, task.Name()))
		root, _ := os.Readlink(fmt.Sprintf("/proc/%d/task/%s/root", pid, task.Name()))
		ns[to+root] = true
	}
	if len(ns) != 1 {
		t.Errorf("its threads are in several places: %v", ns)
	}
	tryAsNobody(t, cfg.Dir, pid)
}

// tryAsNobody checks what a process of another user can do to the shim, even with the modes out of the way.
func tryAsNobody(t *testing.T, dir string, pid int) {
	for _, p := range []string{dir, filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "shim.sock"), 0o666); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "prog")
	if err := os.Link(exe, own); err != nil {
		b, rerr := os.ReadFile(exe)
		if rerr != nil || os.WriteFile(own, b, 0o755) != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(own, "daemon", "dial", dir, strconv.Itoa(pid))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "refused") {
		t.Errorf("as nobody: %s %v", out, err)
	}
}

func TestSpawnedShimIsWhereItShouldBe(t *testing.T) {
	cfg := spawnConfig(t)
	host, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	g, err := host.Create(testroot.Cgroup(t)+"/shims", cgroup.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Cgroup, err = g.Dir(); err != nil {
		t.Fatal(err)
	}
	if cfg.TaskFiles, err = g.TaskFiles(); err != nil {
		t.Fatal(err)
	}
	cfg.ShmSize = 8 << 20
	before := procFile(t, os.Getpid(), "cgroup")
	c := spawn(t, cfg)
	ctx := testContext(t)
	if _, err := c.States(ctx); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(procFile(t, c.Info().Pid, "cgroup")) {
		if !strings.HasSuffix(strings.TrimSpace(line), "/shims") {
			t.Errorf("the shim is in %s", line)
		}
	}
	if after := procFile(t, os.Getpid(), "cgroup"); after != before {
		t.Errorf("the spawner moved: %s", after)
	}
	b := start(t, c, "c1", "look:mounts;look:shm")
	waitExit(t, c, "c1")
	want := "stdout F /\nstdout F /proc\nstdout F /sys\nstdout F /dev/shm\nstdout F 8388608\n"
	if got := b.log(t, "0.log"); got != want {
		t.Errorf("a program sees\n%swant\n%s", got, want)
	}
	if adj := strings.TrimSpace(procFile(t, c.Info().Pid, "oom_score_adj")); adj != "-998" && adj != "0" {
		t.Errorf("its oom_score_adj is %s", adj)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b = start(t, c, "c2", "look:fds")
	waitExit(t, c, "c2")
	for line := range strings.Lines(b.log(t, "0.log")) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue // the directory that is being read
		}
		// A program begins with its own file and closes it; this one is not so careful.
		if n, _ := strconv.Atoi(fields[2]); n > 2 && fields[3] != self && !strings.Contains(line, "anon_inode") {
			t.Errorf("a program was started with %s", line)
		}
	}
}

func TestSpawnInALongPathAndOverARemnant(t *testing.T) {
	cfg := spawnConfig(t)
	cfg.Dir = filepath.Join(cfg.Dir, strings.Repeat("d", 200))
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c := spawn(t, cfg)
	ctx := testContext(t)
	req, files := script(t, "wait")
	if _, err := c.Holder(ctx, req, files); err != nil {
		t.Fatal(err)
	}
	if _, err := Spawn(ctx, cfg); !errs.Is(err, errs.Exists) {
		t.Errorf("a second shim in the same directory: %v", err)
	}
	pid := c.Info().Pid
	if err := unix.Kill(pid, unix.SIGTERM); err != nil { // a polite signal does not end it
		t.Fatal(err)
	}
	if _, err := c.States(ctx); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("Done does not tell that the shim is dead")
	}
	if _, err := c.States(ctx); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a call to a dead shim: %v", err)
	}
	for range c.Events() {
		t.Error("an event of a dead shim")
	}
	if _, err := Dial(ctx, cfg.Dir); !errs.Is(err, errs.NotFound) {
		t.Errorf("dial of a dead shim: %v", err)
	}
	if _, err := Dial(ctx, cfg.Dir+"/nowhere"); !errs.Is(err, errs.NotFound) {
		t.Errorf("dial where nothing is: %v", err)
	}
	again := spawn(t, cfg)
	if states, err := again.States(ctx); err != nil || len(states) != 0 {
		t.Errorf("the next shim: %v, %v", states, err)
	}
}

func TestShimThatCannotComeUpSaysWhy(t *testing.T) {
	cfg := spawnConfig(t)
	cfg.ShmSize = -1
	c, err := Spawn(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.States(testContext(t)); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "--shm=-1") {
		t.Errorf("got %v", err)
	}
	cfg.Exe = "/nowhere/cri-runtime"
	if _, err := Spawn(testContext(t), cfg); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an executable that is not there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "shim.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed spawn leaves a socket: %v", err)
	}
}

func TestFaultsAroundTheExitRecord(t *testing.T) {
	for _, tt := range []struct {
		place  string
		record bool
	}{{"shim/launch", false}, {"shim/launched", false}, {"shim/record", false}, {"shim/recorded", true}} {
		t.Run(tt.place, func(t *testing.T) {
			cfg := spawnConfig(t)
			t.Setenv(fault.Env, tt.place+"=kill")
			c := spawn(t, cfg)
			b := newBox(t, "c1", "exit:7")
			_, err := c.Start(testContext(t), b.req)
			if strings.HasPrefix(tt.place, "shim/launch") != (err != nil) {
				t.Errorf("start: %v", err)
			}
			select {
			case <-c.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the shim lives")
			}
			r, err := ReadExit(b.dir)
			if tt.record && (err != nil || r.ExitCode != 7) || !tt.record && !errs.Is(err, errs.NotFound) {
				t.Errorf("record %+v, %v", r, err)
			}
		})
	}
}

func TestOrphansAreReaped(t *testing.T) {
	c := spawn(t, spawnConfig(t))
	start(t, c, "c1", "orphans:100;out:made;wait")
	ctx := testContext(t)
	for i := range 20 { // starts in flight beside orphans that end: no exit is stolen
		id := fmt.Sprintf("x%d", i)
		start(t, c, id, "exit:"+strconv.Itoa(i))
		if st := waitExit(t, c, id); st.ExitCode != i {
			t.Errorf("state %+v", st)
		}
	}
	if err := c.Signal(ctx, "c1", 15, false); err != nil {
		t.Fatal(err)
	}
	waitExit(t, c, "c1")
	shim := strconv.Itoa(c.Info().Pid)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, err := os.ReadFile("/proc/" + shim + "/task/" + shim + "/children")
		if err != nil {
			t.Fatal(err)
		}
		children := len(bytes.Fields(out))
		tasks, _ := filepath.Glob("/proc/" + shim + "/task/*/children")
		for _, f := range tasks {
			b, _ := os.ReadFile(f)
			children += len(bytes.Fields(b))
		}
		if children == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d children are left", children)
		}
	}
}

func TestTerminal(t *testing.T) {
	c := spawn(t, spawnConfig(t))
	ctx := testContext(t)
	b := newBox(t, "c1", "tty;cat")
	b.req.Stdin = true
	if _, err := c.Start(ctx, b.req); err != nil {
		t.Fatal(err)
	}
	if err := c.Resize(ctx, "c1", 100, 40); err != nil {
		t.Fatal(err)
	}
	stdin, stdout, stderr, err := c.Attach(ctx, "c1", AttachRequest{Stdin: true, Stdout: true, Stderr: true})
	if err != nil || stderr != nil {
		t.Fatalf("attach: %v, stderr %v", err, stderr)
	}
	if _, err := io.WriteString(stdin, "hi\n\x04"); err != nil { // ^D at a line's start ends the input
		t.Fatal(err)
	}
	out, err := io.ReadAll(stdout)
	if want := "hi\r\n^D\b\bhi\r\n"; string(out) != want && string(out) != "hi\r\nhi\r\n" && !strings.HasPrefix(string(out), "hi\r\n") {
		t.Errorf("the terminal said %q, %v", out, err)
	}
	if st := waitExit(t, c, "c1"); st.ExitCode != 0 {
		t.Errorf("state %+v", st)
	}
	if got := b.log(t, "0.log"); !strings.HasPrefix(got, "stdout F hi\r\n") {
		t.Errorf("log %q", got)
	}
	start(t, c, "c2", "wait")
	if err := c.Resize(ctx, "c2", 1, 1); !errs.Is(err, errs.Invalid) {
		t.Errorf("resize without a terminal: %v", err)
	}
	execTerminal(t, c)
}

func execTerminal(t *testing.T, c *Client) {
	ctx := testContext(t)
	req, files := script(t, "tty;gate;size;exit:2")
	e, err := c.Exec(ctx, ExecRequest{ID: "e1", ContainerID: "c2", Launch: req, Files: files, TTY: true})
	if err != nil || e.Console == nil {
		t.Fatalf("exec with a terminal: %v", err)
	}
	defer e.Console.Close()
	if err := e.Resize(90, 30); err != nil {
		t.Fatal(err)
	}
	if err := e.Release(ctx); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(e.Console) // ends with EIO
	if string(out) != "size 90x30\r\n" {
		t.Errorf("the exec's terminal said %q", out)
	}
	if st, err := e.Wait(ctx); err != nil || st.ExitCode != 2 {
		t.Errorf("status %+v, %v", st, err)
	}
}
