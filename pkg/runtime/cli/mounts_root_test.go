//go:build root

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// nested is a directory with a mount of the given propagation, in which a file lies and a directory "sub" with another
// mount and file.
func nested(t *testing.T, propagation uintptr) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	for _, d := range []string{dir, dir + "/sub"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d+"/file", []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("", dir, "", propagation|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestSharedSource: a bind mount that is a peer of the host's has what is mounted below it, and the host keeps it.
func TestSharedSource(t *testing.T) {
	for _, propagation := range []uintptr{unix.MS_SHARED, unix.MS_PRIVATE} {
		for _, options := range []string{"rbind,rshared", "rbind,shared", "rbind,rshared,ro", "rbind,rslave", "rbind,unbindable", "rbind,runbindable"} {
			b := newBench(t)
			src := nested(t, propagation)
			b.config("c1", func(s *specs.Spec) {
				for _, at := range []string{"/v", "/w"} { // the second is attached where the first was
					s.Mounts = append(s.Mounts, specs.Mount{Destination: at, Type: "bind", Source: src, Options: strings.Split(options, ",")})
				}
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}})
				s.Linux.RootfsPropagation = "rshared"
			}, "cat", "/v/file", "/v/sub/file", "/w/file", "/w/sub/file")
			for _, args := range [][]string{{"run"}, {"run", "--no-pivot"}} {
				if r := b.do(append(args, "--bundle", b.bundle, "c1")...); r.code != 0 || r.out != "xxxx" {
					t.Errorf("%s, %v: %+v", options, args, r)
				}
				if _, err := os.Stat(src + "/sub/file"); err != nil {
					t.Fatalf("%s, %v took the host's mount: %v", options, args, err)
				}
			}
		}
	}
}

// fields are what mountinfo says of the mounts below /v: options and propagation by mount point.
func fields(mountinfo string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(mountinfo) {
		if f := strings.Fields(line); len(f) > 6 && strings.HasPrefix(f[4]+"/", "/v/") {
			propagation, _, _ := strings.Cut(f[6], ":")
			out[f[4]] = f[5] + " " + propagation
		}
	}
	return out
}

// TestMountAttributes: which of several options wins, and where it counts.
func TestMountAttributes(t *testing.T) {
	b := newBench(t)
	src := nested(t, unix.MS_SHARED)
	for _, c := range []struct{ options, root, top, sub string }{
		{"rbind", "", "rw,relatime -", "rw,relatime -"},
		{"rbind", "rslave", "rw,relatime master", "rw,relatime master"},
		{"rbind", "slave", "rw,relatime master", "rw,relatime master"},
		{"rbind,rprivate", "rslave", "rw,relatime -", "rw,relatime -"},
		{"rbind,rprivate", "rshared", "rw,relatime shared", "rw,relatime shared"},
		{"rbind,rslave", "rprivate", "rw,relatime master", "rw,relatime master"},
		{"rbind,unbindable", "", "rw,relatime unbindable", "rw,relatime -"},
		{"rbind,runbindable", "", "rw,relatime unbindable", "rw,relatime unbindable"},
		{"rbind,rro,rw", "", "ro,relatime -", "ro,relatime -"},
		{"rbind,ro,rrw", "", "rw,relatime -", "rw,relatime -"},
		{"rbind,ro", "", "ro,relatime -", "rw,relatime -"},
		{"rbind,noatime,rrelatime", "", "rw,relatime -", "rw,relatime -"},
	} {
		b.config("c1", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: src, Options: strings.Split(c.options, ",")})
			s.Linux.RootfsPropagation = c.root
		}, "cat", "/proc/self/mountinfo")
		r := b.do("run", "--bundle", b.bundle, "c1")
		if got := fields(r.out); r.code != 0 || got["/v"] != c.top || got["/v/sub"] != c.sub {
			t.Errorf("%s in a root %q: %q, %s", c.options, c.root, got, r.err)
		}
	}
}

