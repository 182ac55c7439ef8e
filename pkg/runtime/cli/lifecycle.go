package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

func setupStart(a *app) ([]flag, func([]string) error) {
	return nil, func(args []string) error {
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		defer c.close()
		if err := c.lock(); err != nil {
			return err
		}
		switch status := c.status(); status {
		case statusCreated:
			return c.start()
		case statusStopped:
			return errors.New("cannot start a container that has stopped")
		case statusRunning:
			return errors.New("cannot start an already running container")
		default:
			return fmt.Errorf("cannot start a container in the %s state", status)
		}
	}
}

// start opens the gate of a created container. One without a process ends: that is an error, of which
// runtime-spec leaves open how it is told, and callers expect to find the container stopped.
func (c *container) start() error {
	spec, err := c.spec()
	if err != nil {
		return err
	}
	pidfd, err := c.pidfd()
	if err != nil {
		return err
	}
	if c.NoProcess {
		defer pidfd.Close()
		c.app.log.warn("container %s ends: its configuration has no process to start", c.ID)
		return os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0))
	}
	p, err := launch.Attach(c.file, c.Pid, pidfd)
	if err != nil {
		pidfd.Close()
		return err
	}
	defer p.Close()
	state := specs.State{ID: c.ID, Status: specs.StateCreating, Bundle: c.Bundle, Annotations: c.Annotations}
	if spec.Process.NoNewPrivileges { // else the filter is loaded already
		agent, message, err := runtime.Agent(spec.Linux.Seccomp, state)
		if err != nil {
			return err
		}
		defer agent.Close()
		p.SetNotify(agent, message)
	}
	if err := p.Release(); err != nil {
		return c.explain(err)
	}
	launch.RemoveFifos(c.file)
	if err := c.started(spec.Hooks); err != nil {
		c.undo(spec.Hooks)
		return err
	}
	return nil
}

// undo destroys a container that could not be created, or that a poststart hook has failed (runtime.md,
// lifecycle, steps 12 and 13).
func (c *container) undo(h *specs.Hooks) {
	ctx, cancel := context.WithTimeout(context.Background(), teardown)
	defer cancel()
	if err := c.destroy(ctx); err != nil {
		c.app.log.warn("removing what was made of container %s: %v", c.ID, err)
	}
	c.stopped(h)
}

// explain says which operation of the program failed. Only its number came back, from a program that
// another process compiled: compiled again, the same configuration gives the same numbers.
func (c *container) explain(failure error) error {
	var op *launch.OpError
	if !errors.As(failure, &op) {
		return failure
	}
	spec, err := c.spec()
	if err != nil {
		return failure
	}
	g, _, err := c.group()
	if err != nil {
		return failure
	}
	out, err := c.hookOutput(spec.Hooks)
	if err != nil {
		return failure
	}
	o := runtime.Options{
		ID: c.ID, Spec: spec, Bundle: c.Bundle, Cgroup: c.where(g), Gate: true, StdioOwner: true, Detached: true, HookOutput: out, HostVisible: true, InOrder: true,
		RdtTasks: slices.Repeat([]*os.File{os.Stdin}, c.Rdt.Groups()), NoPivot: c.NoPivot, NoKeyring: c.NoKeyring, ExtraFiles: slices.Repeat([]*os.File{os.Stdin}, c.Extra),
	}
	if c.held() { // its wait for the cgroup counts among the operations; nothing is started here
		o.Place = func(int, bool) error { return nil }
	}
	again, err := c.app.prepare(o)
	if err != nil {
		return failure
	}
	defer again.Close()
	return again.Explain(failure)
}

func setupKill(a *app) ([]flag, func([]string) error) {
	var all bool
	return []flag{boolean(&all, "all a", "signal every process of the container")}, func(args []string) error {
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		defer c.close()
		name := "SIGTERM"
		if len(args) > 1 && args[1] != "" {
			name = args[1]
		}
		sig, err := parseSignal(name)
		if err != nil {
			return err
		}
		err = c.signal(sig, all)
		if all && errors.Is(err, errNotRunning) {
			return nil
		}
		return err
	}
}

