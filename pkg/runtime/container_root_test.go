//go:build root

package runtime_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime"
)

func TestInside(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	r, err := run(t, runtime.Options{Spec: spec(root, `
echo pid $$
hostname
echo fds $(ls /proc/self/fd | wc -l)
stat -c '%n %F %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty
for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done
grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Groups)' /proc/self/status
echo masked $(cat /proc/keys /proc/timer_list /proc/kcore 2>/dev/null | wc -c) $(ls -A /sys/firmware | wc -l)
echo x 2>/dev/null > /proc/sys/kernel/hostname || echo ro proc
touch /sys/x 2>/dev/null || echo ro sys
touch /x && echo rw root
umask
echo $A
echo more $(cut -d' ' -f2 /proc/mounts | grep -vE '^/$|^/dev$|^/dev/(mqueue|pts|shm)$|^/proc$|^/proc/(acpi|bus|fs|irq|keys|sys|sysrq-trigger|timer_list|kcore)$|^/sys$|^/sys/firmware$')
grep -c ' / ' /proc/mounts`)})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "pid 1", "box", "fds 4", "/dev/null character special file 1:3 666", "/dev/tty character special file 5:0 666",
		"/proc/self/fd", "pts/ptmx", "CapEff:\t00000000080004eb", "CapBnd:\t00000000080004eb", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1",
		"masked 0 0", "ro proc", "ro sys", "rw root", "0022", "b",
		"more", "1")
	if t.Failed() {
		t.Log(r.out, r.err)
	}
}

func TestErrors(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	root := testroot.Rootfs(t, dir)
	os.WriteFile(root+"/noexec", []byte("#!/bin/sh\n"), 0o644)
	os.WriteFile(root+"/nointerp", []byte("#!/nothing\n"), 0o755)
	for _, c := range []struct {
		name   string
		change func(s *specs.Spec)
		want   string
		is     error
	}{
		{"not in PATH", func(s *specs.Spec) { s.Process.Args = []string{"nothing"} }, `exec: "nothing": executable file not found in $PATH`, fs.ErrNotExist},
		{"no PATH", func(s *specs.Spec) { s.Process.Env = nil }, `exec: "sh": executable file not found in $PATH`, fs.ErrNotExist},
		{"no file", func(s *specs.Spec) { s.Process.Args = []string{"/nothing"} }, `exec: "/nothing": stat /nothing: no such file or directory`, fs.ErrNotExist},
		{"not executable", func(s *specs.Spec) { s.Process.Args = []string{"/noexec"} }, `exec: "/noexec": permission denied`, fs.ErrPermission},
		{"a directory", func(s *specs.Spec) { s.Process.Args = []string{"/bin"} }, `exec: "/bin": permission denied`, fs.ErrPermission},
		{"no interpreter", func(s *specs.Spec) { s.Process.Args = []string{"/nointerp"} }, `exec /nointerp: no such file or directory`, fs.ErrNotExist},
		{"no args", func(s *specs.Spec) { s.Process.Args = nil }, `process: no arguments`, nil},
		{"relative cwd", func(s *specs.Spec) { s.Process.Cwd = "tmp" }, `cwd "tmp" is not an absolute path`, nil},
		{"cwd is a file", func(s *specs.Spec) { s.Process.Cwd = "/noexec" }, `enter the working directory /noexec (container test): openat2: not a directory`, unix.ENOTDIR},
		{"cwd behind a magic link", func(s *specs.Spec) { s.Process.Cwd = "/proc/self/fd/3" }, `working directory`, unix.ELOOP},
		{"no source", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Source: dir + "/none", Options: []string{"bind"}})
		}, "mount /data (container test): source " + dir + "/none: no such file or directory", fs.ErrNotExist},
		{"file on directory", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Source: root + "/noexec", Options: []string{"bind"}})
		}, "mount /tmp: source " + root + "/noexec is not a directory, the destination is one", unix.ENOTDIR},
		{"unknown filesystem", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "nofs"})
		}, "mount /data (container test): fsopen nofs: no such device", unix.ENODEV},
		{"bad tmpfs option", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "tmpfs", Options: []string{"nonsense=1"}})
		}, `mount /data: tmpfs with "nonsense=1": invalid argument`, unix.EINVAL},
		{"no UTS namespace", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[4:] }, "a host name needs a UTS namespace", nil},
		{"host sysctl", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} }, "sysctl kernel.panic: it is not one of a namespace", nil},
		{"bad sysctl", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.nothing": "1"} }, "sysctl net.ipv4.nothing: ", nil},
		{"climbing sysctl", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.../../../../x": "1"} }, "is no name of a kernel parameter", nil},
		{"unmapped user", func(s *specs.Spec) { s.Process.User.UID = 1<<32 - 1 }, "is out of range", nil},
		{"unmapped root", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 1, HostID: 1000, Size: 1000}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}, "must map container ID 0", nil},
		{"proc is a link", func(s *specs.Spec) {
			linked := testroot.Rootfs(t, t.TempDir())
			os.RemoveAll(linked + "/proc")
			os.Symlink("/etc", linked+"/proc")
			s.Root.Path = linked
		}, "mount /proc: it must be mounted on ordinary directory", unix.ELOOP},
		{"bad rlimit", func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, `resource limit "RLIMIT_X" is unknown`, nil},
		{"no root", func(s *specs.Spec) { s.Root.Path = dir + "/none" }, "root filesystem (container test): source " + dir + "/none: no such", fs.ErrNotExist},
	} {
		s := spec(root, "true")
		c.change(s)
		_, err := run(t, runtime.Options{Spec: s})
		if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
		if c.name == "bad sysctl" && !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v is not of kind invalid", c.name, err)
		}
	}
}

