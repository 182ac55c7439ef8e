package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/sys"
)

// copyUpBudget bounds what a tmpcopyup mount may copy into memory.
const copyUpBudget = 64 << 20

// planCopyUp makes a tmpfs here and fills it with what the root filesystem has in its place.
func (c *compiler) planCopyUp(o *Options, b *build, plan mountPlan) error {
	list := []sys.MountOption{{Key: "source", Value: "tmpfs"}}
	for _, d := range plan.opts.data {
		k, v := cutOption(d)
		list = append(list, sys.MountOption{Key: k, Value: v})
	}
	tree, err := c.host.newMount("tmpfs", list)
	if err != nil {
		return err
	}
	plan.kind, plan.isDir = mountTree, true
	plan.tree = c.files.add(tree, true)
	if plan.late {
		plan.opts.set &^= unix.MOUNT_ATTR_RDONLY
	}
	root := c.files.list[c.files.child[b.rootfs-launch.FirstFD]]
	src, err := sys.OpenAt(root, plan.dest, os.O_RDONLY|unix.O_DIRECTORY, 0, sys.InRoot)
	if err == nil {
		err = copyRoot(src, tree)
		src.Close()
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("tmpcopyup: %w", err)
	}
	return c.planAttrs(o, b, &specs.Mount{}, plan, tree)
}

// copyRoot fills the tree, which is open for its path only.
func copyRoot(src, tree *os.File) error {
	dst, err := sys.OpenAt(tree, ".", os.O_RDONLY|unix.O_DIRECTORY, 0, sys.Beneath)
	if err != nil {
		return err
	}
	defer dst.Close()
	budget := int64(copyUpBudget)
	return copyDir(src, dst, &budget)
}

// copyDir copies directories, regular files and links; owners, modes and times of the first two.
func copyDir(src, dst *os.File, budget *int64) error {
	names, err := src.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(src, dst, name, budget); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return copyOwner(src, dst)
}

func copyEntry(src, dst *os.File, name string, budget *int64) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
			return err
		}
		return copyPair(src, dst, name, os.O_RDONLY|unix.O_DIRECTORY, os.O_RDONLY|unix.O_DIRECTORY, func(s, d *os.File) error {
			return copyDir(s, d, budget)
		})
	case unix.S_IFREG:
		if *budget -= st.Size; *budget < 0 {
			return errs.New(errs.Exhausted, "more than %d MiB to copy", copyUpBudget>>20)
		}
		return copyPair(src, dst, name, os.O_RDONLY, os.O_WRONLY|os.O_CREATE|os.O_EXCL, func(s, d *os.File) error {
			if _, err := io.CopyN(d, s, st.Size); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			return copyOwner(s, d)
		})
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(src.Fd()), name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), int(dst.Fd()), name); err != nil {
			return err
		}
		return unix.Fchownat(int(dst.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

func copyPair(src, dst *os.File, name string, sflags, dflags int, copy func(s, d *os.File) error) error {
	s, err := sys.OpenAt(src, name, sflags|unix.O_NOFOLLOW, 0, sys.Beneath)
	if err != nil {
		return err
	}
	defer s.Close()
	d, err := sys.OpenAt(dst, name, dflags|unix.O_NOFOLLOW, 0o600, sys.Beneath)
	if err != nil {
		return err
	}
	defer d.Close()
	return copy(s, d)
}

func copyOwner(src, dst *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Fchown(int(dst.Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Fchmod(int(dst.Fd()), st.Mode&0o7777)
}
