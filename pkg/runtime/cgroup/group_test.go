package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestParseMountinfo(t *testing.T) {
	got := parseMountinfo(`31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct
33 31 0:31 / /mnt/other\040place rw - cgroup cgroup rw,cpuset,noprefix
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /tmp/unified rw - cgroup2 cgroup2 rw
42 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
torn line
`)
	want := []Hierarchy{
		{Name: "cpu,cpuacct", Mount: "/sys/fs/cgroup/cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}},
		{Name: "cpuset", Mount: "/mnt/other place", Controllers: []string{"cpuset"}},
		{Name: "systemd", Mount: "/sys/fs/cgroup/systemd"},
		{Name: "unified", Mount: "/sys/fs/cgroup/unified", Unified: true},
	}
	if !slices.EqualFunc(got, want, func(a, b Hierarchy) bool {
		return a.Name == b.Name && a.Mount == b.Mount && a.Unified == b.Unified && slices.Equal(a.Controllers, b.Controllers)
	}) {
		t.Errorf("got %+v", got)
	}
}

func TestModes(t *testing.T) {
	for _, m := range []Mode{V1, Hybrid, V2} {
		if got := newFake(t, m).Mode(); got != m {
			t.Errorf("a %v machine is %v", m, got)
		}
	}
	if _, err := open(nil); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a machine without cgroups: %v", err)
	}
}

func TestPaths(t *testing.T) {
	f := newFake(t, V2)
	for _, bad := range []string{"", "/", ".", "/../x", "a/../b", "a/..", "a\nb", "a\x00", strings.Repeat("x", 256)} {
		if _, err := f.Create(bad, CreateOptions{}); !errs.Is(err, errs.Invalid) {
			t.Errorf("Create(%q): %v", bad, err)
		}
		if _, err := f.Open(bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("Open(%q): %v", bad, err)
		}
	}
	if got := f.take(); got != "" {
		t.Errorf("refused paths did\n%s", got)
	}
	if g := f.group("//a/./b/"); g.Path() != "/a/b" {
		t.Errorf("the path is %s", g.Path())
	}
	if _, err := f.Open("/a/c"); !errs.Is(err, errs.NotFound) {
		t.Errorf("Open of nothing: %v", err)
	}
}

