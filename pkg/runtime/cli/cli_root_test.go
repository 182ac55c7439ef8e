//go:build root

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// bench is a bundle and a root of its own.
type bench struct {
	t            *testing.T
	root, bundle string
	cgroup       string // of containers, below the test's
	made         int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	testroot.NeedRoot(t)
	b := &bench{t: t, root: t.TempDir(), bundle: t.TempDir(), cgroup: testroot.Cgroup(t) + "/cli"}
	testroot.Rootfs(t, b.bundle)
	t.Cleanup(b.leftovers)
	return b
}

// leftovers fails the test when a container has left anything.
func (b *bench) leftovers() {
	if list, err := os.ReadDir(b.root); err == nil && len(list) > 0 {
		b.t.Errorf("left below the root: %v", list)
	}
	err := filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasSuffix(p, b.cgroup) {
			b.t.Errorf("left: %s", p)
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		b.t.Error(err)
	}
}

// config writes the bundle's configuration: the example without a terminal, as change makes it.
func (b *bench) config(id string, change func(*specs.Spec), args ...string) {
	b.t.Helper()
	s := example()
	s.Process.Terminal = false
	s.Process.Args = args
	s.Linux.CgroupsPath = b.cgroup + "/" + id
	if change != nil {
		change(s)
	}
	data, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) cmd(args ...string) *exec.Cmd { return call(b.root, args...) }

// ok runs a command that has to succeed and returns what it printed. Its files are not ours: a container
// that stays keeps them open.
func (b *bench) ok(args ...string) string {
	b.t.Helper()
	r := b.do(args...)
	if r.code != 0 {
		b.t.Fatalf("%v: %+v", args, r)
	}
	return r.out
}

func (b *bench) do(args ...string) result {
	b.t.Helper()
	b.made++
	dir := b.t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer out.Close()
	errs, err := os.Create(filepath.Join(dir, "err"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer errs.Close()
	cmd := b.cmd(args...)
	cmd.Stdout, cmd.Stderr = out, errs
	_ = cmd.Run()
	o, _ := os.ReadFile(out.Name())
	e, _ := os.ReadFile(errs.Name())
	return result{cmd.ProcessState.ExitCode(), string(o), string(e)}
}

func (b *bench) status(id string) string {
	b.t.Helper()
	var s shown
	if err := json.Unmarshal([]byte(b.ok("state", id)), &s); err != nil {
		b.t.Fatal(err)
	}
	if (s.Pid == 0) != (s.Status == statusStopped) {
		b.t.Errorf("a %s container has pid %d", s.Status, s.Pid)
	}
	return s.Status
}

// wait waits for a status that comes of itself.
func (b *bench) wait(id, status string) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); b.status(id) != status; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("container %s is %s, want %s", id, b.status(id), status)
		}
	}
}

func TestRun(t *testing.T) {
	b := newBench(t)
	b.config("c1", nil, "sh", "-c", "id -u; hostname; echo $PATH; cat; exit 7")
	cmd := b.cmd("run", "--bundle", b.bundle, "c1")
	cmd.Stdin = strings.NewReader("typed\n")
	r := run(t, cmd)
	if r.code != 7 || r.out != "0\ncontainer\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\ntyped\n" {
		t.Errorf("%+v", r)
	}
	b.config("c1", nil, "sh", "-c", "kill -9 $$")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 0 && r.code != 137 { // PID 1 does not die of its own SIGKILL
		t.Errorf("%+v", r)
	}
	b.config("c1", nil, "/no/such/program")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "/no/such/program") || !strings.Contains(r.err, "no such file or directory") {
		t.Errorf("%+v", r)
	}
	b.config("c1", nil, "nosuch")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(unquote(r.err), `exec: "nosuch": executable file not found in $PATH`) {
		t.Errorf("%+v", r)
	}
	b.config("c1", nil, "true")
	if r := b.do("run", "--keep", "--bundle", b.bundle, "c1"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if s := b.status("c1"); s != statusStopped {
		t.Errorf("a kept container is %s", s)
	}
	b.ok("delete", "c1")
}

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
	// A created container may be deleted, a running one by force.
	b.ok("create", "--bundle", b.bundle, "c1")
	b.ok("delete", "c1")
	b.ok("run", "--detach", "--bundle", b.bundle, "c1")
	b.ok("delete", "--force", "c1")
	b.ok("delete", "--force", "c1")
}

