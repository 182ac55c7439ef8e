package sandbox

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
)

// cgroupParent is the cgroup that a pod asks to be below, "" for none. With the systemd driver it is a slice, of
// which a kubelet gives the name alone or the path.
func (m *Manager) cgroupParent(config *cri.PodSandboxConfig) (string, error) {
	path := filepath.Clean("/" + config.GetLinux().GetCgroupParent())
	if path == "/" {
		return "", nil
	}
	if !m.cfg.Systemd {
		return path, nil
	}
	slice, err := systemd.ExpandSlice(filepath.Base(path))
	if err != nil {
		return "", errs.New(errs.Invalid, "linux.cgroup_parent %q: the cgroup driver is systemd, so it is the name of a slice: %w. Give the kubelet the same driver",
			config.GetLinux().GetCgroupParent(), err)
	}
	return slice, nil
}

// placePod names the cgroups of a pod.
func (m *Manager) placePod(r *podRecord) error {
	parent, err := m.cgroupParent(r.Config.M)
	if err != nil {
		return err
	}
	r.CgroupParent = parent
	if parent == "" {
		r.CgroupParent, r.OwnsParent = m.ownParent(r.ID, m.cfg.Systemd), true
	}
	r.CgroupPath = leaf(r.CgroupParent, r.ID, m.cfg.Systemd)
	return nil
}

// ownParent is the cgroup above that of a pod which asks for none.
func (m *Manager) ownParent(id string, slice bool) string {
	if slice {
		above := Slice(m.cfg.CgroupRoot)
		return filepath.Join(above, strings.TrimSuffix(filepath.Base(above), ".slice")+"-pod"+id+".slice")
	}
	return filepath.Join("/", m.cfg.CgroupRoot, "pod"+id)
}

// Slice is the slice of a server's pods that ask for none. Its name is that of the cgroup root; a dash would put it below
// another slice.
func Slice(cgroupRoot string) string {
	return "/" + strings.NewReplacer("-", "_", "/", "_").Replace(strings.Trim(cgroupRoot, "/")) + ".slice"
}

// leaf is the cgroup of a container or a pod's holder. It ends in the ID, or is a scope with it.
func leaf(parent, id string, scope bool) string {
	if scope {
		return filepath.Join(parent, "cri-"+id+".scope")
	}
	return filepath.Join(parent, id)
}

// scoped reports whether the pod was made with the systemd driver: its containers are, whatever the driver is now.
func (r *podRecord) scoped() bool { return strings.HasSuffix(r.CgroupPath, ".scope") }

// removeOwn ends what a pod without a record may have in cgroups of either driver: its own in the parents that are
// known of, and the parent that it may have alone.
func (m *Manager) removeOwn(ctx context.Context, id string, parents []string) error {
	for _, scope := range []bool{false, true} {
		own := m.ownParent(id, scope)
		for _, parent := range append(parents[:len(parents):len(parents)], own) {
			if err := m.shims.RemoveCgroup(ctx, leaf(parent, id, scope)); err != nil {
				return err
			}
		}
		if err := m.shims.RemoveCgroup(ctx, own); err != nil {
			return err
		}
	}
	return nil
}

// trimOwn removes this server's own cgroups when no process is in them.
func (m *Manager) trimOwn(ctx context.Context) error {
	return errors.Join(m.shims.TrimCgroup(ctx, filepath.Join("/", m.cfg.CgroupRoot)), m.shims.TrimCgroup(ctx, Slice(m.cfg.CgroupRoot)))
}
