package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Points in a container's life at which hooks of the runtime's namespaces run.
type point int

const (
	hooksBefore  point = iota // prestart and createRuntime: the namespaces stand, the program does not run
	hooksStarted              // poststart
	hooksStopped              // poststop
)

// checkHooks refuses what would otherwise be left out in silence: hooks that run inside the container.
func checkHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	for name, list := range map[string][]specs.Hook{"createContainer": h.CreateContainer, "startContainer": h.StartContainer} {
		if len(list) > 0 {
			return errs.New(errs.Unsupported, "%s hooks (%s): hooks in the container's namespaces are not supported yet", name, list[0].Path)
		}
	}
	return nil
}

// runHooks runs a point's hooks one after the other, each with the container's state on its standard
// input. The first failure ends a point before the start; later ones all run, and the first error is
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
	var first error
	for _, k := range kinds {
		for i := range k.list {
			err := runHook(&k.list[i], input)
			if err == nil {
				continue
			}
			err = fmt.Errorf("error running %s hook #%d: %w", k.name, i, err)
			if at == hooksBefore {
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

// runHook runs one hook, in the runtime's own namespaces and with nothing of its environment.
func runHook(h *specs.Hook, input []byte) error {
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
	cmd.Env = append([]string{}, h.Env...)
	cmd.Stdin = bytes.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: hook ran past specified timeout of %d s", h.Path, *h.Timeout)
	case err != nil:
		return fmt.Errorf("%s: %w, output: %s", h.Path, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
