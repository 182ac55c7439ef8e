package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Pids lists the processes of the group and of the groups below it, sorted. A group that does not exist
// has none. Processes outside the caller's PID namespace do not show.
func (g *Group) Pids() ([]int, error) {
	pids, err := g.pids()
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", g.Path(), err)
	}
	return pids, nil
}

// pids unites what the hierarchies say: a process that was placed in some only is still one of the group's.
func (g *Group) pids() ([]int, error) {
	dirs, err := g.dirs()
	if err != nil {
		return nil, err
	}
	defer closeAll(dirs)
	var all []int
	for _, d := range dirs {
		if err := d.procs(&all); err != nil {
			return nil, err
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// procs appends the processes of d and of everything below it.
func (d dir) procs(all *[]int) error {
	text, err := d.read("cgroup.procs")
	if errors.Is(err, unix.EOPNOTSUPP) { // a threaded group lists its threads only
		text, err = d.read("cgroup.threads")
	}
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	for line := range strings.Lines(text) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 { // 0: outside our PID namespace
			*all = append(*all, pid)
		}
	}
	return d.below(func(c dir) error { return c.procs(all) })
}

// below calls f for every child of d, and closes it.
func (d dir) below(f func(dir) error) error {
	names, err := d.children()
	if err != nil && !gone(err) {
		return err
	}
	for _, n := range names {
		c, err := d.sub(n)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = f(c)
		c.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// freezer opens the directory whose file freezes the group: v1's where that hierarchy is mounted.
func (g *Group) freezer() (d dir, v1 bool, err error) {
	if t := g.host.tree("freezer"); t != nil {
		d, err = g.host.at(t, g.path)
		return d, true, err
	}
	t := g.host.unified()
	if t == nil {
		return dir{}, false, fmt.Errorf("no hierarchy can freeze")
	}
	d, err = g.host.at(t, g.path)
	return d, false, err
}

// Freeze stops every process of the group, and returns when all of them stand still. On an error, ctx's
// included, the group is thawed again.
func (g *Group) Freeze(ctx context.Context) error {
	d, v1, err := g.freezer()
	if err == nil {
		defer d.close()
		if err = d.freeze(ctx, v1); err != nil {
			_ = d.thaw(v1)
		}
	}
	if err != nil {
		return fmt.Errorf("freeze cgroup %s: %w", g.Path(), err)
	}
	return nil
}

// Thaw lets the processes of the group run again. A group that is not frozen, or is gone, is fine.
func (g *Group) Thaw() error {
	d, v1, err := g.freezer()
	if err == nil {
		defer d.close()
		err = d.thaw(v1)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("thaw cgroup %s: %w", g.Path(), err)
	}
	return nil
}

// Frozen reports whether the group was told to freeze.
func (g *Group) Frozen() (bool, error) {
	d, v1, err := g.freezer()
	if err != nil {
		return false, err
	}
	defer d.close()
	if v1 {
		s, err := d.get("freezer.state")
		return s == "FROZEN" || s == "FREEZING", err
	}
	s, err := d.get("cgroup.freeze")
	return s == "1", err
}

func (d dir) freeze(ctx context.Context, v1 bool) error {
	if !v1 {
		if err := d.write("cgroup.freeze", "1"); err != nil {
			return err
		}
		return d.waitEvent(ctx, "frozen 1")
	}
	// v1 has no event, and a process that is born while the group freezes can hold it at FREEZING until
	// the state is written again (cgroup-v1/freezer-subsystem.rst).
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		if err := d.write("freezer.state", "FROZEN"); err != nil {
			return err
		}
		if s, err := d.get("freezer.state"); err != nil || s == "FROZEN" {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (d dir) thaw(v1 bool) error {
	if v1 {
		return d.write("freezer.state", "THAWED")
	}
	return d.write("cgroup.freeze", "0")
}

// waitEvent waits until cgroup.events has the line; the kernel tells of changes by POLLPRI.
func (d dir) waitEvent(ctx context.Context, line string) error {
	fd, err := openat(d.fd, "cgroup.events", unix.O_RDONLY)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.name("cgroup.events"), Err: err}
	}
	defer unix.Close(fd)
	for {
		if _, err := unix.Seek(fd, 0, 0); err != nil {
			return err
		}
		text, err := readAll(fd)
		if err != nil || slices.Contains(strings.Split(text, "\n"), line) {
			return err
		}
		if err := poll(ctx, []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}); err != nil {
			return err
		}
	}
}

// poll waits for one of fds or the end of ctx, which it looks for now and then: a context has no
// descriptor.
func poll(ctx context.Context, fds []unix.PollFd) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll(fds, 100)
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
	}
}

// Kill kills every process of the group and of the groups below it, whatever they fork meanwhile, thaws
// the group, and returns when none of them lives. Who started a process still has to reap it. Killing a
// group that has none or does not exist is fine. It blocks as long as a process takes to die, which in an
// uninterruptible wait may be for ever: ctx ends that.
func (g *Group) Kill(ctx context.Context) error {
	whole := g.killUnified()
	for round := 0; ; round++ {
		pids, err := g.pids()
		if err == nil && len(pids) > 0 {
			err = g.killOnce(ctx, pids, whole && round == 0)
		}
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.Path(), err)
		}
		if len(pids) > 0 {
			continue
		}
		if err := g.waitUnpopulated(ctx); err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.Path(), err)
		}
		return nil
	}
}

