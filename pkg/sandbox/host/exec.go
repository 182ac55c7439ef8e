package host

import (
	"context"
	"os"
	"syscall"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/shim"
)

// Exec launches a process in a container.
func (k *conn) Exec(ctx context.Context, r *sandbox.ExecRequest) (sandbox.Process, error) {
	g, err := k.m.cgroups.At(r.CgroupPath)
	if err != nil {
		return nil, err
	}
	p, err := runtime.PrepareExec(ctx, runtime.ExecOptions{
		ID: r.ContainerID, Spec: r.Spec, Process: r.Process, Pid: r.Pid, Cgroup: g, Clamp: true, StdioOwner: true,
	})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	e, err := k.c.Exec(ctx, shim.ExecRequest{
		ID: r.ID, ContainerID: r.ContainerID, Launch: &p.Request, Files: p.Files, Stdio: r.Stdio, TTY: r.Process.Terminal,
	})
	if err != nil {
		return nil, p.Explain(err)
	}
	x := &process{e: e}
	if e.Console != nil {
		if x.console, err = pollable(e.Console); err != nil {
			_ = x.KillTree(ctx)
			e.Console.Close()
			return nil, err
		}
	}
	return x, nil
}

// process is an exec in pkg/sandbox's terms.
type process struct {
	e       *shim.Exec
	console *os.File
}

func (p *process) Pid() int          { return p.e.Pid }
func (p *process) Console() *os.File { return p.console }

// Wait blocks until the process has ended.
func (p *process) Wait(ctx context.Context) (sandbox.Exit, error) {
	s, err := p.e.Wait(ctx)
	return sandbox.Exit{Code: int32(s.ExitCode), At: s.FinishedAt}, err
}

// KillTree kills the process, its descendants and its session.
func (p *process) KillTree(ctx context.Context) error {
	err := p.e.KillAll(ctx, int(syscall.SIGKILL))
	if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Conflict) {
		return nil
	}
	return err
}

// Resize sets the terminal's size.
func (p *process) Resize(z sandbox.Size) error { return p.e.Resize(z.Width, z.Height) }

// Close closes the terminal.
func (p *process) Close() error {
	if p.console != nil {
		p.console.Close()
		p.e.Console.Close()
	}
	return nil
}
