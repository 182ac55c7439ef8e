package cgroup

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OOMWatch is what tells of the OOM kills of a group, in descriptors that may be handed to another
// process. Close closes both.
type OOMWatch struct {
	// Event becomes readable when there may have been a kill: an eventfd on v1, which the removal of the
	// group fires too, an inotify on v2, which other memory events fire too. v1's fires before the kill is
	// counted: who finds the count as it was looks again a little later, or when a process has ended.
	// Neither blocks a read, and a reader drains it.
	Event *os.File
	// Counter holds the count. Read it from its start (pread) and give the text to ParseOOMKills; once the
	// group is gone reading fails with ENODEV.
	Counter *os.File
}

// Close closes the watch.
func (w *OOMWatch) Close() {
	w.Event.Close()
	w.Counter.Close()
}

// ParseOOMKills finds the number of processes killed in a text of OOMWatch.Counter.
func ParseOOMKills(text []byte) uint64 {
	n, _ := strconv.ParseUint(field(string(text), "oom_kill"), 10, 64)
	return n
}

// OOMKills counts the processes of the group, and of those below it, that the OOM killer has killed. It
// is 0 where the group has no memory controller.
func (g *Group) OOMKills() (uint64, error) {
	if !g.host.Has("memory") {
		return 0, nil
	}
	d, err := g.controller("memory")
	if err == nil {
		defer d.close()
		var n uint64
		if n, err = d.oomKills(); err == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("count OOM kills of cgroup %s: %w", g.Path(), err)
}

// oomKills reads the count; v1's is of one group alone, so those below are added.
func (d dir) oomKills() (uint64, error) {
	file := pick(d, "memory.oom_control", "memory.events")
	text, err := d.read(file)
	if err != nil {
		if unset(err) {
			return 0, nil
		}
		return 0, err
	}
	total := ParseOOMKills([]byte(text))
	if d.tree.Unified {
		return total, nil
	}
	err = d.below(func(c dir) error {
		n, err := c.oomKills()
		total += n
		return err
	})
	return total, err
}

// WatchOOM starts to watch for OOM kills; nil where the group has no memory controller. On v1 the counter
// is of the group alone, not of those below.
func (g *Group) WatchOOM() (*OOMWatch, error) {
	if !g.host.Has("memory") {
		return nil, nil
	}
	d, err := g.controller("memory")
	if err != nil {
		return nil, fmt.Errorf("watch OOM kills of cgroup %s: %w", g.Path(), err)
	}
	defer d.close()
	file := pick(d, "memory.oom_control", "memory.events")
	counter, err := openat(d.fd, file, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("watch OOM kills: %w", &os.PathError{Op: "open", Path: d.name(file), Err: err})
	}
	var event int
	if d.tree.Unified {
		event, err = notifyModify(counter)
	} else {
		event, err = d.eventfd(counter)
	}
	if err != nil {
		unix.Close(counter)
		return nil, fmt.Errorf("watch OOM kills of cgroup %s: %w", g.Path(), err)
	}
	return &OOMWatch{os.NewFile(uintptr(event), "oom event"), os.NewFile(uintptr(counter), d.name(file))}, nil
}

// notifyModify makes an inotify that fires when the kernel changes the open file.
func notifyModify(fd int) (int, error) {
	n, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return -1, os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(n, "/proc/self/fd/"+strconv.Itoa(fd), unix.IN_MODIFY); err != nil {
		unix.Close(n)
		return -1, os.NewSyscallError("inotify_add_watch", err)
	}
	return n, nil
}

// eventfd makes an eventfd that v1's memory controller signals at an OOM.
func (d dir) eventfd(control int) (int, error) {
	n, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, os.NewSyscallError("eventfd", err)
	}
	if err := d.write("cgroup.event_control", strings.Join([]string{strconv.Itoa(n), strconv.Itoa(control)}, " ")); err != nil {
		unix.Close(n)
		return -1, err
	}
	return n, nil
}
