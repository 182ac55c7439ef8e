package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/shim"
)

// conn is a connection to a shim in pkg/sandbox's terms.
type conn struct {
	m      *Machine
	c      *shim.Client
	events chan sandbox.ShimEvent
	closed chan struct{}
	once   sync.Once
}

func newConn(m *Machine, c *shim.Client) *conn {
	k := &conn{m: m, c: c, events: make(chan sandbox.ShimEvent), closed: make(chan struct{})}
	go k.translate()
	return k
}

// translate hands exits on until the connection ends, or is closed by a reader who is no longer there.
func (k *conn) translate() {
	defer close(k.events)
	for ev := range k.c.Events() {
		if ev.Type != shim.EventExit {
			continue
		}
		select {
		case k.events <- sandbox.ShimEvent{ID: idOf(&ev.State), Exit: exitOf(&ev.State)}:
		case <-k.closed:
			return
		}
	}
}

// Close ends the connection; the shim lives on.
func (k *conn) Close() error {
	k.once.Do(func() { close(k.closed) })
	return k.c.Close()
}

func idOf(s *shim.ContainerState) string {
	if s.Holder {
		return sandbox.HolderID
	}
	return s.ID
}

func exitOf(s *shim.ContainerState) sandbox.Exit {
	return sandbox.Exit{Code: int32(s.ExitCode), At: s.FinishedAt, OOMKilled: s.OOMKilled}
}

func (k *conn) Pid() int                         { return k.c.Info().Pid }
func (k *conn) Events() <-chan sandbox.ShimEvent { return k.events }
func (k *conn) Done() <-chan struct{}            { return k.c.Done() }

// Holder makes the pod's namespaces.
func (k *conn) Holder(ctx context.Context, r *sandbox.HolderRequest) (int, error) {
	g, err := k.m.cgroups.At(r.CgroupPath)
	if err != nil {
		return 0, err
	}
	o := runtime.HolderOptions{
		ID: r.PodID, Namespaces: r.Namespaces, UIDMappings: r.UIDMaps, GIDMappings: r.GIDMaps,
		Hostname: r.Hostname, Sysctls: r.Sysctls, Cgroup: g, Clamp: true,
	}
	if r.Netns != nil {
		o.Join = map[specs.LinuxNamespaceType]*os.File{specs.NetworkNamespace: r.Netns}
	}
	_, o.Gate = scopeAt(r.CgroupPath)
	p, err := runtime.PrepareHolder(ctx, o)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	pid, err := k.c.Holder(ctx, &p.Request, p.Files)
	if err == nil && o.Gate {
		err = k.settle(ctx, "", "pod "+r.PodID, pid, g, nil)
	}
	return pid, p.Explain(err)
}

// Start launches a container.
func (k *conn) Start(ctx context.Context, r *sandbox.StartRequest) (int, error) {
	g, err := k.m.cgroups.At(r.CgroupPath)
	if err != nil {
		return 0, err
	}
	mounts, shm, err := k.mounts(r)
	if err != nil {
		return 0, err
	}
	defer closeAll(shm)
	o := runtime.Options{
		ID: r.ID, Spec: r.Spec, Bundle: r.Bundle, Rootfs: r.Rootfs, MountFDs: mounts, Cgroup: g, Clamp: true, StdioOwner: true,
	}
	if r.Spec.Hooks != nil { // they want the node's files, which the shim has not
		if o.HostMounts, err = os.Open("/proc/self/ns/mnt"); err != nil {
			return 0, err
		}
		defer o.HostMounts.Close()
	}
	_, o.Gate = scopeAt(r.CgroupPath)
	p, err := runtime.Prepare(ctx, o)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	req := shim.StartRequest{
		ID: r.ID, Launch: &p.Request, Files: p.Files, Log: r.Log, ExitDir: r.Dir, Stdin: r.Stdin, StdinOnce: r.StdinOnce, TTY: r.TTY, HoldOutput: r.HoldOutput,
	}
	watch, err := g.WatchOOM()
	if err != nil {
		return 0, err
	}
	if watch != nil {
		defer watch.Close()
		req.OOM = shim.OOMWatch{Event: watch.Event, Count: watch.Counter}
	}
	pid, err := k.c.Start(ctx, req)
	if err == nil && o.Gate {
		err = k.settle(ctx, r.ID, "container "+r.ID, pid, g, r.Spec.Linux.Resources)
	}
	if err != nil {
		return 0, outOfMemory(g, r.Spec, p.Explain(err))
	}
	return pid, nil
}

