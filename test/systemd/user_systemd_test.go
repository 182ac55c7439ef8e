//go:build systemd

package systemd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// session is an ordinary user with a systemd of his own, and what he may read and execute.
type session struct {
	t   *testing.T
	uid int
	dir string
	exe string
	as  []string // what commands are run by
}

// Users whom every Debian has, and who are nobody's.
const (
	backupUser = 34
	listUser   = 38
)

// newSession starts the manager of a user.
func newSession(t *testing.T, uid int) *session {
	t.Helper()
	if machine(t).Mode() != cgroup.V2 {
		testroot.Skip(t, "a user's systemd is given controllers on cgroup v2 alone")
	}
	unit := fmt.Sprintf("user@%d.service", uid)
	if out, err := exec.Command("systemctl", "start", unit).CombinedOutput(); err != nil {
		t.Fatalf("start %s: %v: %s", unit, err, out)
	}
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", unit).Run() })
	dir, err := os.MkdirTemp("/run", "session")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &session{t: t, uid: uid, dir: dir, exe: filepath.Join(dir, "cri-runtime")}
	data, err := os.ReadFile(executable(t))
	if err == nil {
		err = os.WriteFile(s.exe, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// try runs a command as the user.
func (s *session) try(name string, args ...string) (string, error) {
	line := append(append(slices.Clone(s.as), name), args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), fmt.Sprintf("XDG_RUNTIME_DIR=/run/user/%d", s.uid)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.uid)}}
	return output(s.t, cmd)
}

