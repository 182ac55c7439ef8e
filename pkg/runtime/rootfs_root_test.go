//go:build root

package runtime_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/sys"
)

// tmpfs mounts one for upper directories, since overlays do not stack on what the tests may run on.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestDetachedRootfs gives the root filesystem as a tree that is mounted nowhere.
func TestDetachedRootfs(t *testing.T) {
	testroot.NeedRoot(t)
	dir := tmpfs(t)
	root := testroot.Rootfs(t, dir)
	os.Mkdir(dir+"/up", 0o755)
	os.Mkdir(dir+"/work", 0o755)
	for range 2 { // the same layers twice: the first container is gone by then
		tree, err := sys.NewMount("overlay", []sys.MountOption{{Key: "lowerdir", Value: root}, {Key: "upperdir", Value: dir + "/up"}, {Key: "workdir", Value: dir + "/work"}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		s := spec("", "echo x >> /written; cat /written; head -1 /proc/mounts | cut -d' ' -f1-3")
		s.Root = nil
		r, err := run(t, runtime.Options{Spec: s, Rootfs: tree})
		tree.Close()
		if err != nil || !strings.HasSuffix(r.out, " / overlay\n") {
			t.Fatalf("got %+v, %v", r, err)
		}
	}
	if b, _ := os.ReadFile(dir + "/up/written"); string(b) != "x\nx\n" {
		t.Errorf("the upper directory has %q", b)
	}
	if _, err := os.Stat(root + "/written"); err == nil {
		t.Error("the lower directory was written")
	}
}

// TestMountedHere has filesystems that are made with the host's eyes, and trees that come by descriptor.
func TestMountedHere(t *testing.T) {
	testroot.NeedRoot(t)
	dir := tmpfs(t)
	root := testroot.Rootfs(t, t.TempDir())
	for _, d := range []string{"low", "up", "work", "tree"} {
		os.Mkdir(dir+"/"+d, 0o755)
	}
	os.WriteFile(dir+"/low/file", []byte("low\n"), 0o644)
	os.WriteFile(dir+"/tree/file", []byte("tree\n"), 0o644)
	tree, err := sys.OpenTree(nil, dir+"/tree", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	s := spec(root, "cat /o/file /t/file; touch /o/new && echo wrote; touch /t/new 2>/dev/null || echo ro")
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/o", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + dir + "/low", "upperdir=" + dir + "/up", "workdir=" + dir + "/work"}},
		specs.Mount{Destination: "/t", Type: "image", Source: "an-image", Options: []string{"ro"}})
	r, err := run(t, runtime.Options{Spec: s, MountFDs: map[int]*os.File{len(s.Mounts) - 1: tree}})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "low", "tree", "wrote", "ro")
	if _, err := os.Stat(dir + "/up/new"); err != nil {
		t.Error(err)
	}
}

// TestIdmapped mounts a volume whose owners are shifted.
func TestIdmapped(t *testing.T) {
	testroot.NeedRoot(t)
	if !sys.Has(sys.IdmapTmpfs) {
		testroot.Skip(t, "this kernel has no idmapped tmpfs")
	}
	dir := tmpfs(t)
	root := testroot.Rootfs(t, t.TempDir())
	os.WriteFile(dir+"/file", nil, 0o644)
	os.Chown(dir+"/file", 7, 8)
	os.Mkdir(dir+"/dir", 0o777)
	os.Chmod(dir+"/dir", 0o777)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300000, Size: 65536}}
	os.Chown(root, 300000, 300000)
	for _, own := range []bool{false, true} {
		s := spec(root, "stat -c '%u:%g' /vol/file; touch /vol/dir/made && stat -c %u /vol/dir/made")
		s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		m := specs.Mount{Destination: "/vol", Type: "bind", Source: dir, Options: []string{"bind", "idmap"}}
		if own {
			m.Options = m.Options[:1]
			m.UIDMappings, m.GIDMappings = maps, maps
		}
		s.Mounts = append(s.Mounts, m)
		r, err := run(t, runtime.Options{Spec: s})
		if err != nil {
			t.Fatal(err)
		}
		has(t, r.out, "7:8", "0")
		st, err := os.Stat(dir + "/dir/made")
		if err != nil || uidOf(st) != 0 {
			t.Errorf("what the container made is owned by %d on the host, %v", uidOf(st), err)
		}
		os.Remove(dir + "/dir/made")
	}
	types := append([]specs.LinuxNamespaceType{specs.UserNamespace}, podTypes...)
	_, pid := pod(t, runtime.HolderOptions{Namespaces: types, UIDMappings: maps, GIDMappings: maps})
	userns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer userns.Close()
	s := spec(root, "stat -c '%u:%g' /vol/file")
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: dir, Options: []string{"bind"}, UIDMappings: maps, GIDMappings: maps})
	r, err := run(t, joined(s, userns, specs.UserNamespace))
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "7:8")
}

// TestUsernsWithoutRoot maps files by a user namespace that has no ID 0, and asks it for its mappings.
func TestUsernsWithoutRoot(t *testing.T) {
	testroot.NeedRoot(t)
	if !sys.Has(sys.IdmapTmpfs) {
		testroot.Skip(t, "this kernel has no idmapped tmpfs")
	}
	dir := tmpfs(t)
	os.WriteFile(dir+"/file", nil, 0o644)
	os.Chown(dir+"/file", 7, 8)
	maps := []specs.LinuxIDMapping{{ContainerID: 7, HostID: 1007, Size: 2}}
	s := spec(testroot.Rootfs(t, t.TempDir()), "stat -c '%u:%g' /vol/file")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: dir, Options: []string{"bind"}, UIDMappings: maps, GIDMappings: maps})
	r, err := run(t, runtime.Options{Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "1007:1008")
	maps[0].ContainerID = 0
	ns, err := runtime.UsernsFD(maps, maps)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = runtime.InUserns(ns, func(pid int) error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
		if got := strings.Fields(string(text)); len(got) != 3 || got[1] != "1007" {
			t.Errorf("its mapping is %q", text)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func uidOf(st os.FileInfo) int {
	if st == nil {
		return -1
	}
	return int(st.Sys().(*syscall.Stat_t).Uid)
}

// TestUserNamespaceTerminal opens a pty where the user of the container owns nothing of the host's.
func TestUserNamespaceTerminal(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	os.Chown(root, 100000, 100000)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s := spec(root, ttyScript)
	s.Process.Terminal = true
	s.Process.User = specs.User{UID: 65534, GID: 65534}
	s.Process.ConsoleSize = &specs.Box{Height: 10, Width: 20}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	p, err := runtime.Prepare(context.Background(), runtime.Options{ID: "test", Spec: s, Clamp: true})
	if err != nil {
		t.Fatal(err)
	}
	out := terminal(t, p, "input\n")
	has(t, out, "/dev/pts/0", "10 20", "character special file 88:0 nobody", "control", "got input")
}
