package sys

import (
	"runtime"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// monitorSlack is how late the Go runtime's monitor may wake up in a process that has called CalmMonitor.
const monitorSlack = "4000000" // ns

// slack is the timer slack that the process began with, in ns; 0 while nothing has been changed.
var slack atomic.Uintptr

// CalmMonitor is for processes that live for a few milliseconds, and is to be called first, on the main thread. The Go
// runtime's monitor wakes up every 20 µs in such a process: for the scheduler it is one more thread to put on the
// processor that has our work, a tenth of the time of a command, and for each unmapped or copied page one more processor to
// interrupt. Nothing needs it that often: it takes processors (P) from threads that stay in a system call, which
// happens up to 4 ms later now.
//
// It works by the timer slack of the monitor's thread (proc_pid_timerslack_ns(5)). Without CAP_SYS_NICE all stays as it is.
// Threads and processes inherit the slack of the thread that makes them: use Spawn to make a process, or give it TimerSlack.
func CalmMonitor() {
	tid := monitor()
	if tid == "" {
		return
	}
	own, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || own <= 0 { // 0: a realtime scheduler's
		return
	}
	fd, err := unix.Open("/proc/"+tid+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	slack.Store(uintptr(own)) // before any thread can have another
	_, _ = unix.Write(fd, []byte(monitorSlack))
	unix.Close(fd)
}

// monitor finds the thread: the runtime makes it before any other (runtime.main), so that its number is the next, or one of
// the next where others make processes too. "" when there is none, or when /proc has other numbers than we.
func monitor() string {
	pid := unix.Getpid()
	var self [16]byte
	if n, err := unix.Readlink("/proc/self", self[:]); err != nil || string(self[:n]) != strconv.Itoa(pid) {
		return ""
	}
	for tid := pid + 1; tid < pid+100; tid++ {
		if unix.Tgkill(pid, tid, 0) == nil { // it is of this process
			return strconv.Itoa(tid)
		}
	}
	return ""
}

// TimerSlack is the slack, in ns, that a process is to have which this one makes; 0 when it need not be given any.
func TimerSlack() uintptr { return slack.Load() }

// Spawn calls start, which makes a process, on a thread with the timer slack that this process began with, and returns
// its error. It may take a thread of its own.
func Spawn(start func() error) error {
	own := slack.Load()
	if own == 0 {
		return start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, own, 0, 0, 0); err != nil {
		return err
	}
	return start()
}
