//go:build root

package runtime_test

import (
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
)

// TestLinksForKernelFilesystems has images whose /dev, /proc or /sys leads elsewhere.
func TestLinksForKernelFilesystems(t *testing.T) {
	testroot.NeedRoot(t)
	for _, name := range []string{"dev", "proc", "sys"} {
		dir := t.TempDir()
		root := testroot.Rootfs(t, dir)
		outside := dir + "/outside"
		os.Mkdir(outside, 0o755)
		os.Mkdir(root+"/inside", 0o755)
		for _, to := range []string{outside, "../outside", "/inside", "inside"} {
			os.RemoveAll(root + "/" + name)
			os.Symlink(to, root+"/"+name)
			_, err := run(t, runtime.Options{Spec: spec(root, "true")})
			if err == nil || !strings.Contains(err.Error(), "mount /"+name) {
				t.Errorf("/%s -> %s: %v", name, to, err)
			}
			for _, d := range []string{outside, root + "/inside"} {
				if list, _ := os.ReadDir(d); len(list) != 0 {
					t.Errorf("/%s -> %s: %s has %v", name, to, d, list)
				}
			}
		}
	}
}

// TestLinkedTargets has destinations that climb: what is made is inside.
func TestLinkedTargets(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	root := testroot.Rootfs(t, dir)
	os.WriteFile(dir+"/src", []byte("source\n"), 0o644)
	os.Symlink("../../../../../..", root+"/up")
	os.Symlink("/proc/self/root", root+"/magic")
	os.Symlink("loop", root+"/loop")
	for dest, want := range map[string]string{"/up/etc/file": "", "/../../etc/file2": "", "/magic/etc/file3": "mount /magic/etc/file3", "/loop/x": "mount /loop/x"} {
		s := spec(root, "cat /etc/file* 2>/dev/null; true")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Source: dir + "/src", Options: []string{"bind"}})
		r, err := run(t, runtime.Options{Spec: s})
		if want == "" && (err != nil || !strings.Contains(r.out, "source")) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %+v, %v", dest, r, err)
		}
	}
	for _, f := range []string{"/etc/file", "/etc/file2", "/etc/file3"} {
		if _, err := os.Stat(f); err == nil {
			t.Errorf("%s was made on the host", f)
		}
	}
}

// TestFakeNull has an image whose /dev/null is a file, for masked paths to show it.
func TestFakeNull(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	root := testroot.Rootfs(t, dir)
	os.WriteFile(dir+"/fake", []byte("fake"), 0o666)
	os.Mkdir(dir+"/dev", 0o755)
	os.WriteFile(dir+"/dev/null", []byte("fake"), 0o666)
	s := spec(root, "cat /proc/keys")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/null", Source: dir + "/fake", Options: []string{"bind"}})
	if r, err := run(t, runtime.Options{Spec: s}); err == nil {
		t.Errorf("a file bound over /dev/null: %+v", r)
	}
	s = spec(root, "cat /proc/keys")
	s.Mounts[1] = specs.Mount{Destination: "/dev", Source: dir + "/dev", Options: []string{"rbind"}}
	if r, err := run(t, runtime.Options{Spec: s}); err == nil {
		t.Errorf("a bound /dev with a fake null: %+v", r)
	}
	s = spec(root, "true")
	os.WriteFile(root+"/dev/null", []byte("fake"), 0o666)
	s.Mounts = append(s.Mounts[:1], s.Mounts[5:]...) // no tmpfs on /dev
	if r, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), "make device /dev/null") {
		t.Errorf("an image with a fake null: %+v, %v", r, err)
	}
	os.Remove(root + "/dev/null")
	os.Symlink("/etc/passwd", root+"/dev/null")
	if r, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), "make device /dev/null") {
		t.Errorf("an image with a linked null: %+v, %v", r, err)
	}
}

// TestFakeProc mounts things over /proc.
func TestFakeProc(t *testing.T) {
	testroot.NeedRoot(t)
	dir := t.TempDir()
	root := testroot.Rootfs(t, dir)
	os.WriteFile(dir+"/file", []byte("meminfo from outside\n"), 0o644)
	for _, c := range []struct {
		dest, source string
		ok           bool
	}{{"/proc", dir, false}, {"/proc/self/attr", dir, false}, {"/proc/sys/net", dir, false}, {"/proc/meminfo", dir + "/file", true}, {"/proc/../proc/1", dir, false}} {
		s := spec(root, "cat /proc/meminfo")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: c.dest, Source: c.source, Options: []string{"rbind"}})
		r, err := run(t, runtime.Options{Spec: s})
		if c.ok != (err == nil) || c.ok && r.out != "meminfo from outside\n" {
			t.Errorf("%s: %+v, %v", c.dest, r, err)
		}
	}
}

// TestNoDescriptors: nothing of the launcher's is open in the container, whatever it has open without
// close-on-exec, and no working directory leads out.
func TestNoDescriptors(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	var leaked []int
	for range 20 {
		fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		leaked = append(leaked, fd)
	}
	defer func() {
		for _, fd := range leaked {
			unix.Close(fd)
		}
	}()
	s := spec(root, "ls /proc/self/fd")
	r, err := run(t, runtime.Options{Spec: s})
	if err != nil || r.out != "0\n1\n2\n3\n" { // 3 is ls reading the directory
		t.Errorf("got %+v, %v", r, err)
	}
	for _, cwd := range []string{"/proc/self/fd/5", "/proc/self/fd/7/../..", "/proc/1/root/x", "/dev/fd/8"} {
		s := spec(root, "pwd; ls")
		s.Process.Cwd = cwd
		if r, err := run(t, runtime.Options{Spec: s}); err == nil && !strings.HasPrefix(r.out, "/proc/1\n") {
			t.Errorf("%s: %+v", cwd, r)
		}
	}
}

func TestExtraFiles(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	var files []*os.File
	for _, text := range []string{"three", "four", "five"} {
		r, w, _ := os.Pipe()
		w.WriteString(text + "\n")
		w.Close()
		defer r.Close()
		files = append(files, r)
	}
	for _, gate := range []bool{false, true} {
		s := spec(root, "ls /proc/self/fd | wc -l; cat <&3; cat <&4; cat <&5")
		r, err := run(t, runtime.Options{Spec: s, ExtraFiles: files, Gate: gate})
		if err != nil || !gate && r.out != "7\nthree\nfour\nfive\n" || gate && r.out != "7\n" {
			t.Errorf("got %+v, %v", r, err)
		}
	}
	s := spec(root, "")
	s.Process.Args = []string{"nothing"}
	if _, err := run(t, runtime.Options{Spec: s, ExtraFiles: files}); err == nil || !strings.Contains(err.Error(), "not found in $PATH") {
		t.Errorf("the report pipe was lost: %v", err)
	}
}
