package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// pod launches as a shim and its daemon do: no program of ours is started for a container or an exec. It stands
// in a mount namespace with the host's mounts; a shim's has fewer.
type pod struct {
	b        *bundle
	holder   *launch.Process
	standing *launch.Process
	spec     *specs.Spec // of containers, which join the holder's namespaces
	opts     runtime.Options
}

// podTypes are the namespaces that a pod's containers share.
var podTypes = []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace}

func newPod(b *bundle) (*pod, error) {
	prep, err := runtime.PrepareHolder(context.Background(), runtime.HolderOptions{ID: "pod", Namespaces: podTypes, Hostname: "pod", Clamp: true})
	if err != nil {
		return nil, err
	}
	p := &pod{b: b}
	if p.holder, err = start(prep); err != nil {
		return nil, err
	}
	s := *b.spec
	proc, linux := *s.Process, *s.Linux
	s.Process, s.Linux, s.Hostname = &proc, &linux, ""
	linux.Namespaces = slices.Clone(linux.Namespaces)
	p.spec = &s
	p.opts = runtime.Options{ID: "in-process", Bundle: b.dir, Namespaces: map[specs.LinuxNamespaceType]*os.File{}, Clamp: true}
	for _, t := range podTypes {
		p.opts.Namespaces[t] = p.holder.Pidfd
	}
	proc.Args = []string{"/bin/sleep", "1000000"}
	p.standing, err = p.launch("standing-in-process")
	proc.Args = []string{"/bin/true"}
	return p, errors.Join(err)
}

func start(p *runtime.Prepared) (*launch.Process, error) {
	defer p.Close()
	proc, err := launch.Start(&p.Request, p.Files, [3]*os.File{})
	return proc, p.Explain(err)
}

// launch makes a container: cgroup with limits, program, process.
func (p *pod) launch(id string) (*launch.Process, error) {
	g, err := p.b.host.Create(p.b.cgroup+"/"+id, cgroup.CreateOptions{})
	if err != nil {
		return nil, err
	}
	if err := g.Apply(p.spec.Linux.Resources); err != nil {
		return nil, err
	}
	o := p.opts
	o.Spec, o.Cgroup = p.spec, g
	prep, err := runtime.Prepare(context.Background(), o)
	if err != nil {
		return nil, err
	}
	return start(prep)
}

// run is the whole life of a container, its cgroup included.
func (p *pod) run(id string) error {
	proc, err := p.launch(id)
	if err != nil {
		return err
	}
	if err := reap(proc); err != nil {
		return err
	}
	g, err := p.b.host.At(p.b.cgroup + "/" + id)
	if err != nil {
		return err
	}
	return g.Vanish(context.Background())
}

func (p *pod) exec(string) error {
	g, err := p.b.host.At(p.b.cgroup + "/standing-in-process")
	if err != nil {
		return err
	}
	prep, err := runtime.PrepareExec(context.Background(), runtime.ExecOptions{
		ID: "in-process", Spec: p.spec, Process: p.spec.Process, Pid: p.standing.Pid, Pidfd: p.standing.Pidfd, Cgroup: g, Clamp: true,
	})
	if err != nil {
		return err
	}
	proc, err := start(prep)
	if err != nil {
		return err
	}
	return reap(proc)
}

func reap(proc *launch.Process) error {
	defer proc.Close()
	ws, err := proc.Wait()
	if err == nil && launch.ExitCode(ws) != 0 {
		err = errors.New("the container's process failed")
	}
	return err
}

func (p *pod) close() {
	for _, proc := range []*launch.Process{p.standing, p.holder} {
		if proc != nil {
			_ = proc.Kill(unix.SIGKILL)
			_, _ = proc.Wait()
			proc.Close()
		}
	}
}

// timed is a turn of do.
func timed(do func() error) (cost, error) {
	var c cost
	cpu, begun := used(), time.Now()
	err := do()
	c.wall = time.Since(begun)
	c.cpu = used() - cpu
	return c, err
}

// used is the processor time of this process and of what it has waited for.
func used() time.Duration {
	var all time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			all += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return all
}
