package runtime

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/program"
)

// openConsole adds the operations that open a pty in the container's own devpts, send its master to the
// launcher and make its slave stdio, and /dev/console where bind says so. The slave comes from the master
// (TIOCGPTPEER), so no path leads to it.
func (c *compiler) openConsole(root program.Arg, proc *specs.Process, bind bool) {
	c.req.Terminal = true
	slave := c.p.Slot("slave")
	master, send := c.p.SendFD()
	const rules = inRoot | unix.RESOLVE_NO_SYMLINKS
	c.p.Subject("open a terminal in the container's /dev/pts")
	c.open(root, "dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, rules).Save(master)
	c.checkDevice(master, unix.S_IFCHR, 5, 2, unix.ENODEV)
	c.p.Call(unix.SYS_IOCTL, master.Val(), num(unix.TIOCSPTLCK), c.p.Words(0))
	c.p.Call(unix.SYS_IOCTL, master.Val(), num(unix.TIOCGPTPEER), num(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).Save(slave)
	if s := proc.ConsoleSize; s != nil && s.Height > 0 && s.Width > 0 {
		c.p.Call(unix.SYS_IOCTL, master.Val(), num(unix.TIOCSWINSZ), c.p.Words(uint64(uint16(s.Height))|uint64(uint16(s.Width))<<16))
	}
	c.p.Subject("give the terminal to the container's user")
	c.p.Call(unix.SYS_FCHOWN, slave.Val(), num(proc.User.UID), num(-1)).Accept(unix.EINVAL, unix.EPERM, unix.EROFS)
	if bind {
		c.p.Subject("mount the terminal on /dev/console")
		c.openFile(root, "dev/console", c.dst)
		c.p.Call(unix.SYS_OPEN_TREE, slave.Val(), c.p.Str(""), num(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)).Save(c.aux)
		c.attach(c.aux.Val(), c.dst)
		c.close(c.aux)
		c.close(c.dst)
	}
	c.p.Subject("hand the terminal over")
	send(num(launch.FirstFD + len(c.files.child))) // every file has its number by now, and the socket follows them
	c.p.Subject("make the terminal stdio")
	for fd := range 3 {
		c.p.Call(unix.SYS_DUP3, slave.Val(), num(fd), num(0))
	}
}