func TestExec(t *testing.T) {
	b := newBench(t)
	b.config("c1", nil, "sleep", "1000")
	b.ok("run", "--detach", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "-f", "c1")
	for _, c := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{"exec", "c1", "sh", "-c", "hostname; exit 9"}, 9, "container\n"},
		{[]string{"exec", "--user", "12:34", "c1", "sh", "-c", "id -u; id -g"}, 0, "12\n34\n"},
		{[]string{"exec", "-e", "A=b c", "--cwd", "/tmp", "c1", "sh", "-c", "echo $A; pwd"}, 0, "b c\n/tmp\n"},
		{[]string{"exec", "c1", "sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"exec", "--cap", "CAP_NET_RAW", "c1", "grep", "CapPrm", "/proc/self/status"}, 0, "CapPrm:\t0000000020002420\n"},
		{[]string{"exec", "c1", "grep", "-c", "NoNewPrivs:.1", "/proc/self/status"}, 0, "1\n"},
		{[]string{"exec", "c1", "nosuch"}, 255, ""},
		{[]string{"exec", "--user", "4294967296", "c1", "id"}, 255, ""},
		{[]string{"exec", "c1"}, 255, ""},
	} {
		r := b.do(c.args...)
		if r.code != c.code || r.out != c.out {
			t.Errorf("%v: %+v", c.args, r)
		}
	}
	file := filepath.Join(t.TempDir(), "process.json")
	if err := os.WriteFile(file, []byte(`{"args":["sh","-c","pwd; id -u"],"cwd":"/etc","user":{"uid":5,"gid":5},"env":["PATH=/bin"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := b.ok("exec", "--process", file, "c1"); out != "/etc\n5\n" {
		t.Errorf("a process of a file: %q", out)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	b.ok("exec", "--detach", "--pid-file", pidFile, "c1", "sleep", "999")
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := os.ReadFile("/proc/" + string(text) + "/cmdline"); err != nil || string(name) != "sleep\x00999\x00" {
		t.Errorf("process %s is %q, %v", text, name, err)
	}
	cgroups, err := os.ReadFile("/proc/" + string(text) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(cgroups)) {
		if !strings.HasSuffix(strings.TrimSpace(line), b.cgroup+"/c1") {
			t.Errorf("it is in %s", line)
		}
	}
}

// TestSignals: what is sent to run reaches the container's process.
func TestSignals(t *testing.T) {
	b := newBench(t)
	b.config("c1", nil, "sh", "-c", `trap "exit 42" USR1; echo ready; while :; do sleep 0.02; done`)
	cmd := b.cmd("run", "--bundle", b.bundle, "c1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := out.Read(buf); string(buf[:n]) != "ready\n" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 42 {
		t.Errorf("%v", cmd.ProcessState)
	}
}

// pty opens a terminal and returns its two ends.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testroot.Skip(t, "no terminals: "+err.Error())
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave = os.NewFile(fd, "slave")
	t.Cleanup(func() { master.Close(); slave.Close() })
	return master, slave
}

// TestOthersSpecs runs the configurations that Debian 12's runc and crun write, unchanged, on a terminal.
func TestOthersSpecs(t *testing.T) {
	for _, name := range []string{"runc-1.1.5", "crun-1.8.1"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			data, err := os.ReadFile("testdata/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			out, code := b.interact("stty rows 11; test -t 1 && tty && hostname && exit 3\n", "run", "--bundle", b.bundle, "others-"+name)
			if code != 3 || !strings.Contains(out, "/dev/pts/0\r\n"+name[:4]+"\r\n") {
				t.Errorf("exit %d: %q", code, out)
			}
		})
	}
}

// interact runs a command on a terminal, types and returns what it shows.
func (b *bench) interact(typed string, args ...string) (string, int) {
	b.t.Helper()
	master, slave := pty(b.t)
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 99}); err != nil {
		b.t.Fatal(err)
	}
	cmd := b.cmd(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	slave.Close()
	shown := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		_, _ = all.ReadFrom(master)
		shown <- all.String()
	}()
	if _, err := master.WriteString(typed); err != nil {
		b.t.Fatal(err)
	}
	_ = cmd.Wait()
	select {
	case s := <-shown:
		return s, cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		b.t.Fatal("the terminal is still open")
		return "", 0
	}
}

// TestTerminalSize: the container's terminal has the size of the caller's, and exec gets one of its own.
func TestTerminalSize(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) { s.Process.Terminal = true }, "sh", "-c", "while [ \"$(stty size)\" != '33 99' ]; do sleep 0.01; done; echo sized")
	if out, code := b.interact("", "run", "--bundle", b.bundle, "c1"); code != 0 || !strings.Contains(out, "sized\r\n") {
		t.Errorf("exit %d: %q", code, out)
	}
	b.config("c1", nil, "sleep", "1000")
	b.ok("run", "-d", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "-f", "c1")
	if out, code := b.interact("", "exec", "--tty", "c1", "sh", "-c", "tty; exit 5"); code != 5 || !strings.Contains(out, "/dev/pts/0\r\n") {
		t.Errorf("exit %d: %q", code, out)
	}
}

// TestConsoleSocket receives the master of a detached container's terminal, by a path too long for an
// address.
func TestConsoleSocket(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/s", d.Fd())}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		t.Fatal(err)
	}
	b.config("c1", func(s *specs.Spec) { s.Process.Terminal = true }, "sh", "-c", "read line; echo got $line; sleep 1000")
	if r := b.do("create", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "cannot allocate tty if runc will detach without setting console socket") {
		t.Errorf("%+v", r)
	}
	b.ok("create", "--bundle", b.bundle, "--console-socket", dir+"/s", "c1")
	defer b.ok("delete", "-f", "c1")
	conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(conn)
	buf, oob := make([]byte, 64), make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%v, %v", msgs, err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%v, %v", fds, err)
	}
	master := os.NewFile(uintptr(fds[0]), "master")
	defer master.Close()
	b.ok("start", "c1")
	if _, err := master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	var all string
	for !strings.Contains(all, "got hello") {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatalf("%q, %v", all, err)
		}
		all += string(buf[:n])
	}
}

func TestPreserveFDs(t *testing.T) {
	b := newBench(t)
	f := filepath.Join(t.TempDir(), "extra")
	if err := os.WriteFile(f, []byte("from outside\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.config("c1", nil, "sh", "-c", "cat <&3; ls /proc/self/fd | wc -l")
	extra, err := os.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	cmd := b.cmd("run", "--preserve-fds", "1", "--bundle", b.bundle, "c1")
	cmd.ExtraFiles = []*os.File{extra}
	if r := run(t, cmd); r.code != 0 || !strings.HasPrefix(r.out, "from outside\n") {
		t.Errorf("%+v", r)
	}
	if r := b.do("run", "--preserve-fds", "90", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "preserved-fd") {
		t.Errorf("%+v", r)
	}
}

func TestHooks(t *testing.T) {
	b := newBench(t)
	log := filepath.Join(t.TempDir(), "log")
	hook := func(name string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >" + log + "." + name + "; echo " + name + " >>" + log}}}
	}
	b.config("c1", func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Prestart: hook("prestart"), CreateRuntime: hook("createRuntime"), Poststart: hook("poststart"), Poststop: hook("poststop")} //nolint:staticcheck // in use
	}, "sleep", "1000")
	b.ok("create", "--bundle", b.bundle, "c1")
	b.ok("start", "c1")
	b.ok("delete", "-f", "c1")
	if text, err := os.ReadFile(log); err != nil || string(text) != "prestart\ncreateRuntime\npoststart\npoststop\n" {
		t.Errorf("%s, %v", text, err)
	}
	var st specs.State
	text, err := os.ReadFile(log + ".createRuntime")
	if err != nil || json.Unmarshal(text, &st) != nil || st.ID != "c1" || st.Status != specs.StateCreating || st.Pid == 0 || st.Bundle != b.bundle {
		t.Errorf("%s, %v", text, err)
	}
	b.config("c1", func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}} }, "true")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "error running createRuntime hook #0") {
		t.Errorf("%+v", r)
	}
}

// TestCutShort kills create at every place that has a name, and at some that have none; deleting by force
// then leaves nothing, which the bench checks.
func TestCutShort(t *testing.T) {
	b := newBench(t)
	b.config("c1", nil, "sleep", "1000")
	clean := func(what string) {
		t.Helper()
		if r := b.do("delete", "--force", "c1"); r.code != 0 {
			t.Errorf("%s: %+v", what, r)
		}
		b.leftovers()
	}
	for _, verb := range []string{"create", "run"} {
		for _, place := range []string{"runtime/config.json", "runtime/state.json", "runtime/cgroup", "runtime/prepare", "runtime/launch", "runtime/state.json@2"} {
			cmd := b.cmd(verb, "--bundle", b.bundle, "c1")
			cmd.Env = append(cmd.Env, fault.Env+"="+place+"=kill")
			_ = cmd.Run()
			if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
				t.Fatalf("%s at %s: %v", verb, place, cmd.ProcessState)
			}
			clean(verb + " at " + place)
			cmd = b.cmd(verb, "--bundle", b.bundle, "c1")
			cmd.Env = append(cmd.Env, fault.Env+"="+place+"=error")
			if r := run(t, cmd); r.code != 1 || !strings.Contains(r.err, "injected fault") {
				t.Errorf("%s with an error at %s: %+v", verb, place, r)
			}
			b.leftovers()
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		cmd := b.cmd("create", "--bundle", b.bundle, "c1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(r.IntN(15000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		clean(fmt.Sprint("killed, round ", i))
		if t.Failed() {
			break
		}
	}
}

// TestSharedPIDs: in a container without a PID namespace of its own, a child outlives the first process.
// SIGKILL and delete take it along.
func TestSharedPIDs(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) {
		var list []specs.LinuxNamespace
		for _, n := range s.Linux.Namespaces {
			if n.Type != specs.PIDNamespace {
				list = append(list, n)
			}
		}
		s.Linux.Namespaces = list
	}, "sh", "-c", "sleep 1000 & exit 0")
	b.ok("run", "-d", "--bundle", b.bundle, "c1")
	b.wait("c1", statusStopped)
	if out := b.ok("ps", "-f", "json", "c1"); out == "[]\n" {
		t.Error("the child is gone")
	}
	b.ok("kill", "c1", "KILL")
	if out := b.ok("ps", "-f", "json", "c1"); out != "[]\n" {
		t.Errorf("after SIGKILL: %s", out)
	}
	b.ok("delete", "c1")
}

func TestOccupiedCgroup(t *testing.T) {
	b := newBench(t)
	h, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx := context.Background()
	g, err := h.Create(b.cgroup+"/frozen", cgroup.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.config("frozen", nil, "true")
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "container's cgroup unexpectedly frozen") {
		t.Errorf("%+v", r)
	}
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	up, err := h.At(b.cgroup)
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	b.config("same", nil, "sleep", "1000")
	b.ok("run", "-d", "--bundle", b.bundle, "c1")
	if r := b.do("run", "-d", "--bundle", b.bundle, "c2"); r.code != 1 || !strings.Contains(r.err, "container's cgroup is not empty: 1 process(es) found") {
		t.Errorf("%+v", r)
	}
	if s := b.status("c1"); s != statusRunning {
		t.Errorf("its owner is %s", s)
	}
	b.ok("delete", "-f", "c1")
}
