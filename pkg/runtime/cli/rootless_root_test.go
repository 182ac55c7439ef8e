//go:build root

package cli

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// newRootless is a bench whose commands are an ordinary user's.
func newRootless(t *testing.T) *bench {
	t.Helper()
	u := testroot.Unprivileged(t)
	b := &bench{t: t, root: filepath.Join(u.Dir, "state"), bundle: filepath.Join(u.Dir, "bundle"), cgroup: testroot.Cgroup(t) + "/none", user: u}
	for _, dir := range []string{b.root, b.bundle} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	testroot.Rootfs(t, b.bundle)
	u.Give(t, u.Dir)
	t.Cleanup(b.leftovers)
	return b
}

// executable is a copy of the command line under test that the user's own programs can execute.
func (b *bench) executable() string {
	b.t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.t.Fatal(err)
	}
	exe := filepath.Join(b.user.Dir, "cri-runtime")
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		b.t.Fatal(err)
	}
	return exe
}

// own writes the configuration that spec --rootless would, for the user.
func (b *bench) own(change func(*specs.Spec), args ...string) {
	b.t.Helper()
	b.config("", func(s *specs.Spec) {
		unprivileged(s)
		s.Linux.UIDMappings[0].HostID, s.Linux.GIDMappings[0].HostID = uint32(b.user.UID), uint32(b.user.GID)
		s.Linux.CgroupsPath = ""
		if change != nil {
			change(s)
		}
	}, args...)
}

// ranged adds what the user may map by newuidmap and newgidmap.
func (b *bench) ranged(s *specs.Spec) {
	testroot.NeedProgram(b.t, "newuidmap")
	more := specs.LinuxIDMapping{ContainerID: 1, HostID: uint32(b.user.Sub), Size: 65536}
	s.Linux.UIDMappings, s.Linux.GIDMappings = append(s.Linux.UIDMappings, more), append(s.Linux.GIDMappings, more)
}

