package serve

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// reapEvery is how long a child that has ended may stay without anybody having waited for it.
const reapEvery = 5 * time.Second

// reaper waits for children that nobody waits for. As PID 1, in a container, the server inherits what a killed shim
// leaves; elsewhere the init does. A child of the server's own is waited for as soon as it has ended: one that has
// been a zombie from one sweep to the next is an orphan.
type reaper struct{ seen map[int]bool }

// run sweeps until ctx ends.
func (r *reaper) run(ctx context.Context) {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.sweep()
		case <-ctx.Done():
			return
		}
	}
}

func (r *reaper) sweep() {
	now := map[int]bool{}
	for _, pid := range zombies() {
		if !r.seen[pid] {
			now[pid] = true
			continue
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
	r.seen = now
}

// zombies returns the children that have ended.
func zombies() []int {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil || info.Signo == 0 {
		return nil // mostly there are none
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // state and parent follow the name
		if len(fields) > 1 && string(fields[0]) == "Z" && string(fields[1]) == strconv.Itoa(os.Getpid()) {
			found = append(found, pid)
		}
	}
	return found
}