func TestUser(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	os.Mkdir(root+"/private", 0o700)
	os.Chown(root+"/private", 1000, 1000)
	s := spec(root, `id -u; id -g; id -G; pwd; umask; grep -E '^Cap' /proc/self/status; echo >/dev/stdout; ulimit -n; ulimit -c; cat /proc/self/oom_score_adj`)
	mask := uint32(0o027)
	adj := 500
	s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 1001, 4294967294}, Umask: &mask}
	s.Process.Cwd = "/private"
	s.Process.OOMScoreAdj = &adj
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}}
	c := []string{"CAP_NET_BIND_SERVICE"}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: append(c, "CAP_KILL"), Permitted: c, Inheritable: c, Ambient: c, Effective: c}
	r, err := run(t, runtime.Options{Spec: s, StdioOwner: true})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "1000", "1001", "1001 7 4294967294", "/private", "0027", "CapInh:\t0000000000000400", "CapPrm:\t0000000000000400",
		"CapEff:\t0000000000000400", "CapBnd:\t0000000000000420", "CapAmb:\t0000000000000400", "100", "0", "500")
	if r.err != "" {
		t.Error(r.err)
	}
}

func TestCwd(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	os.Symlink("/etc", root+"/link")
	for cwd, want := range map[string]string{"/a/b/c": "/a/b/c", "/link/../etc/x": "/etc/x", "/link/y": "/etc/y", "/../..": "/"} {
		s := spec(root, "pwd -P; stat -c %a .")
		s.Process.Cwd = cwd
		r, err := run(t, runtime.Options{Spec: s})
		if err != nil || r.out != want+"\n755\n" {
			t.Errorf("%s: got %+v, %v", cwd, r, err)
		}
	}
}

