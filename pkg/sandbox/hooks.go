package sandbox

import (
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime"
)

// placeHooks gives a container whose hooks see the node's files a place there for its root filesystem, and
// refuses hooks that nobody would run: a shim has only those that the program of a container runs itself.
func (m *Manager) placeHooks(pod, id string, spec *specs.Spec) error {
	h := spec.Hooks
	if h == nil {
		return nil
	}
	if err := runtime.CheckHooks(h); err != nil {
		return err
	}
	for _, k := range []struct {
		name string
		list []specs.Hook
	}{
		{"prestart", h.Prestart}, {"createRuntime", h.CreateRuntime}, {"poststart", h.Poststart}, {"poststop", h.Poststop}, //nolint:staticcheck // prestart is deprecated, and in use
	} {
		if len(k.list) > 0 {
			return errs.New(errs.Unsupported, "CDI_devices: %s hook %s: containers of pods have createContainer and startContainer hooks only", k.name, k.list[0].Path)
		}
	}
	if len(h.CreateContainer) == 0 {
		return nil
	}
	if spec.Linux != nil && len(spec.Linux.UIDMappings) > 0 {
		return errs.New(errs.Unsupported, "CDI_devices: createContainer hook %s: not in pods with a user namespace", h.CreateContainer[0].Path)
	}
	spec.Root.Path = filepath.Join(m.dirs.bundle(pod, id), "rootfs")
	return nil
}
