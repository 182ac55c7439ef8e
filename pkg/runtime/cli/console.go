package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// console is the stdio of a process as the command line gives it: the caller's own files, pipes in place
// of those that are the caller's terminal (a process must not reach it, to type into it for one), or a
// terminal of the container's own.
type console struct {
	stdio    [3]*os.File // for the process; nil with a terminal of its own
	theirs   []*os.File  // closed once the process has them
	copies   []func()    // begin when the process runs
	output   sync.WaitGroup
	socket   string
	terminal bool
	master   *os.File      // of the container's terminal, when we relay it
	host     *os.File      // the caller's terminal, nil without one
	saved    *unix.Termios // what the caller's terminal was set to
}

func newConsole(terminal, detach bool, socket string) (*console, error) {
	c := &console{socket: socket, terminal: terminal}
	if terminal {
		return c, nil
	}
	c.stdio = [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	if detach {
		return c, nil
	}
	for i, f := range c.stdio {
		if !isTerminal(f) {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if i == 0 {
			c.stdio[i] = r
			c.theirs = append(c.theirs, r)
			c.copies = append(c.copies, func() { go func() { _, _ = io.Copy(w, os.Stdin); w.Close() }() })
			continue
		}
		c.stdio[i] = w
		c.theirs = append(c.theirs, w)
		c.copies = append(c.copies, func() {
			c.output.Add(1)
			go func() { defer c.output.Done(); _, _ = io.Copy(f, r); r.Close() }()
		})
	}
	return c, nil
}

// names are what the process's stdio is, as its /proc/self/fd would show it; none with a terminal of its own.
func (c *console) names() (list []string) {
	for _, f := range c.stdio {
		if f != nil {
			name, _ := os.Readlink(sys.FDPath(f))
			list = append(list, name)
		}
	}
	return list
}

// started closes what the process has, and begins to copy.
func (c *console) started() {
	sys.CloseAll(c.theirs)
	for _, begin := range c.copies {
		begin()
	}
}

// handOver gives the master of the container's terminal to who asked for it, or relays it.
func (c *console) handOver(master *os.File) error {
	if master == nil {
		return nil
	}
	if c.socket != "" {
		defer master.Close()
		return sendFile(c.socket, master)
	}
	c.master = master
	if err := plainNewlines(master); err != nil {
		return err
	}
	if err := c.raw(); err != nil {
		return err
	}
	go func() { _, _ = io.Copy(master, os.Stdin) }()
	c.output.Add(1)
	go func() { defer c.output.Done(); _, _ = io.Copy(os.Stdout, master) }() // ends with EIO once nobody has the terminal
	return nil
}

// plainNewlines keeps the container's terminal from turning a newline into two characters: the caller's
// terminal does it, and a caller that reads a pipe does not want it.
func plainNewlines(master *os.File) error {
	t, err := unix.IoctlGetTermios(int(master.Fd()), unix.TCGETS)
	if err != nil {
		return os.NewSyscallError("ioctl TCGETS", err)
	}
	t.Oflag &^= unix.ONLCR
	return os.NewSyscallError("ioctl TCSETS", unix.IoctlSetTermios(int(master.Fd()), unix.TCSETS, t))
}

// raw makes the caller's terminal pass every key on. Without a terminal there is nothing to do.
func (c *console) raw() error {
	for _, f := range []*os.File{os.Stderr, os.Stdout, os.Stdin} {
		if isTerminal(f) {
			c.host = f
			break
		}
	}
	if c.host == nil {
		f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return nil
		}
		c.host = f
	}
	t, err := unix.IoctlGetTermios(int(c.host.Fd()), unix.TCGETS)
	if err != nil {
		return os.NewSyscallError("ioctl TCGETS", err)
	}
	saved := *t
	c.saved = &saved
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return os.NewSyscallError("ioctl TCSETS", unix.IoctlSetTermios(int(c.host.Fd()), unix.TCSETS, t))
}

// resize gives the container's terminal the size of the caller's.
func (c *console) resize() {
	if c.master == nil || c.host == nil {
		return
	}
	if ws, err := unix.IoctlGetWinsize(int(c.host.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(c.master.Fd()), unix.TIOCSWINSZ, ws)
	}
}

// close waits until all output has been copied, and gives the caller's terminal back as it was. The
// processes that can write are dead by then.
func (c *console) close() {
	c.output.Wait()
	if c.saved != nil {
		_ = unix.IoctlSetTermios(int(c.host.Fd()), unix.TCSETS, c.saved)
	}
	if c.master != nil {
		c.master.Close()
	}
}

// sendFile connects to a unix socket and sends a descriptor, with its name for a message as runc does.
func sendFile(socket string, f *os.File) error {
	fd, err := dial(socket)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", socket, err)
	}
	defer unix.Close(fd)
	return sys.SendFDs(fd, []byte(f.Name()), f)
}

func sendPidfd(socket string, pidfd *os.File) error {
	if socket == "" {
		return nil
	}
	return sendFile(socket, pidfd)
}

// dial connects to a stream socket whose path may be longer than an address holds.
func dial(socket string) (int, error) {
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return -1, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	addr := &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(socket)}
	if err := unix.Connect(fd, addr); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// writePidFile replaces the file whole, so that who waits for it never reads half a number.
func writePidFile(file string, pid int) error {
	if file == "" {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(pid))
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}
