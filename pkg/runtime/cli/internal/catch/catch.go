// Package catch catches signals at once and at no cost, for commands of a few milliseconds: os/signal makes threads and asks
// one of them for every signal, which takes it longer than some commands have to do.
//
// It is the self-pipe trick: a handler in assembler writes the signal's number to a pipe, whatever the Go runtime is doing.
// Where there is none (architectures but amd64), it is os/signal that writes.
package catch

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start catches the signals from now on. What comes is a byte with its number, to be read from the returned pipe. It is to be
// called once, and signal.Notify not for these signals: it may get none. Programs that the process executes have what
// they would have without. The caller closes the pipe, or not.
func Start(list ...syscall.Signal) (*os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	if err := catch(p[1], list); err != nil { // a handler that is there may write still: its descriptor stays
		unix.Close(p[0])
		return nil, err
	}
	return os.NewFile(uintptr(p[0]), "signals"), nil
}
