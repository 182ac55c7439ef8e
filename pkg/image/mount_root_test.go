//go:build root

package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	it "github.com/cri-server/cri-server/pkg/image/internal/imagetest"
	"github.com/cri-server/cri-server/pkg/sys"
)

// eachMode runs f with every way to mount that this kernel has.
func eachMode(t *testing.T, f func(t *testing.T)) {
	testroot.NeedRoot(t)
	modes := map[string]sys.OverlayMode{"auto": sys.OverlayAuto, "by mount": sys.OverlayByMount}
	if sys.Has(sys.OverlayFDs) && sys.Has(sys.OverlayTrees) {
		modes["by fd"] = sys.OverlayByFD
	}
	if sys.Has(sys.OverlayAppend) {
		modes["by path"] = sys.OverlayByPath
	}
	for name, m := range modes {
		t.Run(name, func(t *testing.T) {
			sys.ForceOverlay(m)
			defer sys.ForceOverlay(sys.OverlayAuto)
			f(t)
		})
	}
}

func pulled(t *testing.T, layers ...it.Layer) (*Store, string) {
	t.Helper()
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "v1", it.Image{Layers: layers})
	id, err := s.Pull(context.Background(), r.Host()+"/a:v1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s, id
}

func inMount(t *testing.T, mnt *os.File, name string, flags int) *os.File {
	t.Helper()
	f, err := sys.OpenAt(mnt, name, flags, 0o644, sys.InRoot)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return nil
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func content(t *testing.T, mnt *os.File, name string) string {
	t.Helper()
	f := inMount(t, mnt, name, os.O_RDONLY)
	if f == nil {
		return ""
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func names(t *testing.T, mnt *os.File, dir string) string {
	t.Helper()
	f := inMount(t, mnt, dir, os.O_RDONLY|unix.O_DIRECTORY)
	if f == nil {
		return ""
	}
	l, err := f.Readdirnames(-1)
	if err != nil {
		t.Error(err)
	}
	return strings.Join(l, " ")
}

func TestRootfs(t *testing.T) {
	eachMode(t, func(t *testing.T) {
		top := it.Tar(it.File("bin/.wh.sh", ""), it.Dir("etc", 0o755), it.File("etc/.wh..wh..opq", ""), it.File("etc/new", "n"), it.File("tmp/x", "x"))
		s, id := pulled(t, it.Layer{Tar: baseTar}, it.Layer{Tar: top})
		ctx := context.Background()
		for range 2 {
			if err := s.CreateRootfs(ctx, "c1", id, 0, 0); err != nil {
				t.Fatal(err)
			}
		}
		mnt, err := s.MountRootfs(ctx, "c1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(t, mnt, "etc"); got != "new" {
			t.Errorf("etc holds %q, want new alone: it is opaque", got)
		}
		if got := names(t, mnt, "bin"); got != "" {
			t.Errorf("bin holds %q, want nothing: a whiteout", got)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(mnt.Fd()), "tmp", &st, 0); err != nil || st.Mode&0o7777 != 0o1777 {
			t.Errorf("tmp: mode %o, %v: not the lower layer's", st.Mode, err)
		}
		f := inMount(t, mnt, "written", os.O_CREATE|os.O_WRONLY)
		fmt.Fprint(f, "data")
		f.Close()
		mnt.Close()
		if mnt, err = s.MountRootfs(ctx, "c1", nil); err != nil {
			t.Fatalf("mount again: %v", err)
		}
		if got := content(t, mnt, "written"); got != "data" {
			t.Errorf("after mounting again: %q", got)
		}
		if u, err := s.RootfsUsage("c1"); err != nil || u.Bytes == 0 || u.Inodes < 2 {
			t.Errorf("usage: %+v, %v", u, err)
		}
		if err := s.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
		if got := content(t, mnt, "tmp/x"); got != "x" {
			t.Errorf("the container lost a layer with its image: %q", got)
		}
		mnt.Close()
		if err := s.RemoveRootfs(ctx, "c1"); err != nil {
			t.Fatal(err)
		}
		clean(t, s)
		empty(t, s)
	})
}

// userns returns a user namespace that maps 0 to base.
func userns(t *testing.T, base int) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: m, GidMappings: m}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRootfsMapped(t *testing.T) {
	ns := userns(t, 200000)
	eachMode(t, func(t *testing.T) {
		owned := it.File("home/f", "x")
		owned.Uid, owned.Gid = 1000, 1001
		s, id := pulled(t, it.Layer{Tar: it.Tar(owned)})
		ctx := context.Background()
		if err := s.CreateRootfs(ctx, "c1", id, 200000, 200000); err != nil {
			t.Fatal(err)
		}
		mnt, err := s.MountRootfs(ctx, "c1", ns)
		if err != nil {
			t.Fatal(err)
		}
		defer mnt.Close()
		var st unix.Stat_t
		if err := unix.Fstatat(int(mnt.Fd()), "home/f", &st, 0); err != nil || st.Uid != 201000 || st.Gid != 201001 {
			t.Errorf("home/f: %d:%d, %v", st.Uid, st.Gid, err)
		}
		if err := unix.Fstat(int(mnt.Fd()), &st); err != nil || st.Uid != 200000 {
			t.Errorf("root: %d, %v", st.Uid, err)
		}
		f := inMount(t, mnt, "home/f", os.O_WRONLY)
		fmt.Fprint(f, "changed")
		f.Close()
		if err := unix.Fstatat(int(mnt.Fd()), "home/f", &st, 0); err != nil || st.Uid != 201000 {
			t.Errorf("home/f after copy-up: %d, %v", st.Uid, err)
		}
	})
}

func TestManyLayers(t *testing.T) {
	eachMode(t, func(t *testing.T) {
		var layers []it.Layer
		for i := range 150 {
			layers = append(layers, it.Layer{Tar: it.Tar(it.File(fmt.Sprintf("d/f%d", i), fmt.Sprint(i)))})
		}
		s, id := pulled(t, layers...)
		ctx := context.Background()
		if err := s.CreateRootfs(ctx, "c1", id, 0, 0); err != nil {
			t.Fatal(err)
		}
		mnt, err := s.MountRootfs(ctx, "c1", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer mnt.Close()
		if n := len(strings.Fields(names(t, mnt, "d"))); n != 150 {
			t.Errorf("%d files, want 150", n)
		}
	})
}

func TestMountImage(t *testing.T) {
	eachMode(t, func(t *testing.T) {
		s, id := pulled(t, it.Layer{Tar: it.Tar(it.File("data/sub/f", "v"), it.Symlink("out", "/../../etc"), it.Symlink("in", "/data/sub"))})
		ctx := context.Background()
		for sub, file := range map[string]string{"": "data/sub/f", "/": "data/sub/f", "data": "sub/f", "data/sub/": "f", "in": "f", "data/sub/f": ""} {
			mnt, err := s.MountImage(ctx, "c1", id, sub, nil)
			if err != nil {
				t.Errorf("sub path %q: %v", sub, err)
				continue
			}
			if file != "" {
				if got := content(t, mnt, file); got != "v" {
					t.Errorf("sub path %q: %s is %q", sub, file, got)
				}
				if _, err := sys.OpenAt(mnt, "new", os.O_CREATE|os.O_WRONLY, 0o644, sys.InRoot); err == nil {
					t.Errorf("sub path %q: it is writable", sub)
				}
			}
			mnt.Close()
		}
		for _, sub := range []string{"none", "data/none", "..", "data/../..", "out", "data/sub/f/x"} {
			if mnt, err := s.MountImage(ctx, "c1", id, sub, nil); err == nil || !strings.HasPrefix(err.Error(), VolumeFailed+": ") {
				t.Errorf("sub path %q: %v, %v, want an error that begins with %s", sub, mnt, err, VolumeFailed)
			}
		}
		if err := s.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
		clean(t, s)
		if err := s.ReleaseImage("c1"); err != nil {
			t.Fatal(err)
		}
		clean(t, s)
		empty(t, s)
	})
}
