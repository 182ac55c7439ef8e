// Package base makes the mount namespace that shims and the programs they start begin in: a few mounts of
// its own instead of a copy of the host's many, which every clone with CLONE_NEWNS would copy again.
//
// It holds /proc and /sys, whole and unmasked, since the kernel lets a user namespace mount its own only
// where it can see such; /dev with the nodes that programs bind into containers; and /dev/shm, the tmpfs
// that the containers of a pod share. A daemon makes it once (New); every shim is born in a copy of it, where it
// mounts the pod's /dev/shm (MountShm). Making it anew for each shim would cost each the wait for the old
// root's unmount, milliseconds on a busy machine.
package base

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// Devices are the nodes in /dev, as every container has them.
var Devices = []Device{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

// Device is one character device.
type Device struct {
	Name         string
	Major, Minor uint32
}

const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// New makes the namespace and returns it, for setns; it lives as long as the file, which the caller closes,
// or a process in it.
func New() (*os.File, error) {
	var f *os.File
	err := sys.OnThread(func() (err error) {
		f, err = enter()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make the shims' mount namespace: %w", err)
	}
	return f, nil
}

// enter moves the calling thread into a new namespace with nothing in it but the base.
func enter() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make / private: %w", err)
	}
	root, err := fsmount("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "mode", "0755", "size", "1m", "nr_inodes", "64")
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	for _, dir := range []string{"proc", "sys", "dev", "dev/shm", "dev/pts", "run", "tmp"} {
		if err := unix.Mkdirat(root, dir, 0o755); err != nil {
			return nil, fmt.Errorf("mkdir /%s: %w", dir, err)
		}
	}
	nodes, err := makeNodes(root)
	defer closeAll(nodes)
	if err != nil {
		return nil, err
	}
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("attach the root: %w", err)
	}
	if err := fill(root, nodes); err != nil {
		return nil, err
	}
	if err := pivot(root); err != nil {
		return nil, err
	}
	return os.Open("/proc/thread-self/ns/mnt") //nolint:forbidigo // our own procfs
}

// pivot makes root the only one. The filesystem is every shim's, so that nobody may write to it.
func pivot(root int) error {
	if err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("chdir to the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// MountShm mounts a tmpfs of size bytes on /dev/shm of the calling process's namespace.
func MountShm(size int64) error {
	fd, err := fsmount("tmpfs", attrs, "mode", "1777", "size", strconv.FormatInt(size, 10))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, unix.AT_FDCWD, "/dev/shm")
}

// makeNodes makes the device nodes, or where the process may not (no CAP_MKNOD, a device filter) empty
// files and clones of the host's nodes to put on them.
func makeNodes(root int) (clones map[string]int, err error) {
	clones = map[string]int{}
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, d := range Devices {
		name := "dev/" + d.Name
		if err := unix.Mknodat(root, name, unix.S_IFCHR|0o666, int(unix.Mkdev(d.Major, d.Minor))); err == nil {
			continue
		}
		tree, err := unix.OpenTree(unix.AT_FDCWD, "/"+name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return clones, fmt.Errorf("make /%s: neither mknod nor a clone of the host's works: %w", name, err)
		}
		clones[name] = tree
		if err := unix.Mknodat(root, name, unix.S_IFREG|0o666, 0); err != nil {
			return clones, fmt.Errorf("make /%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := unix.Symlinkat(target, root, "dev/"+name); err != nil {
			return clones, fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	return clones, nil
}

// fill mounts what stands in the root, which is attached by now: kernels before 6.15 attach nothing to a
// detached tree.
func fill(root int, clones map[string]int) error {
	for name, tree := range clones {
		if err := attach(tree, root, name); err != nil {
			return err
		}
	}
	for _, m := range []struct{ fs, at string }{{"proc", "proc"}, {"sysfs", "sys"}} {
		fd, err := fsmount(m.fs, attrs)
		if err != nil {
			return err
		}
		err = attach(fd, root, m.at)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func attach(tree, root int, name string) error {
	if err := unix.MoveMount(tree, "", root, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	return nil
}

// fsmount makes a detached mount of a new filesystem; options are keys and values.
func fsmount(fs string, attrs int, options ...string) (int, error) {
	ctx, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fs, err)
	}
	defer unix.Close(ctx)
	for i := 0; i+1 < len(options); i += 2 {
		if err := unix.FsconfigSetString(ctx, options[i], options[i+1]); err != nil {
			return -1, fmt.Errorf("%s option %s=%s: %w", fs, options[i], options[i+1], err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("make %s: %w", fs, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", fs, err)
	}
	return fd, nil
}

func closeAll(fds map[string]int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