// TestSymlink holds that no link leads out of a hierarchy, though cgroupfs has none.
func TestSymlink(t *testing.T) {
	f := newFake(t, V2)
	if err := os.Symlink(t.TempDir(), filepath.Join(f.root, "unified/out")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create("out/x", CreateOptions{}); err == nil {
		t.Error("a cgroup was made through a link")
	}
	if _, err := f.Create("out", CreateOptions{}); err == nil {
		t.Error("a link is a cgroup")
	}
}

// TestCreateFile: what has the name of a control file is no cgroup, though it exists, and there is nothing to remove.
func TestCreateFile(t *testing.T) {
	for _, mode := range []Mode{V1, Hybrid, V2} {
		f := newFake(t, mode)
		name := "cgroup.controllers"
		if mode == V1 {
			name = "tasks"
		}
		if _, err := f.Create(name, CreateOptions{KeepMode: true}); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%v: %v", mode, err)
		}
		g, err := f.At(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(g.Kill(t.Context()), g.Delete(t.Context())); err != nil {
			t.Errorf("%v: remove: %v", mode, err)
		}
	}
}

func TestCreateV2(t *testing.T) {
	f := newFake(t, V2)
	if _, err := f.Create("/pods/a", CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write unified/cgroup.subtree_control +cpu +cpuset +io +memory +pids
		mkdir unified/pods
		write unified/pods/cgroup.subtree_control +cpu +cpuset +io +memory +pids
		mkdir unified/pods/a`)
	f.put("unified/cgroup.subtree_control", "cpu cpuset io memory pids")
	f.put("unified/pods/cgroup.subtree_control", "cpu memory")
	if _, err := f.Create("/pods/b", CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write unified/pods/cgroup.subtree_control +cpuset +io +pids
		mkdir unified/pods/b`)
}

// TestCreateV2Refused has a realtime process in the parent: the kernel refuses cpu, and with it the rest
// of the write.
func TestCreateV2Refused(t *testing.T) {
	f := newFake(t, V2)
	f.fail["write unified/cgroup.subtree_control"] = unix.EINVAL
	if _, err := f.Create("/a", CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write unified/cgroup.subtree_control +cpu +cpuset +io +memory +pids: invalid argument
		write unified/cgroup.subtree_control +cpu
		write unified/cgroup.subtree_control +cpuset
		write unified/cgroup.subtree_control +io
		write unified/cgroup.subtree_control +memory
		write unified/cgroup.subtree_control +pids
		mkdir unified/a`)
}

// TestCreateMode has groups that everybody may search, whatever the process hides of its files.
func TestCreateMode(t *testing.T) {
	f := newFake(t, V2)
	old := unix.Umask(0o077)
	_, err := f.Create("/a/b", CreateOptions{})
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"unified/a", "unified/a/b"} {
		if st, err := os.Stat(filepath.Join(f.root, name)); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

// TestCreateV2Busy has processes in the parent: it must not be made threaded.
func TestCreateV2Busy(t *testing.T) {
	f := newFake(t, V2)
	f.fail["write unified/cgroup.subtree_control"] = unix.EBUSY
	if _, err := f.Create("/a", CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write unified/cgroup.subtree_control +cpu +cpuset +io +memory +pids: device or resource busy
		mkdir unified/a`)
}

func TestCreateV1(t *testing.T) {
	f := newFake(t, V1)
	for range 2 { // the second time finds everything
		if _, err := f.Create("/p/c", CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	transcript(t, f.take(), `
		mkdir cpu/p
		mkdir cpu/p/c
		mkdir cpuacct/p
		mkdir cpuacct/p/c
		mkdir cpuset/p
		write cpuset/p/cpuset.cpus 0-3
		write cpuset/p/cpuset.mems 0
		mkdir cpuset/p/c
		write cpuset/p/c/cpuset.cpus 0-3
		write cpuset/p/c/cpuset.mems 0
		mkdir memory/p
		mkdir memory/p/c
		mkdir devices/p
		mkdir devices/p/c
		mkdir freezer/p
		mkdir freezer/p/c
		mkdir blkio/p
		mkdir blkio/p/c
		mkdir pids/p
		mkdir pids/p/c
		mkdir systemd/p
		mkdir systemd/p/c`)
}

// TestCreateUndone: a failure takes back what was made, and leaves what was there.
func TestCreateUndone(t *testing.T) {
	f := newFake(t, V1)
	f.group("/p")
	f.fail["mkdir freezer/p/c"] = unix.ENOSPC
	if _, err := f.Create("/p/c/d", CreateOptions{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("Create: %v", err)
	}
	for _, tree := range []string{"memory", "pids"} {
		if list, _ := filepath.Glob(f.root + "/" + tree + "/p/*/"); len(list) > 0 && tree == "pids" {
			t.Errorf("left: %v", list)
		}
		if _, err := os.Stat(f.root + "/" + tree + "/p"); err != nil {
			t.Error(err)
		}
	}
}

func TestFiles(t *testing.T) {
	for _, c := range []struct {
		mode  Mode
		tasks int
		dir   bool
	}{{V1, 9, false}, {Hybrid, 9, true}, {V2, 0, true}} {
		f := newFake(t, c.mode)
		g := f.group("/a")
		tasks, err := g.TaskFiles()
		if err != nil || len(tasks) != c.tasks {
			t.Errorf("%v: %d task files, %v", c.mode, len(tasks), err)
		}
		for _, file := range tasks {
			if _, err := file.WriteString("0"); err != nil {
				t.Error(err)
			}
			file.Close()
		}
		dir, err := g.Dir()
		if err != nil || (dir != nil) != c.dir {
			t.Errorf("%v: Dir = %v, %v", c.mode, dir, err)
		}
		if dir != nil {
			dir.Close()
		}
	}
}

func TestPids(t *testing.T) {
	f := newFake(t, Hybrid)
	g := f.group("/a/b")
	f.put("freezer/a/b/cgroup.procs", "7\n3\n")
	f.put("unified/a/b/cgroup.procs", "0\n3\n9\n")
	a, err := f.Open("/a")
	if err != nil {
		t.Fatal(err)
	}
	if pids, err := a.Pids(); err != nil || !slices.Equal(pids, []int{3, 7, 9}) {
		t.Errorf("Pids = %v, %v", pids, err)
	}
	gone, err := g.Child("none")
	if err != nil {
		t.Fatal(err)
	}
	if pids, err := gone.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("Pids of nothing = %v, %v", pids, err)
	}
}

func TestDelete(t *testing.T) {
	f := newFake(t, V2)
	f.group("/a/b/c")
	g := f.group("/a/b")
	for range 2 {
		if err := g.Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	transcript(t, f.take(), `
		rmdir unified/a/b/c
		rmdir unified/a/b`)
	if g.Exists() {
		t.Error("it exists")
	}
}

// TestDeleteBusy: the kernel may say EBUSY for a moment after the last process has died.
func TestDeleteBusy(t *testing.T) {
	f := newFake(t, V2)
	g := f.group("/a")
	f.fail["rmdir unified/a"] = unix.EBUSY
	if err := g.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		rmdir unified/a : device or resource busy
		rmdir unified/a`)
	h := f.group("/b")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f.fail["rmdir unified/b"] = unix.EBUSY
	if err := h.Delete(ctx); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a busy group and no time: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	f := newFake(t, V1)
	g := f.group("/a")
	if err := g.Freeze(context.Background()); err != nil {
		t.Fatal(err)
	}
	if frozen, err := g.Frozen(); err != nil || !frozen {
		t.Errorf("Frozen = %v, %v", frozen, err)
	}
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write freezer/a/freezer.state FROZEN
		write freezer/a/freezer.state THAWED`)
	g2 := newFake(t, V2).group("/a")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g2.Freeze(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a group that does not freeze: %v", err)
	}
	if frozen, err := g2.Frozen(); err != nil || frozen {
		t.Errorf("it is left frozen: %v, %v", frozen, err)
	}
}
