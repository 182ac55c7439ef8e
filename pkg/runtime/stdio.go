package runtime

import (
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/program"
)

// ownNull adds what opens stdio that is /dev/null anew, from the container's own /dev, with the flags that it has. The
// launcher's is a node of the host's, whose mode root of the container could change through it, and it lies on a mount that
// nothing in the container names: criu refuses it. Where the container has no /dev/null stdio stays as it is.
func (c *compiler) ownNull(root program.Arg) {
	const (
		mode, rdev = 24, 128 // of statx: gid and mode, rdev's numbers: two halves of a word each
		null       = 1 | 3<<32
		all        = 1<<64 - 1
		// Something else may lie there: it must neither keep us waiting nor become our terminal.
		flags = unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	)
	fd, how := c.p.Slot("stdio"), c.p.Buf("how", unix.SizeofOpenHow)
	next, done, other, one, end := c.p.Label(), c.p.Label(), c.p.Label(), c.p.Label(), c.p.Label()
	isNull := func(l program.Label) {
		c.p.Load(c.buf.Word(mode), unix.S_IFMT<<32).Else(unix.S_IFCHR<<32, l)
		c.p.Load(c.buf.Word(rdev), all).Else(null, l)
	}
	c.p.Subject("open the container's own /dev/null in place of the host's")
	c.p.Load(num(inRoot|unix.RESOLVE_NO_SYMLINKS), all).Save(how.Slot(16))
	c.p.Bind(next)
	c.p.Call(unix.SYS_STATX, fd.Val(), c.p.Str(""), empty, num(unix.STATX_TYPE), c.buf.Addr(0)).Catch(other)
	isNull(other)
	c.p.Call(unix.SYS_FCNTL, fd.Val(), num(unix.F_GETFL), num(0)).Save(c.dst)
	c.p.Load(c.dst.Val(), unix.O_ACCMODE).Save(how.Slot(0))
	c.p.Load(num(flags>>8), all).Save(how.Slot(1)) // the access mode, of two bits, is in the byte before
	c.p.Call(unix.SYS_OPENAT2, root, c.p.Str("dev/null"), how.Addr(0), num(unix.SizeofOpenHow)).Save(c.aux).Catch(other)
	c.p.Call(unix.SYS_STATX, c.aux.Val(), c.p.Str(""), empty, num(unix.STATX_TYPE), c.buf.Addr(0))
	isNull(done)
	c.p.Call(unix.SYS_FCNTL, c.aux.Val(), num(unix.F_SETFL), c.dst.Val()).Accept()
	c.p.Call(unix.SYS_DUP3, c.aux.Val(), fd.Val(), num(0))
	c.p.Bind(done)
	c.close(c.aux)
	c.p.Bind(other)
	c.p.Load(fd.Val(), all).Else(0, one)
	c.p.Load(num(1), all).Save(fd).Then(next)
	c.p.Bind(one)
	c.p.Load(fd.Val(), all).Else(1, end)
	c.p.Load(num(2), all).Save(fd).Then(next)
	c.p.Bind(end)
}
