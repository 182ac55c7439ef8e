//go:build root

package image

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/errs"
	it "github.com/cri-server/cri-server/pkg/image/internal/imagetest"
)

// TestUnpackAsRoot checks what only root can make: owners, devices, capabilities, setuid after chown.
func TestUnpackAsRoot(t *testing.T) {
	testroot.NeedRoot(t)
	owned := func(e it.Entry, uid, gid int, mode int64) it.Entry {
		e.Uid, e.Gid, e.Mode = uid, gid, mode
		return e
	}
	ping := it.File("ping", "x")
	// Version 2 of a file capability: cap_net_raw, effective.
	ping.Format, ping.PAXRecords = tar.FormatPAX, map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.k": "v"}
	ping = owned(ping, 5, 6, 0o755)
	s, id := pulled(t, it.Layer{Tar: it.Tar(
		owned(it.Dir("d", 0), 1000, 1001, 0o2750), owned(it.File("d/su", "x"), 1000, 1001, 0o6755), owned(it.Symlink("l", "/nowhere"), 7, 8, 0o777),
		owned(it.Special("null", tar.TypeChar, 1, 3), 0, 0, 0o666), owned(it.Special("blk", tar.TypeBlock, 7, 300), 0, 6, 0o660), owned(it.Special("fifo", tar.TypeFifo, 0, 0), 9, 9, 0o600), ping)})
	img, err := s.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	root := s.path(lowerDir(img.Layers[0]))
	for name, want := range map[string]struct {
		uid, gid, mode uint32
		dev            uint64
	}{
		"d": {1000, 1001, unix.S_IFDIR | 0o2750, 0}, "d/su": {1000, 1001, unix.S_IFREG | 0o6755, 0}, "l": {7, 8, unix.S_IFLNK | 0o777, 0},
		"null": {0, 0, unix.S_IFCHR | 0o666, unix.Mkdev(1, 3)}, "blk": {0, 6, unix.S_IFBLK | 0o660, unix.Mkdev(7, 300)}, "fifo": {9, 9, unix.S_IFIFO | 0o600, 0}, "ping": {5, 6, unix.S_IFREG | 0o755, 0},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil || st.Uid != want.uid || st.Gid != want.gid || st.Mode != want.mode || st.Rdev != want.dev || st.Mtim.Sec != it.Epoch.Unix() {
			t.Errorf("%s: %d:%d %o %x, %v", name, st.Uid, st.Gid, st.Mode, st.Rdev, err)
		}
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(root, "ping"), "security.capability", buf); err != nil || n != 20 {
		t.Errorf("capability: %d bytes, %v", n, err)
	}
	if _, err := unix.Lgetxattr(filepath.Join(root, "ping"), "trusted.overlay.opaque", buf); err == nil {
		t.Error("an image set an attribute of overlayfs")
	}
	clean(t, s)
}

// TestNobodyElseGetsIn: the store's root keeps everyone out (CVE-2021-41103).
func TestNobodyElseGetsIn(t *testing.T) {
	testroot.NeedRoot(t)
	s, _ := pulled(t, it.Layer{Tar: baseTar})
	for _, d := range []string{"", "blobs", "layers", "images", "rootfs", "owners", "tmp", ".trash"} {
		if fi, err := os.Stat(s.path(d)); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%q: %v, %v", d, fi, err)
		}
	}
}

// TestFullDisk pulls into a filesystem that is too small: the error says so, nothing stays, removal works.
func TestFullDisk(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	r, s := it.NewRegistry(t), newStore(t, func(c *Config) { c.Root = filepath.Join(dir, "images") })
	t.Cleanup(func() { s.Close() })
	r.Push("small", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}})
	var noise strings.Builder
	for i := range 3 << 20 {
		noise.WriteByte(byte(i*i>>7) ^ byte(i>>3))
	}
	r.Push("big", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", noise.String()))}})
	small := mustPull(t, s, r.Host()+"/small:v1")
	if _, err := s.Pull(ctx, r.Host()+"/big:v1", PullOptions{}); !errs.Is(err, errs.Exhausted) {
		t.Errorf("%v (%v), want exhausted", err, errs.KindOf(err))
	}
	clean(t, s)
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{64 << 10, 4096, 1} {
		for {
			if _, err := fill.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
	fill.Close()
	if err := s.CreateRootfs(ctx, "c1", small, 0, 0); !errs.Is(err, errs.Exhausted) {
		t.Errorf("CreateRootfs on a full disk: %v (%v)", err, errs.KindOf(err))
	}
	if err := s.Remove(ctx, small); err != nil {
		t.Errorf("Remove on a full disk: %v", err)
	}
	clean(t, s)
	empty(t, s)
}
