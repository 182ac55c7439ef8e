//go:build root

package cli

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// Each test below is an attack that worked on another OCI runtime, tried on the command line as its advisory
// tells it. What is tried elsewhere: CVE-2022-24769 and its kin for containers in pkg/runtime (TestUser),
// CVE-2023-25809 there (TestCgroup), CVE-2025-52565 there (TestConsoleLink), the masked paths of
// CVE-2025-31133 there (TestFakeNull), sub-cgroups here (TestExecCgroup), processes killed in between here
// (TestCutShort), and what a neighbour sees of an exec (CVE-2016-9962) also there (TestExecHidden, TestSharedPIDHidden).

// outside is a directory of the host that nothing may be made in.
type outside struct {
	t      *testing.T
	dir    string
	before string
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	o := &outside{t: t, dir: t.TempDir()}
	for _, name := range []string{"null", "console", "secret", "passwd"} {
		if err := os.WriteFile(filepath.Join(o.dir, name), []byte("root:x:0:0::/leaked:/bin/sh\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(o.dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	o.before = o.print()
	t.Cleanup(o.check)
	return o
}

// print is all that is to be seen of the directory.
func (o *outside) print() string {
	var b strings.Builder
	err := filepath.WalkDir(o.dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		data, _ := os.ReadFile(p)
		fmt.Fprintf(&b, "%s %o %d:%d %d %q\n", p, st.Mode, st.Uid, st.Gid, st.Dev, data)
		return nil
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return b.String()
}

func (o *outside) check() {
	o.t.Helper()
	if now := o.print(); now != o.before {
		o.t.Errorf("outside of the container, what was\n%s\nis now\n%s", o.before, now)
	}
}

// refused expects an error that says why.
func (b *bench) refused(want string, args ...string) {
	b.t.Helper()
	if r := b.do(args...); r.code == 0 || !strings.Contains(unquote(r.err), want) {
		b.t.Errorf("%v: %+v, want %q", args, r, want)
	}
}

// link replaces a path of the root filesystem by a link.
func (b *bench) link(to, name string) {
	b.t.Helper()
	p := filepath.Join(b.bundle, "rootfs", name)
	if err := os.RemoveAll(p); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Symlink(to, p); err != nil {
		b.t.Fatal(err)
	}
}

// running starts a container that stays, and ends it with the test.
func (b *bench) running(change func(*specs.Spec), args ...string) {
	b.t.Helper()
	if len(args) == 0 {
		args = []string{"sleep", "1000"}
	}
	b.config("c1", change, args...)
	b.ok("run", "-d", "--bundle", b.bundle, "c1")
	b.t.Cleanup(func() { b.do("delete", "-f", "c1") })
}

// TestUserNames: a number is never looked up as a name (CVE-2016-3697), what is no number is nobody
// (CVE-2026-30892), and what does not fit is not cut off.
func TestUserNames(t *testing.T) {
	b := newBench(t)
	passwd := "1000:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n-1:x:0:0::/:/bin/sh\n"
	if err := os.WriteFile(filepath.Join(b.bundle, "rootfs/etc/passwd"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	b.running(nil)
	for user, want := range map[string]string{"1000": "1000 0\n", "1": "1 0\n", "1:2": "1 2\n"} {
		if out := b.ok("exec", "--user", user, "c1", "sh", "-c", "echo $(id -u) $(id -g)"); out != want {
			t.Errorf("--user %s: %q", user, out)
		}
	}
	for _, user := range []string{"4294967296", "4294967297:4294967298", "4294967295", "-1", "+0", "0x0", "1:-1", "00x", "root", " 1", "1e3", "1:4294967296"} {
		b.refused("bad ", "exec", "--user", user, "c1", "true")
	}
}

// TestExecWatched: a container with CAP_SYS_PTRACE that watches /proc while others exec in it finds nothing of the host
// (CVE-2016-9962), and cannot reach the runtime by what it runs (CVE-2019-5736).
func TestExecWatched(t *testing.T) {
	b := newBench(t)
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(exe)
	b.running(func(s *specs.Spec) {
		s.Root.Readonly = false
		c := s.Process.Capabilities
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
			*set = append(*set, "CAP_SYS_PTRACE")
		}
	}, "sh", "-c", `while :; do for p in /proc/[0-9]*; do ls -l $p/fd $p/root $p/exe $p/cwd; : >>$p/exe; done 2>/dev/null | grep -vE ' [012] -> ' | grep -E 'memfd|cri-|\.test|/tmp|/run|/var' >>/seen; echo >>/rounds; done`)
	for range 30 {
		b.ok("exec", "c1", "true")
	}
	for _, args := range [][]string{{"/proc/self/exe"}, {"/proc/self/exe", "--help"}, {"/proc/1/exe"}, {"/proc/self/fd/4"}} {
		for range 4 {
			b.do(append([]string{"exec", "c1"}, args...)...) // however it ends
		}
	}
	if out := b.ok("exec", "c1", "cat", "/seen"); out != "" {
		t.Errorf("seen inside: %s", out)
	}
	if out := b.ok("exec", "c1", "wc", "-l", "/rounds"); strings.HasPrefix(out, "0") {
		t.Error("it never looked")
	}
	if exe, err = os.ReadFile("/proc/self/exe"); err != nil || sha256.Sum256(exe) != sum {
		t.Errorf("the runtime's executable is another, %v", err)
	}
}

// TestProcElsewhere: what the runtime writes to /proc does not go where an image or a volume leads it
// (CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-52881).
func TestProcElsewhere(t *testing.T) {
	b := newBench(t)
	o := newOutside(t)
	config := func(mounts ...specs.Mount) {
		b.config("c1", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, mounts...)
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "7"}
		}, "true")
	}
	for _, dest := range []string{"/proc", "/proc/", "/proc/self", "/proc/self/attr", "/proc/sys", "/proc/1/task/../attr", "/sys/../proc/self"} {
		config(specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs"})
		b.refused("/proc", "run", "--bundle", b.bundle, "c1")
		config(specs.Mount{Destination: dest, Type: "bind", Source: o.dir, Options: []string{"bind"}})
		b.refused("/proc", "run", "--bundle", b.bundle, "c1")
	}
	b.link("proc/self", "alias")
	config(specs.Mount{Destination: "/alias/attr", Type: "tmpfs", Source: "tmpfs"})
	b.refused("it is inside /proc", "run", "--bundle", b.bundle, "c1")
	for _, to := range []string{o.dir, "/dir", "sys"} {
		b.link(to, "proc")
		config()
		b.refused("mount /proc", "run", "--bundle", b.bundle, "c1")
	}
}

// TestTargetSwapped: mounts whose target another container swaps for a link stay inside, and so does what is
// made for them (CVE-2021-30465, CVE-2024-45310).
func TestTargetSwapped(t *testing.T) {
	b := newBench(t)
	o := newOutside(t)
	volume, source := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link-abs": o.dir + "/dir", "link-up": "../../../../../../../.." + o.dir + "/dir"} {
		if err := os.Symlink(to, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(volume, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			for _, l := range []string{"link-abs", "link-up"} {
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(volume, "a"), unix.AT_FDCWD, filepath.Join(volume, l), unix.RENAME_EXCHANGE)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	b.config("c1", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/vol", Type: "bind", Source: volume, Options: []string{"bind"}},
			specs.Mount{Destination: "/vol/a", Type: "bind", Source: source, Options: []string{"bind"}},
			specs.Mount{Destination: "/vol/link-up/new/dir", Type: "tmpfs", Source: "tmpfs"},
			specs.Mount{Destination: "/vol/link-abs/new/file", Type: "bind", Source: filepath.Join(source, "mine"), Options: []string{"bind"}},
			specs.Mount{Destination: "/vol/link-abs/made", Type: "tmpfs", Source: "tmpfs"})
	}, "true")
	ran := 0
	for range 20 {
		if r := b.do("run", "--bundle", b.bundle, "c1"); r.code == 0 {
			ran++
		}
	}
	close(stop)
	<-stopped
	t.Logf("%d of 20 ran", ran)
	if info, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(info), o.dir) {
		t.Errorf("something is mounted outside: %v\n%s", err, info)
	}
}

// TestManyMappings: neither thousands of mappings nor a path of 80 kB confuses anybody (CVE-2021-43784).
func TestManyMappings(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		for i := range uint32(6000) {
			m := specs.LinuxIDMapping{ContainerID: i, HostID: 100000 + i, Size: 1}
			s.Linux.UIDMappings, s.Linux.GIDMappings = append(s.Linux.UIDMappings, m), append(s.Linux.GIDMappings, m)
		}
	}, "id")
	b.refused("run failed", "run", "--bundle", b.bundle, "c1")
	b.config("c1", func(s *specs.Spec) {
		s.Linux.Namespaces = append(without(s.Linux.Namespaces, specs.NetworkNamespace), specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/" + strings.Repeat("x/", 40000)})
	}, "id")
	b.refused("file name too long", "run", "--bundle", b.bundle, "c1")
}

// TestInheritable: nothing is inheritable or ambient that was not asked to be, neither with exec (CVE-2022-29162,
// CVE-2022-24769, CVE-2022-27650, CVE-2022-27652).
func TestInheritable(t *testing.T) {
	b := newBench(t)
	b.running(nil)
	for _, args := range [][]string{{"c1"}, {"--cap", "CAP_NET_RAW", "c1"}, {"--user", "7", "--cap", "CAP_NET_RAW", "c1"}} {
		out := b.ok(slices.Concat([]string{"exec"}, args, []string{"grep", "-E", "CapInh|CapAmb", "/proc/self/status"})...)
		if out != "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n" {
			t.Errorf("%v: %s", args, out)
		}
	}
}

// TestLeakedDirectories: no working directory leads out by a descriptor of the runtime's (CVE-2024-21626).
func TestLeakedDirectories(t *testing.T) {
	b := newBench(t)
	for n := 3; n <= 17; n++ {
		b.config("c1", func(s *specs.Spec) { s.Process.Cwd = fmt.Sprintf("/proc/self/fd/%d", n) }, "ls", "..")
		b.refused("working directory", "run", "--bundle", b.bundle, "c1")
	}
	b.link("/proc/self/fd/7", "w")
	b.config("c1", func(s *specs.Spec) { s.Process.Cwd = "/w" }, "ls", "..")
	b.refused("working directory", "run", "--bundle", b.bundle, "c1")
	b.running(nil)
	for n := 3; n <= 17; n++ {
		b.refused("working directory", "exec", "--cwd", fmt.Sprintf("/proc/self/fd/%d/../..", n), "c1", "ls")
	}
	b.refused("working directory", "exec", "--cwd", "/w", "c1", "ls")
}

// TestLinkedFiles: what the runtime itself reads or makes in an image is the image's (CVE-2025-24965), and so are the
// nodes and links of /dev (CVE-2026-41579, CVE-2026-47766, CVE-2025-31133, CVE-2025-52565).
func TestLinkedFiles(t *testing.T) {
	b := newBench(t)
	o := newOutside(t)
	b.link(o.dir+"/passwd", "etc/passwd")
	b.link(o.dir+"/passwd", "etc/group")
	b.config("c1", func(s *specs.Spec) { s.Process.Env = []string{"PATH=/bin"} }, "sh", "-c", "echo $HOME")
	if r := b.do("run", "--bundle", b.bundle, "c1"); r.code != 0 || r.out != "/\n" && r.out != "/root\n" {
		t.Errorf("the home is of another passwd: %+v", r)
	}
	for _, name := range []string{"dev", "sys"} {
		b.link(o.dir+"/dir", name)
		for _, mounts := range []bool{true, false} { // without a mount on /dev the nodes are made in the image
			b.config("c1", func(s *specs.Spec) {
				if !mounts {
					s.Mounts = s.Mounts[:1]
				}
				s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mine", Type: "c", Major: 1, Minor: 5}}
			}, "true")
			if r := b.do("run", "--bundle", b.bundle, "c1"); r.code == 0 && (name == "dev" || mounts) {
				t.Errorf("/%s is a link out, mounts %v: %+v", name, mounts, r)
			}
			o.check()
		}
		os.Remove(filepath.Join(b.bundle, "rootfs", name))
		os.Mkdir(filepath.Join(b.bundle, "rootfs", name), 0o755)
	}
	for name, to := range map[string]string{"dev/null": o.dir + "/null", "dev/console": o.dir + "/console", "dev/ptmx": o.dir + "/null", "dev/fd": o.dir + "/dir", "dev/pts": o.dir + "/dir", "dev/shm": o.dir + "/dir"} {
		b.link(to, name)
		b.config("c1", func(s *specs.Spec) {
			s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev" })
			s.Process.Terminal = name == "dev/console"
		}, "sh", "-c", "echo canary > /dev/null; echo > /dev/console; ls -ld "+o.dir)
		b.do("run", "--bundle", b.bundle, "c1") // refused or contained
		o.check()
		os.Remove(filepath.Join(b.bundle, "rootfs", name))
	}
}

// TestCgroupsPath: a climbing path makes nothing anywhere.
func TestCgroupsPath(t *testing.T) {
	b := newBench(t)
	h, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, p := range []string{"/../../../../../../../../tmp/cgroup-escape", "../cgroup-escape", b.cgroup + "/../../../../cgroup-escape", "/a/../../../cgroup-escape", "..", "/..", "/./../x"} {
		b.config("c1", func(s *specs.Spec) { s.Linux.CgroupsPath = p }, "true")
		b.refused("..", "run", "--bundle", b.bundle, "c1")
	}
	for _, dir := range []string{"/tmp", "/", "/sys", "/sys/fs", "/sys/fs/cgroup"} {
		if _, err := os.Stat(dir + "/cgroup-escape"); err == nil {
			t.Errorf("%s/cgroup-escape was made", dir)
		}
	}
	for _, tree := range h.Hierarchies() {
		if _, err := os.Stat(tree.Mount + "/cgroup-escape"); err == nil {
			t.Errorf("%s/cgroup-escape was made", tree.Mount)
		}
	}
}

// TestHostSysctls: what is the host's is not the container's to set, by whatever spelling (CVE-2022-0811).
func TestHostSysctls(t *testing.T) {
	b := newBench(t)
	read := func() string {
		v, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
		return string(v)
	}
	before := read()
	for name, value := range map[string]string{
		"kernel.core_pattern": "|/bin/sh", "kernel/core_pattern": "x", "vm.overcommit_memory": "1", "net/../kernel/core_pattern": "x", "net.ipv4.../../kernel/core_pattern": "x",
		"kernel.hostname": "x\nkernel.core_pattern=y", "fs.mqueue.../../kernel/core_pattern": "x", "": "1", "/proc/sys/kernel/core_pattern": "x",
	} {
		b.config("c1", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{name: value} }, "true")
		r := b.do("run", "--bundle", b.bundle, "c1")
		if r.code == 0 && name != "kernel.hostname" {
			t.Errorf("sysctl %q is set: %+v", name, r)
		}
	}
	b.config("c1", func(s *specs.Spec) {
		s.Linux.Namespaces = without(s.Linux.Namespaces, specs.NetworkNamespace)
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	}, "true")
	b.refused("sysctl net.ipv4.ip_forward", "run", "--bundle", b.bundle, "c1")
	if after := read(); after != before {
		t.Errorf("core_pattern is %q", after)
	}
}
