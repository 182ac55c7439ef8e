package launch

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// OpError says which operation of a program failed. Whoever compiled the program can say what it was.
type OpError struct {
	Index int           // of the operation in the program
	Errno syscall.Errno // the kernel's answer
}

// Error names index and errno: it is for those who have not the program's texts.
func (e *OpError) Error() string { return fmt.Sprintf("operation %d: %v", e.Index, e.Errno) }

// Unwrap returns the errno, so that errors.Is(err, fs.ErrNotExist) and such work.
func (e *OpError) Unwrap() error { return e.Errno }

// DiedError says that the process ended without a word before it was ready: killed, out of memory.
type DiedError struct {
	Status WaitStatus
}

// Error says how the process ended.
func (e *DiedError) Error() string {
	if e.Status.Signaled() {
		return fmt.Sprintf("init died before it was ready: signal %d (%v)", int(e.Status.Signal()), e.Status.Signal())
	}
	return fmt.Sprintf("init died before it was ready: exit status %d", e.Status.ExitStatus())
}

// WaitStatus is how a process ended, as wait4(2) tells it.
type WaitStatus = unix.WaitStatus

// ExitCode is the exit code that shells and container runtimes report for a status: 128+n for signal n.
func ExitCode(ws WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
