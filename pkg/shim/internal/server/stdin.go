package server

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pipe makes a pipe whose one end is ours, non-blocking for the poller, and the other a program's, blocking.
func pipe(oursReads bool) (ours, theirs *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if !oursReads {
		p[0], p[1] = p[1], p[0]
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(p[0]), "stdio"), os.NewFile(uintptr(p[1]), "stdio"), nil
}

// attachStdin returns a pipe into the container's stdin, which the caller owns; nil when it has none (any more).
// When the caller's end is closed, by a detach or a death, stdin of a container with stdin_once is closed,
// except that of a terminal, where the end of input is a character.
func (c *container) attachStdin() (*os.File, error) {
	c.stdio.Lock()
	to := c.stdin
	c.stdio.Unlock()
	if c.console != nil {
		to = c.console
	}
	if to == nil {
		return nil, nil
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	ours, theirs := os.NewFile(uintptr(p[0]), "attached"), os.NewFile(uintptr(p[1]), "attached")
	go func() {
		defer ours.Close()
		buf := make([]byte, 4096)
		_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{ours}, buf)
		if c.stdinOnce && c.console == nil {
			c.closeStdin()
		}
	}()
	return theirs, nil
}

// closeStdin gives the container's stdin an end. It is idempotent.
func (c *container) closeStdin() {
	c.stdio.Lock()
	defer c.stdio.Unlock()
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
}
