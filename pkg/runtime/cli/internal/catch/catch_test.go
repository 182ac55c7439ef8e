package catch

import (
	"bytes"
	"errors"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCatch sends signals while all processors run Go code that allocates, calls the kernel and grows stacks.
func TestCatch(t *testing.T) {
	f, err := Start(unix.SIGTERM, unix.SIGUSR1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	done := make(chan struct{})
	var busy sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		busy.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					deep(20)
					unix.Getppid()
				}
			}
		})
	}
	const n = 2000
	got := make(chan []byte)
	go func() {
		var all []byte
		buf := make([]byte, 64)
		for len(all) < n {
			m, err := f.Read(buf)
			if err != nil {
				t.Error(err)
				break
			}
			all = append(all, buf[:m]...)
		}
		got <- all
	}()
	go func() {
		runtime.LockOSThread()
		for i := range n { // to a thread: a process has each signal pending once
			sig := []unix.Signal{unix.SIGTERM, unix.SIGUSR1}[i%2]
			if err := unix.Tgkill(unix.Getpid(), unix.Gettid(), sig); err != nil {
				t.Error(err)
			}
		}
	}()
	all := <-got
	close(done)
	busy.Wait()
	if n := bytes.Count(all, []byte{byte(unix.SIGTERM)}); n != len(all)/2 {
		t.Errorf("%d of %d signals are SIGTERM", n, len(all))
	}

	// What is executed has the default again.
	var ended *exec.ExitError
	err = exec.Command("sh", "-c", "kill -TERM $$; sleep 10").Run()
	if !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != unix.SIGTERM {
		t.Errorf("a program that is sent SIGTERM: %v", err)
	}
}

func deep(n int) []byte {
	var frame [512]byte
	frame[n] = 1
	if n == 0 {
		return bytes.Clone(frame[:])
	}
	return append(deep(n - 1)[:1], frame[:]...)
}