// killOnce waits for the processes it sees to end, after it has killed them where they were not killed
// as a whole.
func (g *Group) killOnce(ctx context.Context, pids []int, killed bool) error {
	watch := watchPids(pids)
	defer closePolls(watch)
	var err error
	if !killed {
		err = g.killEach(ctx, pids)
	}
	if e := g.Thaw(); err == nil { // a process that v1 froze dies when it is thawed
		err = e
	}
	if err != nil {
		return err
	}
	return waitAll(ctx, watch)
}

// watchPids opens what tells of the ends of processes; those over a bound are left for a later round.
func watchPids(pids []int) []unix.PollFd {
	var watch []unix.PollFd
	for _, pid := range pids[:min(len(pids), 128)] {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			watch = append(watch, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
	return watch
}

func closePolls(watch []unix.PollFd) {
	for _, p := range watch {
		unix.Close(int(p.Fd))
	}
}

// killUnified asks the kernel to kill the whole tree, which no fork escapes.
func (g *Group) killUnified() bool {
	t := g.host.unified()
	if t == nil {
		return false
	}
	d, err := g.host.at(t, g.path)
	if err != nil {
		return false
	}
	defer d.close()
	return d.write("cgroup.kill", "1") == nil // since Linux 5.14
}

// killEach freezes the group so that nothing forks, and signals all.
func (g *Group) killEach(ctx context.Context, pids []int) error {
	limited, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := g.Freeze(limited); err == nil {
		if pids, err = g.pids(); err != nil {
			return err
		}
	} // else: a process that cannot be frozen must not keep the others alive; the rounds catch the forks
	for _, pid := range pids {
		if err := g.signal(pid); err != nil {
			return err
		}
	}
	return nil
}

// signal kills one process. The descriptor is opened before the membership is looked at again, so that a
// number that was given to a stranger meanwhile does not hit the stranger.
func (g *Group) signal(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // gone, or a lone thread of a threaded group
			return nil
		}
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if !g.member(pid) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return nil
}

// member reports whether a process is in the group in some hierarchy, by its own /proc file, whose paths
// end in the group's where a mount point is not the root of its hierarchy.
func (g *Group) member(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		_, rest, _ := strings.Cut(line, ":")
		_, path, _ := strings.Cut(rest, ":")
		if path = strings.TrimSpace(path) + "/"; strings.Contains(path, "/"+g.path+"/") {
			return true
		}
	}
	return false
}

