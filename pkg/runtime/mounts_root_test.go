//go:build root

package runtime_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
)

// mountOn mounts a tmpfs for the time of the test.
func mountOn(t *testing.T, dir string, flags uintptr, data string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// TestInOrder: every bind mount is whole and where it belongs while the order is kept, whatever user
// namespace or hooks there are.
func TestInOrder(t *testing.T) {
	testroot.NeedRoot(t)
	for _, how := range []string{"plain", "userns", "hooks"} {
		dir := t.TempDir()
		root := testroot.Rootfs(t, dir)
		os.Chmod(dir, 0o755)
		os.Chmod(filepath.Dir(dir), 0o755)
		for _, d := range []string{"a", "b", "c"} {
			mountOn(t, dir+"/"+d, 0, "")
			mountOn(t, dir+"/"+d+"/sub", 0, "")
			os.WriteFile(dir+"/"+d+"/sub/file", []byte(d+"\n"), 0o644)
		}
		os.WriteFile(dir+"/hosts", []byte("hosts\n"), 0o644)
		os.WriteFile(root+"/etc/hosts", nil, 0o644)
		s := spec(root, "cat /a/sub/file /c/sub/file /a/b/sub/file /etc/hosts; ls /c /a /a/b; ls -d /dev/pts/ptmx /dev/null; awk '{print $5}' /proc/self/mountinfo | grep -E '^/(a|b|c)' | tr '\\n' ' '; echo")
		bind := func(src, dest, option string) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: dir + "/" + src, Options: []string{option}})
		}
		bind("c", "/c", "rbind")
		bind("hosts", "/etc/hosts", "bind")
		bind("a", "/a", "rbind")
		bind("b", "/a/b", "rbind")
		switch how {
		case "userns":
			maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
			os.Chown(root, 100000, 100000)
			os.Chown(dir+"/a", 100000, 100000)
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
		case "hooks": // they find the root filesystem at its place on the host
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat " + root + "/a/b/sub/file >" + dir + "/hooked"}, Env: []string{"PATH=/usr/bin:/bin"}}}}
		}
		r, err := run(t, runtime.Options{Spec: s, Bundle: dir, InOrder: true})
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		want := "a\nc\nb\nhosts\n/a:\nb\nsub\n\n/a/b:\nsub\n\n/c:\nsub\n/dev/null\n/dev/pts/ptmx\n/c /c/sub /a /a/sub /a/b /a/b/sub \n"
		if r.out != want {
			t.Errorf("%s: %+v, want\n%s", how, r, want)
		}
		if b, err := os.ReadFile(dir + "/hooked"); how == "hooks" && string(b) != "b\n" {
			t.Errorf("the hook saw %q, %v", b, err)
		}
	}
}

type recursiveOption struct {
	option, with string // with: a flag of the source's mounts
	has, hasNot  string
}

// recursive are the mount options that mean a whole tree: what each makes of mounts that began with other flags.
var recursive = []recursiveOption{
	{"rro", "", "ro", "rw"}, {"rrw", "ro", "rw", "ro"},
	{"rnosuid", "", "nosuid", ""}, {"rsuid", "nosuid", "", "nosuid"},
	{"rnodev", "", "nodev", ""}, {"rdev", "nodev", "", "nodev"},
	{"rnoexec", "", "noexec", ""}, {"rexec", "noexec", "", "noexec"},
	{"rnodiratime", "", "nodiratime", ""}, {"rdiratime", "nodiratime", "", "nodiratime"},
	{"rnoatime", "", "noatime", "relatime"}, {"ratime", "noatime", "relatime", "noatime"},
	{"rrelatime", "noatime", "relatime", "noatime"}, {"rnorelatime", "", "relatime", ""}, // the kernel's default is relatime
	{"rstrictatime", "", "", "relatime"}, {"rnostrictatime", "strictatime", "relatime", ""},
	{"rnosymfollow", "", "nosymfollow", ""}, {"rsymfollow", "nosymfollow", "", "nosymfollow"},
}

var mountFlags = map[string]uintptr{"": 0, "ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"nodiratime": unix.MS_NODIRATIME, "noatime": unix.MS_NOATIME, "strictatime": unix.MS_STRICTATIME, "nosymfollow": unix.MS_NOSYMFOLLOW}

// TestRecursiveOptions sets every option of a whole tree on a mount and the one below it; without its r, on
// the mount alone.
func TestRecursiveOptions(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	s := spec(testroot.Rootfs(t, dir), "cat /proc/self/mountinfo")
	for _, c := range recursive {
		src := filepath.Join(dir, "src-"+c.option)
		mountOn(t, src, 0, "")
		mountOn(t, src+"/sub", mountFlags[c.with], "")
		if err := unix.Mount("", src, "", unix.MS_REMOUNT|unix.MS_BIND|mountFlags[c.with], ""); err != nil {
			t.Fatal(err)
		}
		for _, o := range []string{c.option, c.option[1:]} {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v/" + o, Type: "bind", Source: src, Options: []string{"rbind", o}})
		}
	}
	for _, o := range runtime.MountOptions() { // what we say we know is what is tried here
		others := []string{"rbind", "remount", "ridmap", "relatime", "ro", "rw", "rprivate", "rshared", "rslave", "runbindable"}
		tried := slices.ContainsFunc(recursive, func(c recursiveOption) bool { return c.option == o })
		if strings.HasPrefix(o, "r") && !tried && !slices.Contains(others, o) {
			t.Errorf("%s is not tried", o)
		}
	}
	r, err := run(t, runtime.Options{Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	flags := map[string]string{}
	for line := range strings.Lines(r.out) {
		f := strings.Fields(line)
		flags[f[4]] = "," + f[5] + ","
	}
	for _, c := range recursive {
		for at, changed := range map[string]bool{"/v/" + c.option: true, "/v/" + c.option + "/sub": true, "/v/" + c.option[1:]: true, "/v/" + c.option[1:] + "/sub": false} {
			got := flags[at]
			as := got != "" && (c.has == "" || strings.Contains(got, ","+c.has+",")) && (c.hasNot == "" || !strings.Contains(got, ","+c.hasNot+","))
			if as != changed && !(at == "/v/"+c.option[1:]+"/sub" && (c.option == "rnorelatime" || c.with == "strictatime")) {
				t.Errorf("%s is %q", at, got)
			}
		}
	}
}

// TestRootfsPropagation gives the root mount each propagation.
func TestRootfsPropagation(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	mountOn(t, dir+"/host", 0, "")
	if err := unix.Mount("", dir+"/host", "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	root := testroot.Rootfs(t, dir+"/host")
	for name, want := range map[string]string{"": "", "private": "", "rprivate": "", "shared": "shared", "rshared": "shared", "slave": "master", "rslave": "master", "unbindable": "unbindable", "runbindable": "unbindable"} {
		s := spec(root, `awk '$5 == "/" {print $7}' /proc/self/mountinfo | cut -d: -f1`)
		s.Linux.RootfsPropagation = name
		r, err := run(t, runtime.Options{Spec: s})
		if got := strings.TrimSpace(r.out); err != nil || got != want && !(want == "" && got == "-") {
			t.Errorf("%q: %+v, %v", name, r, err)
		}
	}
	s := spec(root, "true")
	s.Linux.RootfsPropagation = "public"
	if _, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), `rootfsPropagation "public" is unknown`) {
		t.Error(err)
	}
}
