package server

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// oomWatch tells when the kernel has killed a process of a cgroup for want of memory. What counts is the
// counter, memory.events (v2) or memory.oom_control (v1), which both have a line "oom_kill N". The event
// (an inotify on memory.events, an eventfd of v1) only says when to look: the eventfd also fires when
// the cgroup goes, and for kills elsewhere.
type oomWatch struct {
	event, count *os.File // nil where there is none
	mu           sync.Mutex
	base, last   uint64
}

// newOOMWatch takes over both files, each of which may be nil. Kills before now do not count.
func newOOMWatch(event, count *os.File) *oomWatch {
	w := &oomWatch{count: count}
	if event != nil {
		w.event = event
		if rc, err := event.SyscallConn(); err == nil {
			_ = rc.Control(func(fd uintptr) { w.event = pollable(event, int(fd)) })
		}
	}
	w.base = w.read()
	w.last = w.base
	return w
}

// pollable returns f as a file that waits in the poller; it replaces f.
func pollable(f *os.File, fd int) *os.File {
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		return f // received in non-blocking mode: os.NewFile has seen to it
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return f
	}
	_ = unix.SetNonblock(dup, true)
	defer f.Close()
	return os.NewFile(uintptr(dup), f.Name())
}

// read returns the counter, or the last one read where the cgroup is gone.
func (w *oomWatch) read() uint64 {
	if w.count == nil {
		return w.last
	}
	buf := make([]byte, 1024)
	n, err := w.count.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return w.last
	}
	for line := range bytes.Lines(buf[:n]) {
		if v, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("oom_kill ")); ok {
			if k, err := strconv.ParseUint(string(v), 10, 64); err == nil {
				return k
			}
		}
	}
	return w.last
}

// kills returns how many processes have been killed since the watch was made.
func (w *oomWatch) kills() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = w.read()
	return w.last - min(w.base, w.last)
}

// start reports whether there is an event to run for.
func (w *oomWatch) start() bool { return w.event != nil && w.count != nil }

// run calls tell with the number of kills whenever it has grown, until close.
func (w *oomWatch) run(tell func(kills uint64)) {
	rc, err := w.event.SyscallConn()
	if err != nil {
		return
	}
	var told uint64
	buf := make([]byte, 512)
	for {
		gone := false
		if err := rc.Read(func(fd uintptr) bool {
			n, err := unix.Read(int(fd), buf)
			gone = err != unix.EINTR && err != unix.EAGAIN && (err != nil || n <= 0)
			return err != unix.EAGAIN
		}); err != nil || gone {
			return
		}
		if k := w.settled(told); k > told {
			told = k
			tell(k)
		}
	}
}

// settled reads the count after an event until it has grown: v1 signals when memory runs out, before it
// has chosen whom to kill. After a second it was an event of another kind.
func (w *oomWatch) settled(told uint64) uint64 {
	k := w.kills()
	for wait := time.Millisecond; k <= told && wait < time.Second; wait *= 2 {
		time.Sleep(wait)
		k = w.kills()
	}
	return k
}

// close ends run. It is idempotent.
func (w *oomWatch) close() {
	for _, f := range []*os.File{w.event, w.count} {
		if f != nil {
			f.Close()
		}
	}
}