// parseSignal reads a signal's number or name, with or without SIG.
func parseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("unknown signal %q", s)
		}
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	if n, ok := realtime(name); ok {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

// realtime reads SIGRTMIN, SIGRTMIN+3, SIGRTMAX-1, as the C library numbers them.
func realtime(name string) (syscall.Signal, bool) {
	for base, from := range map[string]int{"SIGRTMIN": 34, "SIGRTMAX": 64} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		offset := 0
		if rest != "" {
			var err error
			if offset, err = strconv.Atoi(rest); err != nil || rest[0] != '+' && rest[0] != '-' {
				return 0, false
			}
		}
		if n := from + offset; n >= 34 && n <= 64 {
			return syscall.Signal(n), true
		}
	}
	return 0, false
}

// signal sends a signal to the container's process, or to all its processes. SIGKILL goes to all where
// the end of the first does not end the others.
func (c *container) signal(sig syscall.Signal, all bool) error {
	g, _, err := c.group()
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL && (all || !c.OwnPID) && !c.NoCgroup {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return errNotRunning
		}
		ctx, cancel := context.WithTimeout(context.Background(), teardown)
		defer cancel()
		return g.Kill(ctx)
	}
	if all && !c.NoCgroup {
		return signalAll(g, sig)
	}
	pidfd, err := c.pidfd()
	if err != nil {
		return err
	}
	defer pidfd.Close()
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return errNotRunning
		}
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	if sig == unix.SIGKILL && !c.NoCgroup { // of a frozen process, v1 delivers it when it is thawed
		return g.Thaw()
	}
	return nil
}

// signalAll signals what is in the group at this moment.
func signalAll(g interface{ Pids() ([]int, error) }, sig syscall.Signal) error {
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return errNotRunning
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
		unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError("pidfd_send_signal", err)
		}
	}
	return nil
}

func setupDelete(a *app) ([]flag, func([]string) error) {
	var force bool
	return []flag{boolean(&force, "force f", "kill the container if it runs, and do not mind if there is none")}, func(args []string) error {
		c, err := a.load(args[0])
		if errors.Is(err, errNotExist) {
			return a.deleteRest(args[0], force)
		}
		if torn := (*tornError)(nil); errors.As(err, &torn) {
			return a.deleteTorn(torn, force)
		}
		if err != nil {
			return err
		}
		defer c.close()
		return c.remove(force)
	}
}

// deleteRest removes a directory without a record: a creation that was cut short before it made anything
// else, or a deletion that was all but done.
func (a *app) deleteRest(id string, force bool) error {
	if err := checkID(id); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(a.root, id)); err != nil {
		return err
	}
	if force {
		return nil
	}
	return errNotExist
}

func (c *container) remove(force bool) error {
	if force && c.status() != statusCreating {
		// A start in flight waits for a gate that we close by killing: it must not keep us waiting.
		if pidfd, err := c.pidfd(); err == nil {
			_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
			pidfd.Close()
		}
	}
	if err := c.lock(); err != nil {
		return err
	}
	if again, err := c.app.load(c.ID); err != nil { // another delete was quicker
		if force {
			return nil
		}
		return err
	} else {
		c.record = again.record
		again.close()
	}
	status := c.status()
	if c.Pid == 0 {
		status = statusStopped // we have the lock, so nobody is creating it
	}
	if !force && status != statusStopped && status != statusCreated {
		return fmt.Errorf("cannot delete container %s that is not stopped: %s", c.ID, status)
	}
	spec, specErr := c.spec()
	ctx, cancel := context.WithTimeout(context.Background(), teardown)
	defer cancel()
	if err := c.destroy(ctx); err != nil {
		return err
	}
	if specErr == nil && c.Pid != 0 {
		c.stopped(spec.Hooks)
	}
	return nil
}
