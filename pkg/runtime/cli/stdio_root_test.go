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

// TestOwnNull: stdio that is the host's /dev/null is the container's, opened as it was, where the container has one.
func TestOwnNull(t *testing.T) {
	dev := func(t *testing.T, make func(string) error) func(*specs.Spec) {
		dir := t.TempDir()
		if make != nil {
			if err := make(filepath.Join(dir, "null")); err != nil {
				t.Fatal(err)
			}
		}
		return func(s *specs.Spec) {
			s.Linux.MaskedPaths = nil
			s.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Source: dir, Options: []string{"bind"}}}
		}
	}
	const same = "yes 00000 00002"
	const not = "no 00000 00002" // of the flags what is the same on all machines
	for name, c := range map[string]struct {
		change func(*testing.T) func(*specs.Spec)
		want   string
	}{
		"plain": {func(*testing.T) func(*specs.Spec) { return nil }, same},
		"user namespace": {func(*testing.T) func(*specs.Spec) {
			return func(s *specs.Spec) {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
				s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
				s.Linux.GIDMappings = s.Linux.UIDMappings
			}
		}, same},
		"own /dev": {func(t *testing.T) func(*specs.Spec) {
			return dev(t, func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) })
		}, same},
		"none": {func(t *testing.T) func(*specs.Spec) { return dev(t, nil) }, not},
		"a fifo": {func(t *testing.T) func(*specs.Spec) {
			return dev(t, func(p string) error { return unix.Mkfifo(p, 0o666) })
		}, not},
		"another device": {func(t *testing.T) func(*specs.Spec) {
			return dev(t, func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) })
		}, not},
		"a link": {func(t *testing.T) func(*specs.Spec) {
			return dev(t, func(p string) error {
				if err := unix.Mknod(p+"0", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
					return err
				}
				return os.Symlink("null0", p)
			})
		}, not},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.config("c1", c.change(t), "sh", "-c", `s() { stat -L -c %d:%i:%t:%T $1; }; f() { sed -n 's/flags:.*\(.....\)$/\1/p' /proc/$$/fdinfo/$1; }
				n=$(s /dev/null); r=no; [ "$n" != "$(s /proc/$$/fd/0)" ] || [ "$n" != "$(s /proc/$$/fd/2)" ] || r=yes; echo $r $(f 0) $(f 2)`)
			if err := os.Chmod(filepath.Join(b.bundle, "rootfs"), 0o755); err != nil {
				t.Fatal(err)
			}
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			out, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd := b.cmd("run", "--bundle", b.bundle, "c1")
			cmd.Stdout, cmd.Stderr = out, null
			if err := cmd.Run(); err != nil {
				t.Error(err)
			}
			if text, err := os.ReadFile(out.Name()); err != nil || strings.TrimSpace(string(text)) != c.want {
				t.Errorf("%q, %v; want %q", text, err, c.want)
			}
		})
	}
}