func TestRootlessRun(t *testing.T) {
	b := newRootless(t)
	if out, err := b.cmd("spec", "--rootless", "--bundle", b.user.Dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	written, _, err := loadSpec(filepath.Join(b.user.Dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if want := (specs.LinuxIDMapping{HostID: uint32(b.user.UID), Size: 1}); len(written.Linux.UIDMappings) != 1 || written.Linux.UIDMappings[0] != want {
		t.Errorf("spec --rootless: %+v", written.Linux.UIDMappings)
	}
	b.own(nil, "sh", "-c", "id -u; cat /proc/self/setgroups; hostname; test -c /dev/null && echo x >/dev/null; cat /proc/self/uid_map; exit 7")
	r := b.do("run", "--bundle", b.bundle, "c1")
	if f := strings.Fields(r.out); r.code != 7 || strings.Join(f, " ") != fmt.Sprintf("0 deny container 0 %d 1", b.user.UID) {
		t.Errorf("%+v", r)
	}
}

// TestRootlessLife takes a container through its states by one command each, in the user's runtime directory.
func TestRootlessLife(t *testing.T) {
	b := newRootless(t)
	b.own(nil, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
	home := func(args ...string) result {
		cmd := b.cmd(args...)
		cmd.Args = append(cmd.Args[:1], cmd.Args[3:]...) // without --root
		return run(t, cmd)
	}
	// run waits for the end of what the container writes to, so its output is not ours.
	quiet := b.cmd("create", "--bundle", b.bundle, "c1")
	quiet.Args = append(quiet.Args[:1], quiet.Args[3:]...)
	if err := quiet.Run(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.user.Runtime, "cri-runtime")
	if st, err := os.Stat(dir); err != nil || st.Mode() != os.ModeDir|os.ModeSticky|0o700 {
		t.Errorf("%s: %v, %v", dir, st.Mode(), err)
	}
	for _, step := range []struct {
		want string
		code int
		args []string
	}{
		{`"status": "created"`, 0, []string{"state", "c1"}},
		{"", 0, []string{"start", "c1"}},
		{`"status": "running"`, 0, []string{"state", "c1"}},
		{"c1", 0, []string{"list", "-q"}},
		{"uid=0(root) gid=0", 4, []string{"exec", "c1", "sh", "-c", "id; exit 4"}},
		{"uid 5 is not mapped", 255, []string{"exec", "--user", "5", "c1", "true"}},
		{"cannot set any additional groups in a rootless container", 255, []string{"exec", "-g", "5", "c1", "true"}},
		{"has no cgroup", 1, []string{"ps", "c1"}},
		{"has no cgroup", 1, []string{"pause", "c1"}},
		{"has no cgroup", 1, []string{"resume", "c1"}},
		{"has no cgroup", 1, []string{"events", "--stats", "c1"}},
		{"has no cgroup", 1, []string{"update", "--pids-limit", "5", "c1"}},
		{"that is not stopped", 1, []string{"delete", "c1"}},
		{"", 0, []string{"kill", "c1"}},
	} {
		if r := home(step.args...); r.code != step.code || !strings.Contains(r.out+r.err, step.want) {
			t.Errorf("%v: %+v", step.args, r)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(home("state", "c1").out, `"status": "stopped"`); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
	}
	if r := home("delete", "c1"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if list, _ := os.ReadDir(dir); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
}

// TestRootlessRanges maps more than oneself.
func TestRootlessRanges(t *testing.T) {
	b := newRootless(t)
	b.own(func(s *specs.Spec) {
		b.ranged(s)
		s.Process.User = specs.User{UID: 10, GID: 11, AdditionalGids: []uint32{5, 12}}
		for i := range s.Mounts {
			if s.Mounts[i].Destination == "/dev/pts" {
				s.Mounts[i].Options = append(s.Mounts[i].Options, "gid=5")
			}
		}
	}, "sh", "-c", "id; cat /proc/self/setgroups; echo reopened >/dev/stdout")
	// The pipe is the user's, and becomes the container's user's.
	script := exec.Command("sh", "-c", `"$0" "$@" | cat`)
	script.Args = append(script.Args, b.executable())
	script.Args = append(script.Args, b.cmd("run", "--bundle", b.bundle, "c1").Args[1:]...)
	script.Env = []string{commandEnv + "=1"}
	b.user.Become(script)
	out, err := script.CombinedOutput()
	if err != nil || string(out) != "uid=10 gid=11 groups=5,12\nallow\nreopened\n" {
		t.Errorf("%v: %s", err, out)
	}
	b.own(func(s *specs.Spec) {
		b.ranged(s)
		for _, m := range []*specs.LinuxIDMapping{&s.Linux.UIDMappings[0], &s.Linux.GIDMappings[0]} {
			*m = specs.LinuxIDMapping{HostID: uint32(b.user.Sub), Size: 65536}
		}
		s.Linux.UIDMappings, s.Linux.GIDMappings = s.Linux.UIDMappings[:1], s.Linux.GIDMappings[:1]
	}, "sleep", "1000")
	b.ok("run", "-d", "--bundle", b.bundle, "c1") // whose root is another user
	if out := b.ok("exec", "--user", "5:6", "c1", "id"); out != "uid=5 gid=6\n" {
		t.Errorf("exec: %q", out)
	}
	b.ok("kill", "c1", "KILL")
	b.ok("delete", "-f", "c1")
	b.own(func(s *specs.Spec) { b.ranged(s); s.Linux.UIDMappings[1].HostID = 1 }, "true")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "/etc/subuid") || !strings.Contains(r.err, "not allowed") {
		t.Errorf("%+v", r)
	}
	b.own(b.ranged, "true")
	cmd := b.cmd("run", "--bundle", b.bundle, "c1")
	cmd.Env = append(cmd.Env, "PATH=/nowhere")
	if r := run(t, cmd); r.code != 1 || !strings.Contains(r.err, "newgidmap is not on PATH") || !strings.Contains(r.err, "uidmap") {
		t.Errorf("%+v", r)
	}
}

// TestRootlessRefused: what cannot be without root is refused by name.
func TestRootlessRefused(t *testing.T) {
	b := newRootless(t)
	limit := int64(10)
	for _, c := range []struct {
		want   string
		change func(*specs.Spec)
	}{
		{"rootless container requires user namespaces", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:len(s.Linux.Namespaces)-1] }},
		{"requires at least one UID mapping", func(s *specs.Spec) { s.Linux.UIDMappings = nil }},
		{"must map container ID 0", func(s *specs.Spec) { s.Linux.UIDMappings[0].ContainerID = 1 }},
		{"cannot set pids limit: container could not join or create cgroup", func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
		}},
		{"permission denied", func(s *specs.Spec) { s.Linux.CgroupsPath = "/cri-rootless/c1" }},
		{"cannot specify gid=5 mount option for rootless container", func(s *specs.Spec) { s.Mounts[2].Options = append(s.Mounts[2].Options, "gid=5") }},
		{"cannot set any additional groups in a rootless container", func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{1} }},
		{"sysfs", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "sysfs", Source: "sysfs"})
		}},
		{"set RLIMIT_NOFILE", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}}
		}},
		{"source " + b.user.Dir + "/none: no such file", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "bind", Source: b.user.Dir + "/none", Options: []string{"bind"}})
		}},
		{`exec: "nosuch": executable file not found in $PATH`, func(s *specs.Spec) { s.Process.Args = []string{"nosuch"} }},
	} {
		b.own(c.change, "true")
		if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(unquote(r.err), c.want) {
			t.Errorf("%s: %+v", c.want, r)
		}
	}
	if r := b.do("--rootless=perhaps", "list"); r.code != 1 || !strings.Contains(r.err, "auto, true and false") {
		t.Errorf("%+v", r)
	}
}

