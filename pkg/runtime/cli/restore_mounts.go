package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// enter prepares the thread that criu is started from. It goes to the container's v1 cgroups, and into a mount namespace:
// what is mounted for criu goes with it, whatever happens to us. There lies the root filesystem, with the mount points
// that create would have made.
func (r *restoration) enter() error {
	if !r.c.NoCgroup {
		tasks, err := r.group.TaskFiles()
		if err != nil {
			return err
		}
		defer sys.CloseAll(tasks)
		for _, f := range tasks {
			if _, err := f.WriteString("0"); err != nil {
				return err
			}
		}
	}
	if r.config.Process.NoNewPrivileges { // criu before 3.18 does not restore it; what it forks inherits it
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := os.Mkdir(r.root(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Mount(r.c.Rootfs, r.root(), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", r.c.Rootfs, err)
	}
	if err := unix.Mount("", r.root(), "", unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := r.null(); err != nil {
		return err
	}
	if err := r.reopen(); err != nil {
		return err
	}
	root, err := os.Open(r.root())
	if err != nil {
		return err
	}
	defer root.Close()
	var made []*os.File
	defer func() {
		for i := len(made) - 1; i >= 0; i-- { // they were there for mount points in them
			_ = unix.Unmount(sys.FDPath(made[i]), unix.MNT_DETACH)
			made[i].Close()
		}
	}()
	for i := range r.config.Mounts {
		m := &r.config.Mounts[i]
		top, err := r.mountPoint(root, m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		if top != nil {
			made = append(made, top)
		}
	}
	return nil
}

// null makes the device that masked files are covered with, on a filesystem that nobody can change: the host's own
// could be given another mode through it.
func (r *restoration) null() error {
	if err := os.Mkdir(r.nullDir(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", r.nullDir(), "tmpfs", flags, "mode=755,nr_inodes=2"); err != nil {
		return fmt.Errorf("mount a filesystem for %s: %w", nullDevice, err)
	}
	dev := path.Join(r.nullDir(), "null")
	if err := unix.Mknod(dev, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return &os.PathError{Op: "mknod", Path: dev, Err: err}
	}
	if err := os.Chmod(dev, 0o666); err != nil {
		return err
	}
	return os.NewSyscallError("mount", unix.Mount("", r.nullDir(), "", flags|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// reopen opens criu's directories where criu is, since it mounts below them.
func (r *restoration) reopen() error {
	for _, d := range []struct {
		was *os.File
		fd  **int32
	}{{r.images, &r.opts.ImagesDirFd}, {r.work, &r.opts.WorkDirFd}} {
		f, err := os.Open(d.was.Name())
		if err != nil {
			return err
		}
		r.reopened = append(r.reopened, f)
		was, err := d.was.Stat()
		if err != nil {
			return err
		}
		if now, err := f.Stat(); err != nil || !os.SameFile(was, now) {
			return fmt.Errorf("directory %s was replaced meanwhile", d.was.Name())
		}
		*d.fd = ptr(int32(f.Fd()))
	}
	return nil
}

// mountPoint makes the target of a mount where it is missing, and mounts what others may have theirs in.
func (r *restoration) mountPoint(root *os.File, m *specs.Mount) (*os.File, error) {
	if m.Type == "cgroup" || m.Type == "cgroup2" || r.onTmpfs(m.Destination) {
		return nil, nil // criu makes the target with what it is in
	}
	dest, err := sys.ResolveInRoot(root, m.Destination)
	if err != nil {
		return nil, err
	}
	switch first, _, _ := strings.Cut(dest, "/"); first {
	case "proc", "sys", "dev":
		if dest != path.Clean("/" + m.Destination)[1:] {
			return nil, errors.New("it must be mounted on ordinary directory")
		}
	}
	if !isBind(m) {
		at, err := sys.MkdirAllInRoot(root, dest, 0o755)
		if err == nil {
			at.Close()
		}
		return nil, err
	}
	source := inBundle(r.bundle, m.Source)
	st, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	var at *os.File
	if st.IsDir() {
		at, err = sys.MkdirAllInRoot(root, dest, 0o755)
	} else {
		at, err = fileInRoot(root, dest)
	}
	if err != nil {
		return nil, err
	}
	err = unix.Mount(source, sys.FDPath(at), "", unix.MS_BIND|unix.MS_REC, "")
	at.Close()
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", source, err)
	}
	return sys.OpenAt(root, dest, unix.O_PATH, 0, sys.InRoot) // what is on top now
}

// fileInRoot opens a file below root, O_PATH, and makes it empty when it is missing.
func fileInRoot(root *os.File, dest string) (*os.File, error) {
	f, err := sys.OpenAt(root, dest, unix.O_PATH, 0, sys.InRoot)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	dir, err := sys.MkdirAllInRoot(root, path.Dir(dest), 0o755)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	made, err := sys.OpenAt(dir, path.Base(dest), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644, sys.Beneath)
	if err != nil {
		return nil, err
	}
	made.Close()
	return sys.OpenAt(dir, path.Base(dest), unix.O_PATH|unix.O_NOFOLLOW, 0, sys.Beneath)
}

// onTmpfs reports that a target lies in a tmpfs of the configuration.
func (r *restoration) onTmpfs(dest string) bool {
	dest = path.Clean(dest)
	for i := range r.config.Mounts {
		m := &r.config.Mounts[i]
		if m.Type == "tmpfs" && strings.HasPrefix(dest, path.Clean(m.Destination)+"/") {
			return true
		}
	}
	return false
}
