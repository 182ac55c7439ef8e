package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

// sweepRun ends everything that lives in a run directory without a pod, and removes it.
func (m *Manager) sweepRun(ctx context.Context, id string) error {
	var parents []string
	names, err := readNames(m.dirs.run(id))
	if err != nil {
		return err
	}
	for _, name := range names {
		if path := m.bundleCgroup(id, name); path != "" {
			parents = append(parents, filepath.Dir(path))
			if err := m.shims.RemoveCgroup(ctx, path); err != nil {
				return err
			}
		}
	}
	switch shim, err := m.shims.Dial(ctx, id, m.dirs.run(id)); {
	case err == nil:
		if err := shim.Shutdown(ctx); err != nil {
			shim.Close()
			return err
		}
		shim.Close()
	case !errs.Is(err, errs.NotFound):
		return err
	}
	if err := m.removeOwn(ctx, id, parents); err != nil {
		return err
	}
	return m.discard(m.dirs.stateTrash(), m.dirs.run(id))
}

// sweepContainer ends a container whose record is torn.
func (m *Manager) sweepContainer(ctx context.Context, podID, id string) error {
	if path := m.bundleCgroup(podID, id); path != "" {
		if err := m.shims.RemoveCgroup(ctx, path); err != nil {
			return err
		}
	}
	if shim, _ := m.live.pod(podID).get(); shim != nil {
		_ = shim.Forget(ctx, id) // it forgets once it has seen the end
	}
	return errors.Join(m.images.ReleaseImage(id), m.images.RemoveRootfs(ctx, id), m.discard(m.dirs.stateTrash(), m.dirs.bundle(podID, id)))
}

// bundleCgroup is the cgroup that a bundle names, "" where there is no bundle.
func (m *Manager) bundleCgroup(podID, id string) string {
	data, err := os.ReadFile(m.dirs.spec(podID, id))
	if err != nil {
		return ""
	}
	var spec specs.Spec
	if json.Unmarshal(data, &spec) != nil || spec.Linux == nil {
		return ""
	}
	return spec.Linux.CgroupsPath
}