func (s *session) do(args ...string) string {
	s.t.Helper()
	out, err := s.try(s.exe, append([]string{"--systemd-cgroup"}, args...)...)
	if err != nil {
		s.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// bundle is a rootless one with limits.
func (s *session) bundle() string {
	s.t.Helper()
	dir := filepath.Join(s.dir, "bundle")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	testroot.Rootfs(s.t, dir)
	if err := os.Chown(dir, s.uid, s.uid); err != nil {
		s.t.Fatal(err)
	}
	if out, err := s.try(s.exe, "spec", "--rootless", "--bundle", dir); err != nil {
		s.t.Fatalf("spec: %v: %s", err, out)
	}
	file := filepath.Join(dir, "config.json")
	var c specs.Spec
	read(s.t, file, &c)
	c.Process.Terminal = false
	c.Process.Args = []string{"/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1000 & wait; done"}
	c.Linux.CgroupsPath = "user-pods.slice:cri:own"
	c.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}, Pids: &specs.LinuxPids{Limit: ptr(int64(50))}}
	data, err := json.Marshal(&c)
	if err == nil {
		err = os.WriteFile(file, data, 0o644)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return dir
}

// joins tests where further processes of c1 are, whose group is own, and what it sees of it itself.
func (s *session) joins(own string) {
	s.t.Helper()
	file := fmt.Sprintf("/run/user/%d/pid", s.uid)
	s.do("exec", "--detach", "--pid-file", file, "c1", "sleep", "1000")
	pid, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	if in, err := os.ReadFile("/proc/" + string(pid) + "/cgroup"); err != nil || string(in) != "0::"+own+"\n" {
		s.t.Errorf("exec is in %q, %v, want %s", in, err, own)
	}
	if out := s.do("exec", "c1", "cat", "/proc/1/cgroup"); out != "0::/\n" {
		s.t.Errorf("the container sees its group as %q", out)
	}
	// From a scope of the user's, where systemd need not be asked.
	out, err := s.try("systemd-run", "--user", "--scope", "--quiet", s.exe, "--systemd-cgroup", "exec", "c1", "cat", "/proc/self/cgroup")
	if err != nil || out != "0::/\n" {
		s.t.Errorf("exec from a scope: %q, %v", out, err)
	}
	if out, err := s.try("mkdir", filepath.Join("/sys/fs/cgroup", own, "sub")); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	if out := s.do("exec", "--cgroup", "sub", "c1", "cat", "/proc/self/cgroup"); out != "0::/sub\n" {
		s.t.Errorf("exec --cgroup sub is in %q", out)
	}
}

// TestUserNamespaceScope: root of a user namespace is to systemd who he was outside.
func TestUserNamespaceScope(t *testing.T) {
	s := newSession(t, backupUser)
	s.as = []string{"unshare", "--user", "--map-root-user"}
	bundle := s.bundle()
	cri := s.exe + " --systemd-cgroup "
	out, err := s.try("sh", "-ec", cri+"create --bundle "+bundle+" c2 >&2; "+cri+"start c2; "+cri+"exec c2 cat /proc/1/cgroup; "+
		"cat /proc/$("+cri+"ps --format json c2 | tr -dc '0-9,' | cut -d, -f1)/cgroup; "+cri+"kill c2 KILL; "+cri+"delete --force c2")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first, second, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if first != "0::/" || !strings.HasPrefix(second, fmt.Sprintf("0::/user.slice/user-%d.slice/user@%d.service/", s.uid, s.uid)) || !strings.HasSuffix(second, "/user-pods.slice/cri-own.scope") {
		t.Errorf("it is in %q", out)
	}
}

// TestUserScopeOutOfReach: a user's manager that has not the system's bus moves nothing of what is outside of his tree,
// and what the error says of it helps.
func TestUserScopeOutOfReach(t *testing.T) {
	dir := fmt.Sprintf("/run/systemd/system/user@%d.service.d", listUser)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "alone.conf"), []byte("[Service]\nEnvironment=DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := newSession(t, listUser)
	bundle := s.bundle()
	out, err := s.try(s.exe, "--systemd-cgroup", "create", "--bundle", bundle, "c3")
	for _, want := range []string{"from cgroup /", "user-pods.slice/cri-own.scope: ", "systemd-run --user --wait --pipe"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("create: %v, %s, want %q", err, out, want)
		}
	}
	if out := s.do("list", "-q"); out != "" {
		t.Errorf("containers are left: %s", out)
	}
	if out, _ := s.try("systemctl", "--user", "show", "-p", "LoadState", "cri-own.scope"); strings.TrimSpace(out) != "LoadState=not-found" {
		t.Errorf("the user's systemd says %q", out)
	}
	// What the error says.
	in := func(args ...string) string {
		t.Helper()
		out, err := s.try("systemd-run", append([]string{"--user", "--wait", "--pipe", "--quiet", s.exe, "--systemd-cgroup"}, args...)...)
		if err != nil {
			t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
		return out
	}
	in("create", "--bundle", bundle, "c3")
	s.do("start", "c3")
	if out := in("exec", "c3", "cat", "/proc/self/cgroup"); out != "0::/\n" {
		t.Errorf("exec is in %q", out)
	}
	if out, err := s.try(s.exe, "--systemd-cgroup", "exec", "c3", "true"); err == nil || !strings.Contains(out, "systemd-run --user --wait --pipe") {
		t.Errorf("exec from elsewhere: %v: %s", err, out)
	}
	s.do("delete", "--force", "c3")
}

// TestUserScopeKilledCreate: what a creation leaves that dies is found again, a held process outside of its group too.
func TestUserScopeKilledCreate(t *testing.T) {
	s := newSession(t, backupUser)
	bundle := s.bundle()
	programs := func() string {
		out, _ := s.try("sh", "-c", "ps -o args= -u "+strconv.Itoa(s.uid)+" | grep -x init") // what a program is called
		return out
	}
	for _, at := range []string{"runtime/held", "runtime/adopted", "runtime/launch"} {
		out, err := s.try("env", "CRI_SERVER_FAULT="+at+"=kill", s.exe, "--systemd-cgroup", "create", "--bundle", bundle, "c4")
		if err == nil {
			t.Errorf("%s: not killed: %s", at, out)
		}
		if at == "runtime/held" && programs() == "" {
			t.Error("the held program is not seen")
		}
		s.do("delete", "--force", "c4")
		if out := programs(); out != "" {
			t.Errorf("%s: a program is left: %s", at, out)
		}
		if out, _ := s.try("systemctl", "--user", "show", "-p", "LoadState", "cri-own.scope"); strings.TrimSpace(out) != "LoadState=not-found" {
			t.Errorf("%s: the user's systemd says %q", at, out)
		}
	}
}

// TestUserScope is a container of an ordinary user, whose own systemd knows its scope.
func TestUserScope(t *testing.T) {
	s := newSession(t, backupUser)
	s.do("create", "--bundle", s.bundle(), "c1")
	var st specs.State
	if err := json.Unmarshal([]byte(s.do("state", "c1")), &st); err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("/user.slice/user-%d.slice/user@%d.service/user.slice/user-pods.slice/cri-own.scope", s.uid, s.uid)
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", st.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, own, _ := strings.Cut(strings.TrimSpace(string(in)), "::")
	if !strings.HasSuffix(own, "/user-pods.slice/cri-own.scope") || !strings.HasPrefix(own, fmt.Sprintf("/user.slice/user-%d.slice/user@%d.service/", s.uid, s.uid)) {
		t.Fatalf("the process is in %s, want %s or so", own, group)
	}
	for name, want := range map[string]string{"memory.max": "67108864", "pids.max": "50"} {
		if got := file(t, own, name, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	active := func() string {
		out, _ := s.try("systemctl", "--user", "show", "-p", "LoadState,ActiveState,TasksMax", "cri-own.scope")
		return strings.Join(strings.Fields(out), " ")
	}
	if got := active(); got != "LoadState=loaded ActiveState=active TasksMax=50" && got != "TasksMax=50 LoadState=loaded ActiveState=active" {
		t.Errorf("the user's systemd says %q", got)
	}
	s.do("start", "c1")
	if out := s.do("exec", "c1", "id", "-u"); strings.TrimSpace(out) != "0" {
		t.Errorf("exec: %q", out)
	}
	s.joins(own)
	s.do("update", "--pids-limit", "40", "c1")
	if got := file(t, own, "pids.max", "pids.max"); got != "40" {
		t.Errorf("pids.max is %s after update", got)
	}
	s.do("pause", "c1")
	s.do("resume", "c1")
	s.do("kill", "c1", "KILL")
	s.do("delete", "--force", "c1")
	if got := active(); !strings.Contains(got, "LoadState=not-found") {
		t.Errorf("after delete the user's systemd says %q", got)
	}
	g, err := machine(t).At(own)
	if err != nil {
		t.Fatal(err)
	}
	if g.Exists() {
		t.Errorf("cgroup %s is left", own)
	}
}