func TestMounts(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	root := testroot.Rootfs(t, dir)
	os.MkdirAll(dir+"/src/sub", 0o755)
	t.Cleanup(func() { unix.Unmount(dir+"/src/sub", unix.MNT_DETACH) })
	os.WriteFile(dir+"/src/file", []byte("from the host\n"), 0o644)
	if err := unix.Mount("tmpfs", dir+"/src/sub", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(root+"/etc/copied", []byte("copied\n"), 0o640)
	os.Symlink("../outside", root+"/var/link") // stays inside
	os.Symlink("/run", root+"/var/run")
	s := spec(root, `
grep -E ' /(run/secrets/x|ro|rw|rro|t|rt|up|var/|run/|outside|file|new|etc|rel|dev/shm|mnt) ' /proc/mounts | cut -d' ' -f2,3,4
cat /file /rel/file
touch /ro/x 2>/dev/null || echo ro
touch /ro/sub/x && echo ro only on top
touch /rro/sub/x 2>/dev/null || echo rro
touch /rt/x 2>/dev/null || echo rt
cat /etc/copied
stat -c '%a %u' /etc/copied
ls -d /rt/below/deep /run/secrets/x`)
	bind := func(dest string, opts ...string) specs.Mount {
		return specs.Mount{Destination: dest, Type: "bind", Source: dir + "/src", Options: opts}
	}
	s.Mounts = append(s.Mounts, bind("/ro", "rbind", "ro"), bind("/rro", "rbind", "rro"), bind("/rw", "bind", "noatime", "nodev", "nosuid", "noexec"),
		specs.Mount{Destination: "/file", Type: "bind", Source: dir + "/src/file", Options: []string{"bind", "ro"}},
		specs.Mount{Destination: "/rel", Type: "none", Source: "src", Options: []string{"bind"}},
		bind("/var/link", "bind"), bind("/var/run/secrets/x", "bind", "ro"),
		specs.Mount{Destination: "/rt", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "size=64k", "mode=700"}},
		specs.Mount{Destination: "/rt/below/deep", Type: "tmpfs", Source: "tmpfs"},
		specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "size=1m"}},
		specs.Mount{Destination: "/dev/shm", Options: []string{"remount", "bind", "ro"}},
		specs.Mount{Destination: "/mnt", Type: "ramfs", Source: "ramfs", Options: []string{"rshared"}},
	)
	r, err := run(t, runtime.Options{Spec: s, Bundle: dir})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "from the host", "ro", "ro only on top", "rro", "rt", "copied", "640 0", "/rt/below/deep", "/run/secrets/x")
	for _, want := range []string{"rw,nosuid,nodev,noexec,noatime", "/outside ", "/run/secrets/x ", "/dev/shm tmpfs ro"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("no %q in\n%s", want, r.out)
		}
	}
	if t.Failed() {
		t.Log(r.out, r.err)
	}
	if _, err := os.Lstat(dir + "/outside"); err == nil {
		t.Error("a link led out of the root filesystem")
	}
}