// TestRecursiveOptionsOfFilesystem: a new filesystem is all of its tree.
func TestRecursiveOptionsOfFilesystem(t *testing.T) {
	b := newBench(t)
	for options, want := range map[string]string{
		"rro": "ro,relatime -", "rro,rnosuid,rnoexec": "ro,nosuid,noexec,relatime -", "ro,rrw": "rw,relatime -", "rnoatime": "rw,noatime -", "rstrictatime": "rw -", "noatime,rrelatime": "rw,relatime -",
	} {
		b.config("c1", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "tmpfs", Source: "tmpfs", Options: strings.Split(options, ",")})
			for i := range s.Mounts {
				if s.Mounts[i].Type == "cgroup" {
					s.Mounts[i].Options = []string{"rro"}
				}
			}
		}, "cat", "/proc/self/mountinfo")
		r := b.do("run", "--bundle", b.bundle, "c1")
		if got := fields(r.out); r.code != 0 || got["/v"] != want {
			t.Errorf("%s: %q, %s", options, got, r.err)
		}
		for line := range strings.Lines(r.out) {
			if f := strings.Fields(line); strings.HasPrefix(f[4], "/sys/fs/cgroup") && !strings.HasPrefix(f[5], "ro,") {
				t.Errorf("a cgroup mount with rro: %s", line)
			}
		}
	}
}

// TestHiddenMount: a read-only mount that a later one hides is no hindrance, and the later one is what its own options say.
func TestHiddenMount(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/v/sub", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
			specs.Mount{Destination: "/v", Type: "tmpfs", Source: "tmpfs"},
			specs.Mount{Destination: "/v/over", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
			specs.Mount{Destination: "/v/over", Type: "tmpfs", Source: "tmpfs"},
		)
	}, "sh", "-c", "test ! -e /v/sub && echo x >/v/over/file && cat /v/over/file")
	if out := b.ok("run", "--bundle", b.bundle, "c1"); out != "x\n" {
		t.Error(out)
	}
}

// TestOverlayOptions: a filesystem's options may stand in one word, as mount(8) writes them.
func TestOverlayOptions(t *testing.T) {
	b := newBench(t)
	dir := nested(t, unix.MS_PRIVATE)
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/lower/file", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, options := range [][]string{
		{`lowerdir=` + dir + `/lower,upperdir=` + dir + `/upper,workdir=` + dir + `/work`},
		{`lowerdir=` + dir + `/lower`, `upperdir=` + dir + `/upper`, `workdir=` + dir + `/work`, "noatime"},
	} {
		b.config("c1", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "overlay", Source: "overlay", Options: options})
		}, "cat", "/v/file")
		if out := b.ok("run", "--bundle", b.bundle, "c1"); out != "x" {
			t.Error(out)
		}
	}
}

// TestMountedPasswd: the home directory comes from the passwd file that the container will have.
func TestMountedPasswd(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/etc/passwd", []byte("root:x:0:0::/home/mine:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bind := func(dest, source string) specs.Mount {
		return specs.Mount{Destination: dest, Type: "none", Source: source, Options: []string{"rbind"}}
	}
	tmpfs := specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs"}
	for _, c := range []struct {
		want   string
		mounts []specs.Mount
	}{
		{"/root", nil},
		{"/home/mine", []specs.Mount{bind("/etc/passwd", dir+"/etc/passwd")}},
		{"/home/mine", []specs.Mount{bind("/etc", dir+"/etc")}},
		{"/home/mine", []specs.Mount{tmpfs, bind("etc/../etc/passwd", dir+"/etc/passwd")}},
		{"/", []specs.Mount{tmpfs}},
		{"/root", []specs.Mount{{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup"}}}},
		{"/root", []specs.Mount{bind("/etc/hosts", dir+"/etc/passwd")}},
	} {
		b.config("c1", func(s *specs.Spec) { s.Mounts = append(s.Mounts, c.mounts...) }, "/bin/sh", "-c", "echo $HOME")
		if r := b.do("run", "--bundle", b.bundle, "c1"); r.out != c.want+"\n" {
			t.Errorf("%+v: %+v, want %s", c.mounts, r, c.want)
		}
	}
}

// TestMissingCwd: the working directory of a read-only root filesystem is made, too.
func TestMissingCwd(t *testing.T) {
	for _, readonly := range []bool{true, false} {
		b := newBench(t)
		b.config("c1", func(s *specs.Spec) { s.Root.Readonly, s.Process.Cwd = readonly, "/a/b/../c" }, "pwd")
		if r := b.do("run", "--bundle", b.bundle, "c1"); r.out != "/a/c\n" {
			t.Errorf("%+v", r)
		}
	}
}
