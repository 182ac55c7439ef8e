package sys

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MountOption is one parameter of a filesystem. With a File the value is that descriptor; with neither
// Value nor File the option is a flag.
type MountOption struct {
	Key, Value string
	File       *os.File
}

// NewMount makes a filesystem and returns its root as a detached mount (fsopen, fsconfig, fsmount) with
// the MOUNT_ATTR_ bits given. The caller closes it; unless it has been attached by then, the mount is gone.
// The option "source" names a device or the like. Errors carry what the filesystem wrote to its log.
func NewMount(fstype string, options []MountOption, attrs int) (*os.File, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(ctx)
	for _, o := range options {
		switch {
		case o.File != nil:
			err = unix.FsconfigSetFd(ctx, o.Key, int(o.File.Fd()))
		case o.Value != "":
			err = unix.FsconfigSetString(ctx, o.Key, o.Value)
		default:
			err = unix.FsconfigSetFlag(ctx, o.Key)
		}
		if err != nil {
			return nil, fmt.Errorf("option %s of %s: %w%s", o.Key, fstype, err, fsLog(ctx))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return nil, fmt.Errorf("make %s: %w%s", fstype, err, fsLog(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w%s", fstype, err, fsLog(ctx))
	}
	return os.NewFile(uintptr(fd), fstype), nil
}

// fsLog returns the messages of a filesystem context, " (…)" or "".
func fsLog(ctx int) string {
	var msgs []string
	buf := make([]byte, 512)
	for len(msgs) < 4 {
		n, err := unix.Read(ctx, buf)
		if err != nil || n <= 0 {
			break
		}
		msgs = append(msgs, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
	}
	if len(msgs) == 0 {
		return ""
	}
	return " (" + strings.Join(msgs, "; ") + ")"
}

// OpenTree clones the mount at path below dir (nil: the working directory and absolute paths) as a
// detached one, with the mounts below it when recursive. The clone is a peer of a shared original until
// SetMount says otherwise. The caller closes it. An empty path clones dir itself.
func OpenTree(dir *os.File, path string, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	at := unix.AT_FDCWD
	if dir != nil {
		at = int(dir.Fd())
	}
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(at, path, flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// SetMount changes attributes and propagation of a mount (mount_setattr), and of those below it when
// recursive: then all change or none.
func SetMount(mnt *os.File, recursive bool, attr unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(int(mnt.Fd()), "", flags, &attr))
}

// MoveMount attaches a detached mount (or moves an attached one) onto the directory or file that target
// is open on.
func MoveMount(mnt, target *os.File) error {
	return os.NewSyscallError("move_mount", unix.MoveMount(int(mnt.Fd()), "", int(target.Fd()), "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}
