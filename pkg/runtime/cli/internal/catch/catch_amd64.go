package catch

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// handler writes its signal's number to the descriptor in pipe. It runs on the signal stack that every thread of the Go
// runtime has (SA_ONSTACK), with all signals blocked, touches nothing of the runtime's, and is never called from Go.
//
//nolint:unused // the assembler takes its address
func handler()

// restorer ends a handler (SA_RESTORER, rt_sigreturn(2)).
//
//nolint:unused // the assembler takes its address
func restorer()

// The addresses of both, which Go has only of wrappers.
var handlerAddr, restorerAddr uintptr

var pipe int32 //nolint:unused // the handler reads it

// sigaction is the kernel's struct (arch/x86/include/uapi/asm/signal.h).
type sigaction struct {
	handler, flags, restorer, mask uintptr
}

const (
	saRestart  = 0x10000000
	saOnStack  = 0x08000000
	saRestorer = 0x04000000
)

func catch(fd int, list []syscall.Signal) error {
	pipe = int32(fd)
	act := sigaction{handlerAddr, saRestart | saOnStack | saRestorer, restorerAddr, ^uintptr(0)}
	for _, sig := range list {
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0); e != 0 {
			return fmt.Errorf("catch signal %d: rt_sigaction: %w", sig, e)
		}
	}
	return nil
}
