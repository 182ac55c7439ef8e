package runtime

import (
	"fmt"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/program"
)

// enterCwd enters the working directory: as root first, who may make it, and where root may not (a
// filesystem of another user's), as the user.
func (c *compiler) enterCwd(pl *processPlan, first bool) {
	dest := path.Clean(pl.proc.Cwd)[1:]
	if dest == "" {
		return
	}
	c.p.Subject("enter the working directory /" + dest)
	if first {
		pl.chdirDone = c.p.Slot("cwd-done")
		skip := c.p.Label()
		have := c.p.Label()
		const flags = unix.O_PATH | unix.O_DIRECTORY
		op := c.open(cwd, dest, flags, inRoot).Save(c.dst)
		if pl.create {
			op.Accept(unix.ENOENT, unix.EACCES).Then(have)
			c.makeCwd(dest, skip)
			c.open(cwd, dest, flags, inRoot).Save(c.dst).Catch(skip, unix.EACCES)
			c.hint(c.absentCwd(dest, errs.Invalid, danglingCwd))
		} else {
			op.Catch(skip, unix.EACCES)
			c.hint(c.absentCwd(dest, errs.NotFound, "it is gone"))
		}
		c.p.Bind(have)
		c.p.Call(unix.SYS_FCHDIR, c.dst.Val()).Catch(skip, unix.EACCES)
		c.p.Load(num(1), 1).Save(pl.chdirDone)
		c.p.Bind(skip)
		return
	}
	done := c.p.Label()
	c.p.Load(pl.chdirDone.Val(), 1).Else(0, done)
	c.open(cwd, dest, unix.O_PATH|unix.O_DIRECTORY, inRoot).Save(c.dst)
	c.p.Call(unix.SYS_FCHDIR, c.dst.Val())
	c.close(c.dst)
	c.p.Bind(done)
	// Whatever happened on the way: a directory outside the root has no path that starts with a slash.
	c.p.Call(unix.SYS_GETCWD, c.p.Scratch(unix.PathMax), num(unix.PathMax))
	c.p.Load(c.p.ScratchWord(), 0xff).Want('/', unix.EXDEV)
}

// danglingCwd is why a working directory is not there right after it was made.
const danglingCwd = "a link in the image is in its place, or in that of a part of it, and leads nowhere"

// absentCwd says how a working directory fails that is not there.
func (c *compiler) absentCwd(dest string, kind errs.Kind, why string) hint {
	id := c.id
	return func(e syscall.Errno) error {
		err := fmt.Errorf("enter the working directory /%s (container %s): %w", dest, id, e)
		if e != unix.ENOENT {
			return err
		}
		return errs.New(kind, "%w: %s", err, why)
	}
}

// cwdBefore makes a working directory that is missing while the root filesystem may still be written to.
func (c *compiler) cwdBefore(dir string) {
	dest := path.Clean(dir)[1:]
	if dest == "" {
		return
	}
	c.p.Subject("make the working directory /" + dest)
	there := c.p.Label()
	c.p.Call(unix.SYS_FACCESSAT2, cwd, c.p.Str("/"+dest), num(unix.F_OK), num(0)).Accept().Then(there)
	c.makeCwd(dest, there)
	c.p.Bind(there)
}

func (c *compiler) makeCwd(dest string, skip program.Label) {
	parts := strings.Split(dest, "/")
	for i, name := range parts {
		parent := "."
		if i > 0 {
			parent = strings.Join(parts[:i], "/")
		}
		c.open(cwd, parent, unix.O_PATH|unix.O_DIRECTORY, inRoot).Save(c.aux).Catch(skip, unix.EACCES)
		c.hint(c.absentCwd(dest, errs.Invalid, danglingCwd))
		c.p.Call(unix.SYS_MKDIRAT, c.aux.Val(), c.p.Str(name), num(0o755)).Accept(unix.EEXIST, unix.EACCES, unix.EROFS)
		c.close(c.aux)
	}
}
