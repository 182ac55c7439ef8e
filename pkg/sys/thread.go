package sys

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread runs f on an operating system thread that ends with it, so that f may change what belongs to a
// thread: its namespaces, its cgroup, its root. It returns f's error. f is never run on the process's main
// thread, which cannot end, and whose namespaces are what /proc/self shows.
func OnThread(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if unix.Gettid() == unix.Getpid() {
			errc <- OnThread(f) // busy meanwhile, so that another thread takes the job
			runtime.UnlockOSThread()
			return
		}
		errc <- f()
	}()
	return <-errc
}