// TestMaskedOnce masks a path that is listed more than once one time.
func TestMaskedOnce(t *testing.T) {
	testroot.NeedRoot(t)
	s := spec(testroot.Rootfs(t, t.TempDir()), "grep -c ' /etc ' /proc/mounts")
	s.Linux.MaskedPaths = []string{"/etc", "/etc/", "/etc/../etc"}
	if r, err := run(t, runtime.Options{Spec: s}); err != nil || r.out != "1\n" {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestDeviceUnderAMount: a node of the host's that is mounted where a device is asked for stands for it, and its owner
// stays; anything else there is refused.
func TestDeviceUnderAMount(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	node := filepath.Join(dir, "node")
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
		t.Skip("this file system has no device nodes") // as in some user namespaces
	}
	uid := uint32(7)
	s := spec(testroot.Rootfs(t, dir), "stat -c '%t:%T' /dev/zero /dev/mine")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
		specs.Mount{Destination: "/dev/zero", Type: "bind", Source: node, Options: []string{"bind"}}, specs.Mount{Destination: "/dev/mine", Type: "bind", Source: node, Options: []string{"bind"}})
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/mine", Type: "c", Major: 1, Minor: 5, UID: &uid}}
	if r, err := run(t, runtime.Options{Spec: s}); err != nil || r.out != "1:5\n1:5\n" {
		t.Errorf("got %+v, %v", r, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil || st.Uid != 0 {
		t.Errorf("the host's node belongs to %d, %v", st.Uid, err)
	}
	s.Mounts[len(s.Mounts)-1].Source = dir
	if _, err := run(t, runtime.Options{Spec: s}); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "/dev/mine") {
		t.Errorf("a directory in a device's place: %v", err)
	}
}

// TestTmpfsMode has tmpfs take the mode of what it covers, unless it names one.
func TestTmpfsMode(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	for dir, mode := range map[string]uint32{"kept": 0o7751, "named": 0o710, "readonly": 0o750} {
		if err := os.Mkdir(root+"/"+dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Chmod(root+"/"+dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	s := spec(root, "stat -c '%n %a' /kept /named /made /readonly")
	for dest, options := range map[string][]string{"/kept": nil, "/named": {"mode=0410"}, "/made": nil, "/readonly": {"ro"}} {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options})
	}
	r, err := run(t, runtime.Options{Spec: s})
	if want := "/kept 7751\n/named 410\n/made 1777\n/readonly 750\n"; err != nil || r.out != want {
		t.Errorf("got %+v, %v, want %q", r, err, want)
	}
}

func TestPropagation(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	root := testroot.Rootfs(t, dir)
	for _, d := range []string{"shared", "shared/in"} {
		os.Mkdir(filepath.Join(dir, d), 0o755)
	}
	if err := unix.Mount("tmpfs", dir+"/shared", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/shared", unix.MNT_DETACH) })
	if err := unix.Mount("", dir+"/shared", "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"a", "b"} {
		os.Mkdir(dir+"/shared/"+d, 0o755)
	}
	for _, c := range []struct {
		option  string
		in, out bool // a mount on the host is seen inside, one inside is seen on the host
	}{{"rprivate", false, false}, {"rslave", true, false}, {"rshared", true, true}, {"", false, false}} {
		s := spec(root, "read x")
		caps := append(s.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		opts := []string{"rbind"}
		if c.option != "" {
			opts = append(opts, c.option)
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: dir + "/shared", Options: opts})
		if c.option == "rshared" {
			s.Linux.RootfsPropagation = "rshared"
		}
		s.Process.Args = []string{"sleep", "1000"}
		ct := begin(t, runtime.Options{Spec: s})
		if err := unix.Mount("tmpfs", dir+"/shared/a", "tmpfs", 0, "size=77k"); err != nil {
			t.Fatal(err)
		}
		r, err := ct.exec(t, "grep -c ' /v/a ' /proc/mounts; mount -t tmpfs tmpfs /v/b")
		if err != nil {
			t.Fatal(err)
		}
		host, _ := os.ReadFile("/proc/self/mounts")
		in, out := strings.HasPrefix(r.out, "1"), strings.Contains(string(host), " "+dir+"/shared/b ")
		if in != c.in || out != c.out {
			t.Errorf("%s: seen inside %v, outside %v: %+v", c.option, in, out, r)
		}
		unix.Unmount(dir+"/shared/a", unix.MNT_DETACH)
		unix.Unmount(dir+"/shared/b", unix.MNT_DETACH)
		ct.Kill(unix.SIGKILL)
		ct.Wait()
	}
}

func TestReadonlyRoot(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	s := spec(root, "touch /x || touch /dev/shm/x && echo ok")
	s.Root.Readonly = true
	r, err := run(t, runtime.Options{Spec: s})
	if err != nil || r.out != "ok\n" {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestDevices(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	mode := os.FileMode(0o640)
	id := uint32(1000)
	s := spec(root, `stat -c '%n %F %t:%T %a %u:%g' /dev/mine /dev/net/tun /dev/fifo /dev/null /opt/dev/zero /atroot /dev/blk; echo x > /dev/full`)
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/mine", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &id, GID: &id},
		{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200},
		{Path: "/dev/fifo", Type: "p", FileMode: &mode},
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: &mode},
		{Path: "/opt/dev/zero", Type: "c", Major: 1, Minor: 5},
		{Path: "/atroot", Type: "c", Major: 1, Minor: 5},
		{Path: "/dev/blk", Type: "b", Major: 7, Minor: 300},
	}
	r, err := run(t, runtime.Options{Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "/dev/mine character special file 1:5 640 1000:1000", "/dev/net/tun character special file a:c8 666 0:0", "/dev/fifo fifo 0:0 640 0:0",
		"/dev/null character special file 1:3 640 0:0", "/opt/dev/zero character special file 1:5 666 0:0", "/atroot character special file 1:5 666 0:0", "/dev/blk block special file 7:12c 666 0:0")
	if !strings.Contains(r.err, "No space left") {
		t.Error(r.err)
	}
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "q"}}
	if _, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), `device /dev/x: type "q"`) {
		t.Error(err)
	}
}
