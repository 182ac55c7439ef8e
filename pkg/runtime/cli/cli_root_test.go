//go:build root

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

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
	var name []byte // for a moment it has none: execve closes its descriptors, which is what we wait for, before it sets that
	for err == nil && len(name) == 0 {
		name, err = os.ReadFile("/proc/" + string(text) + "/cmdline")
	}
	if err != nil || string(name) != "sleep\x00999\x00" {
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

// TestExecInherits: a process file that does not speak of the container's confinement does not lift it.
func TestExecInherits(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) {
		umask := uint32(0o27)
		s.Process.User.Umask = &umask
		s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch}
		s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	}, "sleep", "1000")
	b.ok("run", "--detach", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "-f", "c1")
	file := filepath.Join(t.TempDir(), "process.json")
	for _, c := range []struct{ more, want string }{
		{"", "0027 0000000020000420 0000000020000420 policy : 3"},
		{`,"capabilities":{},"user":{"umask":63},"scheduler":{"policy":"SCHED_OTHER"}`, "0077 0000000000000000 0000000000000000 policy : 0"},
	} {
		text := `{"args":["sh","-c","umask; awk '/CapPrm|CapBnd/ {print $2}' /proc/self/status; grep policy /proc/self/sched"],"cwd":"/","env":["PATH=/bin"]` + c.more + `}`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := b.do("exec", "--process", file, "c1")
		if got := strings.Join(strings.Fields(r.out), " "); got != c.want {
			t.Errorf("%q: %s, %s", c.more, got, r.err)
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

// TestSignalBefore: a signal that run is sent while it has made something, but no process yet, leaves nothing behind.
func TestSignalBefore(t *testing.T) {
	b := newBench(t)
	hold := filepath.Join(t.TempDir(), "namespace") // it is opened for the program, and opens when we do
	if err := syscall.Mkfifo(hold, 0o600); err != nil {
		t.Fatal(err)
	}
	b.config("c1", func(s *specs.Spec) {
		for i := range s.Linux.Namespaces {
			if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
				s.Linux.Namespaces[i].Path = hold
			}
		}
	}, "true")
	cmd := b.cmd("run", "--bundle", b.bundle, "c1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, err := os.Stat(filepath.Join(b.root, "c1", stateFile)); err != nil; time.Sleep(time.Millisecond) {
		_, err = os.Stat(filepath.Join(b.root, "c1", stateFile))
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(hold, os.O_RDWR, 0); err == nil { // it would not block if run were gone
		defer f.Close()
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v", err)
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
		for _, place := range []string{"runtime/config.json", "runtime/state.json", "runtime/cgroup", "runtime/prepare", "runtime/launch", "runtime/process.json"} {
			cutAt(t, func() *exec.Cmd { return b.cmd(verb, "--bundle", b.bundle, "c1") }, place, func() { clean(verb + " at " + place) })
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

func TestEvents(t *testing.T) {
	b := newBench(t)
	limit := int64(32 << 20)
	b.config("c1", func(s *specs.Spec) {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	}, "sh", "-c", "trap 'exit 0' TERM; echo x >/dev/shm/x; while [ ! -e /dev/shm/go ]; do sleep 0.02; done; tail /dev/zero; while :; do sleep 0.02; done")
	b.ok("run", "-d", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "-f", "c1")
	var e struct {
		Type, ID string
		Data     stats
	}
	if err := json.Unmarshal([]byte(b.ok("events", "--stats", "c1")), &e); err != nil {
		t.Fatal(err)
	}
	if e.Type != "stats" || e.ID != "c1" || e.Data.Memory.Usage.Limit != uint64(limit) || e.Data.Memory.Usage.Usage == 0 || e.Data.Pids.Current == 0 || len(e.Data.Memory.Raw) < 10 || e.Data.CPU.Usage.Total == 0 {
		t.Errorf("%+v", e)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cpuset"); err == nil { // v1
		u := e.Data.CPU.Usage
		if cpus, ok := e.Data.CPUSet["cpus"].([]any); !ok || len(cpus) == 0 || e.Data.CPUSet["cpu_exclusive"] != 0.0 || len(u.PerCPU) == 0 || len(u.PerUser) != len(u.PerCPU) || len(u.PerKernel) != len(u.PerCPU) || e.Data.Memory.TCP == nil {
			t.Errorf("%+v", e)
		}
	}
	cmd := b.cmd("events", "--interval", "50ms", "c1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(out)
	seen := map[string]int{}
	for seen["oom"] == 0 {
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("%v after %v", err, seen)
		}
		if seen[e.Type]++; seen["stats"] == 1 && e.Type == "stats" {
			b.ok("exec", "c1", "touch", "/dev/shm/go")
		}
	}
	b.ok("kill", "c1", "KILL")
	for dec.Decode(&e) == nil {
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("events of a container that ended: %v", err)
	}
	if r := b.do("events", "--stats", "c1"); r.code != 1 || !strings.Contains(r.err, "container with id c1 is not running") {
		t.Errorf("%+v", r)
	}
}

// TestJoin has a container in the namespaces of another one, user namespace included, whose mappings its
// configuration does not repeat.
func TestJoin(t *testing.T) {
	b := newBench(t)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}}
	for dir := b.bundle; dir != "/"; dir = filepath.Dir(dir) { // the container's root is nobody here
		if st, err := os.Stat(dir); err != nil || st.Mode()&0o001 == 0 {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.config("c1", func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	}, "sleep", "1000")
	b.ok("run", "-d", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "-f", "c1")
	var s shown
	if err := json.Unmarshal([]byte(b.ok("state", "c1")), &s); err != nil {
		t.Fatal(err)
	}
	b.config("c2", func(spec *specs.Spec) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		for i := range spec.Linux.Namespaces {
			n := &spec.Linux.Namespaces[i]
			if n.Type != specs.MountNamespace {
				n.Path = fmt.Sprintf("/proc/%d/ns/%s", s.Pid, map[specs.LinuxNamespaceType]string{"network": "net"}[n.Type])
				if n.Type != specs.NetworkNamespace {
					n.Path += string(n.Type)
				}
			}
		}
	}, "sh", "-c", "id -u; cat /proc/self/uid_map; ps | grep -c 'sleep 1000$'")
	r := b.do("run", "--bundle", b.bundle, "c2")
	if f := strings.Fields(r.out); r.code != 0 || strings.Join(f, " ") != "0 0 100000 1000 1" {
		t.Errorf("%+v", r)
	}
}

// cutAt kills a command at a fault point, has what that leaves cleaned, and lets the command fail there.
func cutAt(t *testing.T, cmd func() *exec.Cmd, place string, clean func()) {
	t.Helper()
	c := cmd()
	c.Env = append(c.Env, fault.Env+"="+place+"=kill")
	_ = c.Run()
	if ws := c.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Fatalf("%s at %s: %v", c.Args, place, c.ProcessState)
	}
	clean()
	c = cmd()
	c.Env = append(c.Env, fault.Env+"="+place+"=error")
	if r := run(t, c); r.code != 1 || !strings.Contains(r.err, "injected fault") {
		t.Errorf("%s with an error at %s: %+v", c.Args, place, r)
	}
}