// TestRootlessOOMScore: a score that may not be lowered stays.
func TestRootlessOOMScore(t *testing.T) {
	b := newRootless(t)
	for _, score := range []int{500, -1000} {
		b.own(func(s *specs.Spec) { s.Process.OOMScoreAdj = &score }, "cat", "/proc/self/oom_score_adj")
		want := fmt.Sprintln(score)
		if score < 0 {
			own, err := os.ReadFile("/proc/self/oom_score_adj")
			if err != nil {
				t.Fatal(err)
			}
			want = string(own)
		}
		if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 0 || r.out != want {
			t.Errorf("score %d: %+v", score, r)
		}
	}
}

// TestRootlessCgroupMounts: nothing that a container sees of the host's cgroups can be written to, neither the
// mount of its own nor what comes with the host's /sys (CVE-2023-25809). The user owns a cgroup, which is what
// the container's root, who is him, would write to. Where it has a cgroup of its own, on v2, that one is what it
// may write to, if it asks for it, and it sees no other.
func TestRootlessCgroupMounts(t *testing.T) {
	b := newRootless(t)
	bound := specs.Mount{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
	mount := specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime"}}
	delegated := b.delegate(t, "rootless-cve")
	h, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for name, change := range map[string]func(*specs.Spec){
		"spec":      nil,
		"sys alone": func(s *specs.Spec) { s.Mounts = append(but(s.Mounts, "/sys", "/sys/fs/cgroup"), bound) },
		"writable":  func(s *specs.Spec) { s.Mounts = append(but(s.Mounts, "/sys/fs/cgroup"), mount) },
		"writable, cgroupns": func(s *specs.Spec) {
			s.Mounts = append(but(s.Mounts, "/sys/fs/cgroup"), mount)
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		},
		"writable, no cgroupns": func(s *specs.Spec) {
			s.Mounts = append(but(s.Mounts, "/sys/fs/cgroup"), mount)
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
		},
	} {
		b.own(func(s *specs.Spec) {
			if change != nil {
				change(s)
			}
			s.Linux.Namespaces = dedupe(s.Linux.Namespaces)
		}, "sh", "-c", `grep -qx 0 $(find /sys/fs/cgroup -name cgroup.procs) /dev/null && echo others
			for f in $(find /sys/fs/cgroup -name cgroup.procs -o -name tasks); do
			(echo 0 >$f) 2>/dev/null && echo wrote $f; done; mkdir /sys/fs/cgroup/x 2>/dev/null && echo made
			find /sys/fs/cgroup -type d | while read d; do mkdir $d/y 2>/dev/null && echo made $d/y; done; echo looked`)
		if r := b.do("--cgroup-manager=disabled", "run", "--bundle", b.bundle, "c1"); r.code != 0 || strings.TrimPrefix(r.out, "others\n") != "looked\n" {
			t.Errorf("%s, without a cgroup: %+v", name, r)
		}
		r := b.do("run", "--bundle", b.bundle, "c1")
		if own := h.Mode() == cgroup.V2 && strings.HasPrefix(name, "writable"); own && (strings.Contains(r.out, "others") || !strings.HasPrefix(r.out, "wrote")) {
			t.Errorf("%s: what it sees is not its own: %+v", name, r)
		} else if !own && strings.TrimPrefix(r.out, "others\n") != "looked\n" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for _, dir := range delegated {
		if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && (d.Name() == "x" || d.Name() == "y") {
				t.Errorf("left %s", p)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}

func but(mounts []specs.Mount, dests ...string) (out []specs.Mount) {
	for _, m := range mounts {
		keep := true
		for _, d := range dests {
			keep = keep && m.Destination != d
		}
		if keep {
			out = append(out, m)
		}
	}
	return out
}

func dedupe(list []specs.LinuxNamespace) (out []specs.LinuxNamespace) {
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, n := range list {
		if !seen[n.Type] {
			out = append(out, n)
		}
		seen[n.Type] = true
	}
	return out
}

// delegate makes a cgroup in every hierarchy and gives it to the user, with what he may do in it. His commands
// run in a group below it, on v2: the kernel asks who moves processes to be the owner of the common ancestor.
func (b *bench) delegate(t *testing.T, name string) (dirs []string) {
	t.Helper()
	h, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	path := testroot.Cgroup(t) + "/" + name
	g, err := h.Create(path+"/caller", cgroup.CreateOptions{})
	if err == nil {
		b.caller, err = g.Dir()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.caller.Close() }) // nil is fine
	for _, tree := range h.Hierarchies() {
		dir := filepath.Join(tree.Mount, path)
		dirs = append(dirs, dir)
		for _, f := range []string{".", "cgroup.procs", "tasks", "cgroup.subtree_control", "cgroup.threads", "cpuset.cpus", "cpuset.mems"} {
			if err := os.Chown(filepath.Join(dir, f), b.user.UID, b.user.GID); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
	return dirs
}

// TestRootlessCgroup uses a cgroup that is the user's, by cgroupsPath.
func TestRootlessCgroup(t *testing.T) {
	b := newRootless(t)
	dirs := b.delegate(t, "rootless-own")
	limit := int64(50)
	b.own(func(s *specs.Spec) {
		s.Linux.CgroupsPath = testroot.Cgroup(t) + "/rootless-own/c1"
		s.Linux.Resources = &specs.LinuxResources{
			Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, Pids: &specs.LinuxPids{Limit: &limit},
		}
	}, "sleep", "1000")
	r := b.do("create", "--bundle", b.bundle, "c1")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	defer b.ok("delete", "-f", "c1")
	b.ok("start", "c1")
	if out := b.ok("ps", "--format", "json", "c1"); strings.Count(out, ",") != 0 || out == "[]\n" {
		t.Errorf("ps: %q", out)
	}
	b.ok("update", "--pids-limit", "40", "c1")
	found := false
	for _, d := range dirs {
		if data, err := os.ReadFile(filepath.Join(d, "c1/pids.max")); err == nil {
			found = true
			if string(data) != "40\n" {
				t.Errorf("pids.max: %q", data)
			}
		}
	}
	if !found {
		t.Error("no pids.max")
	}
	b.ok("pause", "c1")
	if s := b.status("c1"); s != statusPaused {
		t.Errorf("status %s", s)
	}
	b.ok("resume", "c1")
	if out := b.ok("exec", "c1", "id", "-u"); out != "0\n" {
		t.Errorf("exec: %q", out)
	}
	if out := b.ok("events", "--stats", "c1"); !strings.Contains(out, `"pids":{"current":1`) {
		t.Errorf("events: %s", out)
	}
}

// TestRootlessCutShort kills create wherever it is; deleting by force then leaves nothing, though there is no
// cgroup that would say what is left.
func TestRootlessCutShort(t *testing.T) {
	b := newRootless(t)
	b.own(nil, "sleep", "1000")
	clean := func(what string) {
		t.Helper()
		if r := b.do("delete", "--force", "c1"); r.code != 0 {
			t.Errorf("%s: %+v", what, r)
		}
		b.leftovers()
		b.noProcesses(what)
	}
	for _, verb := range []string{"create", "run"} {
		for _, place := range []string{"runtime/config.json", "runtime/state.json", "runtime/prepare", "runtime/launch", "runtime/process.json"} {
			cutAt(t, func() *exec.Cmd { return b.cmd(verb, "--bundle", b.bundle, "c1") }, place, func() { clean(verb + " at " + place) })
			b.leftovers()
			b.noProcesses(verb + " with an error at " + place)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 100 {
		cmd := b.cmd("create", "--bundle", b.bundle, "c1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(r.IntN(25000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		if clean(fmt.Sprint("killed, round ", i)); t.Failed() {
			break
		}
	}
}

// noProcesses waits until the user has no process left: what was killed may still be on its way out.
func (b *bench) noProcesses(what string) {
	b.t.Helper()
	var list string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if list = b.processes(); list == "" {
			return
		}
	}
	b.t.Errorf("%s: processes stay: %s", what, list)
}

// processes are those of the user.
func (b *bench) processes() string {
	var out strings.Builder
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		status, err := os.ReadFile(filepath.Join(d, "status"))
		if err == nil && strings.Contains(string(status), fmt.Sprintf("\nUid:\t%d\t", b.user.UID)) && !strings.Contains(string(status), "State:\tZ") {
			cmdline, _ := os.ReadFile(filepath.Join(d, "cmdline"))
			fmt.Fprintf(&out, "%s %q ", filepath.Base(d), cmdline)
		}
	}
	return out.String()
}

// TestRootlessTerminal: run and exec on the caller's terminal.
func TestRootlessTerminal(t *testing.T) {
	b := newRootless(t)
	b.own(func(s *specs.Spec) { s.Process.Terminal = true }, "sh", "-c", "while [ \"$(stty size)\" != '33 99' ]; do sleep 0.01; done; tty; exit 3")
	if out, code := b.interact("", "run", "--bundle", b.bundle, "c1"); code != 3 || !strings.Contains(out, "/dev/pts/0\r\n") {
		t.Errorf("exit %d: %q", code, out)
	}
	b.own(nil, "sleep", "1000")
	b.ok("run", "-d", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "-f", "c1")
	if out, code := b.interact("", "exec", "--tty", "c1", "sh", "-c", "tty; exit 5"); code != 5 || !strings.Contains(out, "/dev/pts/0\r\n") {
		t.Errorf("exit %d: %q", code, out)
	}
}

// TestRootlessHooks: hooks of the runtime's namespaces are the user's, in his.
func TestRootlessHooks(t *testing.T) {
	b := newRootless(t)
	said := filepath.Join(b.user.Dir, "said")
	hook := func(name string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", fmt.Sprintf("echo %s $(id -u) $(readlink /proc/self/ns/user) >>%s; cat >/dev/null", name, said)}}
	}
	b.own(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{
			CreateRuntime: []specs.Hook{hook("createRuntime")}, Poststart: []specs.Hook{hook("poststart")}, Poststop: []specs.Hook{hook("poststop")},
			StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "id -u >/dev/shm/start"}}},
		}
	}, "sh", "-c", "while ! cat /dev/shm/start; do :; done")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 0 || r.out != "0\n" {
		t.Errorf("%+v", r)
	}
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(said)
	want := ""
	for _, name := range []string{"createRuntime", "poststart", "poststop"} {
		want += fmt.Sprintf("%s %d %s\n", name, b.user.UID, own)
	}
	if string(text) != want {
		t.Errorf("hooks said %q, want %q", text, want)
	}
}

// TestRootlessLockedFlags: what the host's mounts are locked to, a container's bind mounts stay.
func TestRootlessLockedFlags(t *testing.T) {
	b := newRootless(t)
	dir := filepath.Join(b.user.Dir, "locked")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=777", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	bind := func(options ...string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "bind", Source: dir, Options: append(options, "bind")})
		}
	}
	b.own(bind("ro"), "grep", " /mnt ", "/proc/mounts")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 0 || !strings.Contains(r.out, " ro,nosuid,nodev,noexec,") {
		t.Errorf("%+v", r)
	}
	b.own(bind("exec"), "true")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "mount /mnt") || !strings.Contains(r.err, "operation not permitted") {
		t.Errorf("%+v", r)
	}
}

