package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// InPrivateMounts runs f on a thread of its own in a copy of the mount namespace that nobody else sees and
// that ends with f: what f mounts is gone then, except for detached mounts it made. Descriptors are shared
// with the process as ever. It needs CAP_SYS_ADMIN.
func InPrivateMounts(f func() error) error {
	return OnThread(func() error { return privately(f) })
}

func privately(f func() error) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return f()
}

// SubTree clones the mount mnt, which may be detached, from sub on: a directory or file in it. Links in sub
// resolve inside the mount. The result is detached; the caller closes it, and mnt, whose mounts below it
// are not part of the clone. scratch is a directory of the caller's that kernels before 6.15 need for an
// attachment nobody else sees; the mount itself is of no use to anyone else after that. An absent sub is
// an error that wraps ENOENT.
func SubTree(mnt *os.File, sub, scratch string) (*os.File, error) {
	clone := func(from *os.File) (*os.File, error) {
		at, err := OpenAt(from, sub, unix.O_PATH, 0, InRoot)
		if err != nil {
			return nil, err
		}
		defer at.Close()
		return OpenTree(at, "", false)
	}
	f, err := clone(mnt)
	if err == nil || !errors.Is(err, unix.EINVAL) {
		return f, err
	}
	err = InPrivateMounts(func() error {
		if err := unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, scratch, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return os.NewSyscallError("move_mount", err)
		}
		var err error
		f, err = clone(mnt)
		return err
	})
	return f, err
}
