package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Points in a container's life at which hooks of the runtime's namespaces run.
type point int

const (
	hooksBefore  point = iota // prestart and createRuntime: the namespaces stand, the program does not run
	hooksStarted              // poststart
	hooksStopped              // poststop
)

// hookOutput are the files that hooks inside a container write to, below its directory: they outlive the
// command that opens them. Without such hooks there are none.
func (c *container) hookOutput(h *specs.Hooks) (out [2]*os.File, err error) {
	if h == nil || len(h.StartContainer) == 0 {
		return out, nil
	}
	for i, name := range []string{"hook.stdout", "hook.stderr"} {
		if out[i], err = os.OpenFile(filepath.Join(c.dir, name), os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600); err != nil {
			return out, err
		}
	}
	return out, nil
}

// hooksInBetween moves network devices and runs the hooks that are due while the program waits in the
// launcher's root, and lets it go on to its gate.
func (cr *creation) hooksInBetween() error {
	if !cr.prep.Request.Stop {
		return nil
	}
	cr.c.Pid = cr.proc.Pid
	err := cr.moveNetDevices()
	if err == nil {
		err = cr.c.runHooks(cr.config.Hooks, statusCreated, hooksBefore)
	}
	if err != nil {
		_ = cr.proc.Close()
		return err
	}
	if err := cr.prep.Explain(cr.proc.Continue()); err != nil {
		return notStarted(err)
	}
	return nil
}

func (cr *creation) moveNetDevices() error {
	if len(cr.config.Linux.NetDevices) == 0 {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cr.proc.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	return runtime.MoveNetDevices(cr.config.Linux.NetDevices, ns)
}

// started runs poststart hooks. The process is to be killed when one fails (runtime.md, lifecycle, step 9).
func (c *container) started(h *specs.Hooks) error {
	err := c.runHooks(h, statusRunning, hooksStarted)
	if err == nil {
		return nil
	}
	if e := c.signal(unix.SIGKILL, false); e != nil && !errors.Is(e, errNotRunning) {
		c.app.log.warn("stop container %s: %v", c.ID, e)
	}
	return err
}

// stopped runs poststop hooks, whose failures do no more than warn.
func (c *container) stopped(h *specs.Hooks) {
	if err := c.runHooks(h, statusStopped, hooksStopped); err != nil {
		c.app.log.warn("%v", err)
	}
}

// runHooks runs a point's hooks one after the other, each with the container's state on its standard
// input. The first failure ends it, but for poststop hooks, which all run; then the first error is
// returned.
func (c *container) runHooks(h *specs.Hooks, status string, at point) error {
	if h == nil {
		return nil
	}
	var kinds []hookKind
	switch at {
	case hooksBefore:
		kinds = []hookKind{{"prestart", h.Prestart}, {"createRuntime", h.CreateRuntime}} //nolint:staticcheck // prestart is deprecated, and in use
	case hooksStarted:
		kinds = []hookKind{{"poststart", h.Poststart}}
	case hooksStopped:
		kinds = []hookKind{{"poststop", h.Poststop}}
	}
	state := specs.State{Version: specs.Version, ID: c.ID, Status: specs.ContainerState(status), Pid: c.Pid, Bundle: c.Bundle, Annotations: c.Annotations}
	if status == statusStopped {
		state.Pid = 0
	}
	input, err := json.Marshal(state)
	if err != nil {
		return err
	}
	dir := c.Bundle
	if at == hooksStopped { // it may be gone
		dir = ""
	}
	var first error
	for _, k := range kinds {
		for i := range k.list {
			err := runHook(&k.list[i], dir, input)
			if err == nil {
				continue
			}
			err = fmt.Errorf("error running %s hook #%d: %w", k.name, i, err)
			if at != hooksStopped {
				return err
			}
			if first == nil {
				first = err
			}
		}
	}
	return first
}

// hookKind is one of the lists of a configuration's hooks.
type hookKind struct {
	name string
	list []specs.Hook
}

// runHook runs one hook in the runtime's own namespaces: in dir, "" for where we are, and with our environment unless it
// has one of its own, as other runtimes do.
func runHook(h *specs.Hook, dir string, input []byte) error {
	ctx := context.Background()
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Dir, cmd.Env = dir, h.Env
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := sys.Spawn(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("hook ran past specified timeout of %.1fs", float64(*h.Timeout))
	case err != nil && cmd.ProcessState != nil:
		return fmt.Errorf("%w, stdout: %s, stderr: %s", err, stdout.String(), stderr.String())
	}
	return err
}