// TestUsernsRoot: root in a user namespace, as the engines of ordinary users call the runtime.
func TestUsernsRoot(t *testing.T) {
	testroot.NeedProgram(t, "unshare")
	for _, flags := range []string{"-Ur", "-Urm"} {
		for _, nested := range []bool{false, true} {
			t.Run(fmt.Sprint(flags, nested), func(t *testing.T) { usernsRoot(t, flags, nested) })
		}
	}
}

func usernsRoot(t *testing.T, flags string, nested bool) {
	b := newRootless(t)
	b.own(func(s *specs.Spec) {
		s.Linux.UIDMappings[0].HostID, s.Linux.GIDMappings[0].HostID = 0, 0
		if !nested {
			s.Linux.Namespaces = s.Linux.Namespaces[:len(s.Linux.Namespaces)-1] // the user namespace is the last
			s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil
		}
	}, "sh", "-c", "id -u; test -c /dev/null && echo device; sleep 1000")
	script := filepath.Join(b.user.Dir, "script")
	text := fmt.Sprintf(`set -e
r() { CRI_RUNTIME_TEST_COMMAND=1 %s --root %s "$@"; }
r create --bundle %s c1 </dev/null >%s/out 2>&1
r start c1
r exec c1 id -u
r list -q
r kill c1 KILL
r delete -f c1
`, b.executable(), b.root, b.bundle, b.user.Dir)
	if err := os.WriteFile(script, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", flags, "sh", script)
	b.user.Become(cmd)
	out, err := cmd.CombinedOutput()
	said, _ := os.ReadFile(filepath.Join(b.user.Dir, "out"))
	if err != nil || string(out) != "0\nc1\n" || !strings.HasPrefix("0\ndevice\n", string(said)) {
		t.Errorf("%v: %s, %s", err, out, said)
	}
	b.noProcesses(flags)
}