// settle makes systemd know the scope of a program that waits at its gate, and lets it go on. One that systemd refuses is
// killed.
func (k *conn) settle(ctx context.Context, id, what string, pid int, g *cgroup.Group, res *specs.LinuxResources) error {
	u, _ := scopeAt(g.Path())
	err := k.m.adopt(ctx, u, g, what, pid, res)
	if err == nil {
		err = fault.At("host/adopted")
	}
	if err == nil {
		return k.c.Release(ctx, id)
	}
	return errors.Join(err, k.c.Signal(context.WithoutCancel(ctx), id, int(syscall.SIGKILL), false))
}

// outOfMemory says of a container that could not be launched that the kernel killed it for its memory, or had none
// for it to begin with, if so it was.
func outOfMemory(g *cgroup.Group, spec *specs.Spec, err error) error {
	if n, oerr := g.OOMKills(); !errs.Is(err, errs.Exhausted) && (oerr != nil || n == 0) {
		return err
	}
	limit := "that of a cgroup above"
	if l := spec.Linux; l != nil && l.Resources != nil && l.Resources.Memory != nil && l.Resources.Memory.Limit != nil {
		limit = strconv.FormatInt(*l.Resources.Memory.Limit, 10)
	}
	return errs.New(errs.Exhausted, "memory limit (%s): it is too small for a process to begin in. Raise it: %w", limit, err)
}

// mounts adds the pod's /dev/shm, which only the shim's mount namespace has, to the trees that come by descriptor.
func (k *conn) mounts(r *sandbox.StartRequest) (all map[int]*os.File, ours []*os.File, err error) {
	all = map[int]*os.File{}
	for i, f := range r.Mounts {
		all[i] = f
	}
	if r.HostIPC {
		return all, nil, nil
	}
	for i := range r.Spec.Mounts {
		m := &r.Spec.Mounts[i]
		if m.Source != ShmPath || m.Destination != "/dev/shm" || !isBind(m) {
			continue
		}
		tree, err := cloneFrom(k.Pid(), ShmPath)
		if err != nil {
			closeAll(ours)
			return nil, nil, fmt.Errorf("/dev/shm of the pod: %w", err)
		}
		all[i], ours = tree, append(ours, tree)
	}
	return all, ours, nil
}

func isBind(m *specs.Mount) bool {
	if m.Type == "bind" || m.Type == "rbind" {
		return true
	}
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Signal sends a signal to a container's first process.
func (k *conn) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	err := k.c.Signal(ctx, id, int(sig), false)
	if errs.Is(err, errs.Conflict) { // it has ended
		return errs.With(errs.NotFound, err)
	}
	return err
}

// States tells what the shim keeps.
func (k *conn) States(ctx context.Context) ([]sandbox.ProcState, error) {
	list, err := k.c.States(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]sandbox.ProcState, 0, len(list))
	for i := range list {
		s := &list[i]
		p := sandbox.ProcState{ID: idOf(s), Pid: s.Pid, StartedAt: s.StartedAt, Exited: s.Exited}
		if s.Exited {
			p.Exit = exitOf(s)
		}
		out = append(out, p)
	}
	return out, nil
}

// ReopenLog swaps the container's log.
func (k *conn) ReopenLog(ctx context.Context, id string, log *os.File) error {
	return k.c.ReopenLog(ctx, id, log)
}

// Attach joins the container's streams.
func (k *conn) Attach(ctx context.Context, id string, stdin, stdout, stderr bool) (*sandbox.Attached, error) {
	in, out, errOut, err := k.c.Attach(ctx, id, shim.AttachRequest{Stdin: stdin, Stdout: stdout, Stderr: stderr})
	if err != nil {
		return nil, err
	}
	at := &sandbox.Attached{} // a nil file would be an interface that is not nil
	if in != nil {
		at.Stdin = in
	}
	if out != nil {
		at.Stdout = out
	}
	if errOut != nil {
		at.Stderr = errOut
	}
	return at, nil
}

// Resize sets the size of a container's terminal.
func (k *conn) Resize(ctx context.Context, id string, z sandbox.Size) error {
	return k.c.Resize(ctx, id, z.Width, z.Height)
}

// CloseStdin ends a container's standard input.
func (k *conn) CloseStdin(ctx context.Context, id string) error { return k.c.CloseStdin(ctx, id) }

// Forget drops an exited container.
func (k *conn) Forget(ctx context.Context, id string) error { return k.c.Forget(ctx, id) }

// Shutdown ends the shim and everything it still runs, and waits for its death.
func (k *conn) Shutdown(ctx context.Context) error {
	if err := k.c.Kill(ctx); err != nil && !errs.Is(err, errs.Unavailable) {
		return err
	}
	select {
	case <-k.c.Done():
		return nil
	case <-ctx.Done():
		return errs.New(errs.Timeout, "end shim (process %d): it lives on: %w", k.Pid(), context.Cause(ctx))
	}
}
