package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// has reports whether the configuration names a namespace of that type.
func has(l *specs.Linux, t specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
}

// mountsAt counts the mounts on a directory, which lie on top of each other.
func mountsAt(dir string) (int, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	return countMounts(string(b), real), nil
}

// countMounts finds a path among mount points, in which mountinfo escapes what separates its fields.
func countMounts(mountinfo, dir string) int {
	dir = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(dir)
	n := 0
	for _, line := range strings.Split(mountinfo, "\n") {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			n++
		}
	}
	return n
}

// unmount takes away what a container without a mount namespace has mounted on its root directory, with all
// that is below. What was there before it stays.
func (c *container) unmount() error {
	if !c.OnHost {
		return nil
	}
	n, err := mountsAt(c.Rootfs)
	if os.IsNotExist(err) {
		return nil
	}
	for ; err == nil && n > c.Stacked; n-- {
		err = unix.Unmount(c.Rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", c.Rootfs, err)
	}
	return nil
}