// waitAll waits until every pidfd is readable: its process is dead.
func waitAll(ctx context.Context, fds []unix.PollFd) error {
	left := slices.Clone(fds)
	for len(left) > 0 {
		if err := poll(ctx, left); err != nil {
			return err
		}
		left = slices.DeleteFunc(left, func(p unix.PollFd) bool { return p.Revents != 0 })
	}
	return nil
}

// waitUnpopulated waits for processes that cgroup.procs does not show: dying ones whose leader is gone,
// and those outside our PID namespace.
func (g *Group) waitUnpopulated(ctx context.Context) error {
	t := g.host.unified()
	if t == nil {
		return nil
	}
	d, err := g.host.at(t, g.path)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.waitEvent(ctx, "populated 0"); err != nil && !gone(err) {
		return err
	}
	return nil
}

// removeWait bounds Delete where ctx does not.
const removeWait = 10 * time.Second

// Delete removes the group and the groups below it from every hierarchy; what does not exist is fine. It
// kills nothing: with a living process in the group it waits for its end and fails with EBUSY when ctx
// ends or ten seconds have passed.
func (g *Group) Delete(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeWait)
	defer cancel()
	var failed []error
	for _, t := range g.host.trees {
		d, err := g.host.at(t, g.path)
		if gone(err) {
			continue
		}
		if err == nil {
			err = g.remove(ctx, d)
			d.close()
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("delete cgroup %s: %w", g.Path(), errors.Join(failed...))
	}
	return nil
}

// remove removes one hierarchy's directory. EBUSY means a process or a child, either of which may be new:
// wait for what can be waited for and look again.
func (g *Group) remove(ctx context.Context, d dir) error {
	for round := 0; ; round++ {
		if err := d.below(func(c dir) error { return g.remove(ctx, c) }); err != nil {
			return err
		}
		err := d.tell("rmdir", "", "")
		if err == nil {
			err = unix.Unlinkat(d.tree.root, d.path, unix.AT_REMOVEDIR)
		}
		if err == nil || gone(err) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return &os.PathError{Op: "rmdir", Path: d.tree.Mount + "/" + d.path, Err: err}
		}
		waitMembers(ctx, d, round)
	}
}

// waitMembers waits for the processes in d to die, and where none shows, or waiting for them has not
// helped, for a moment: the kernel lets go of a dead process's group a little after its parent hears of it.
func waitMembers(ctx context.Context, d dir, round int) {
	var pids []int
	_ = d.procs(&pids)
	watch := watchPids(pids)
	defer closePolls(watch)
	if len(watch) > 0 {
		_ = waitAll(ctx, watch)
		if round < 3 {
			return
		}
	}
	select {
	case <-ctx.Done():
	case <-time.After(min(200*time.Microsecond<<min(round, 8), 50*time.Millisecond)):
	}
}

// Prune removes the group's own directories where nothing is in them, neither processes nor groups, and
// leaves the others. It reports whether none is left. It does not wait.
func (g *Group) Prune() bool {
	left := false
	for _, t := range g.host.trees {
		err := unix.Unlinkat(t.root, g.path, unix.AT_REMOVEDIR) // EBUSY is an answer
		left = left || err != nil && !gone(err)
	}
	return !left
}

// Vanish is Kill and Delete of a group that, most likely, nothing is in any more: then it is one call for each
// hierarchy. The one that freezes goes first: it stays for Kill where there is something to kill.
func (g *Group) Vanish(ctx context.Context) error {
	if g.unfreezable() && g.Prune() {
		return nil
	}
	if err := g.Kill(ctx); err != nil {
		return err
	}
	return g.Delete(ctx)
}

// unfreezable removes the directory that v1 freezes by, and reports whether it is gone.
func (g *Group) unfreezable() bool {
	t := g.host.tree("freezer")
	if t == nil {
		return true
	}
	err := unix.Unlinkat(t.root, g.path, unix.AT_REMOVEDIR)
	return err == nil || gone(err)
}
