package program

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// seals make a memfd what its maker wrote, for ever. Its maker has mapped none of it, so that "no writes from now on"
// is as good as F_SEAL_WRITE, which would also wait until every processor has drained its lists of new pages.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE

// Seal writes the program's image to a file that can be executed and not changed: a sealed memfd, or
// where policy forbids executable memfds an unlinked file on a private read-only tmpfs. The caller closes
// it; it is close-on-exec.
func (p *Program) Seal(name string) (*os.File, error) {
	img, err := p.Image()
	if err != nil {
		return nil, err
	}
	if sys.Has(sys.ExecMemfd) {
		f, err := sealMemfd(name, img)
		if err == nil || !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
			return f, err
		}
	}
	return sealTmpfs(name, img)
}

func sealMemfd(name string, img []byte) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before 6.3 there is no such flag, and every memfd is executable
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:"+name)
	if err := writeAll(fd, img); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal the program: %w", err)
	}
	return f, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("write the program: %w", err)
		}
		b = b[max(n, 0):]
	}
	return nil
}

// sealTmpfs needs CAP_SYS_ADMIN. The mount is never attached anywhere and goes with the last descriptor.
func sealTmpfs(name string, img []byte) (*os.File, error) {
	mnt, err := sys.NewMount("tmpfs", []sys.MountOption{{Key: "size", Value: "1m"}, {Key: "mode", Value: "0700"}}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("make a tmpfs for the program: %w", err)
	}
	defer mnt.Close()
	name = "memfd:" + name // so that /proc/<pid>/exe reads the same either way, for who watches it
	w, err := sys.OpenAt(mnt, name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o555, sys.Beneath)
	if err != nil {
		return nil, err
	}
	err = writeAll(int(w.Fd()), img)
	w.Close() // a file open for writing cannot be executed
	if err != nil {
		return nil, err
	}
	f, err := sys.OpenAt(mnt, name, os.O_RDONLY, 0, sys.Beneath)
	if err != nil {
		return nil, err
	}
	if err = unix.Unlinkat(int(mnt.Fd()), name, 0); err == nil {
		err = sys.SetMount(mnt, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("seal the program: %w", err)
	}
	return f, nil
}
