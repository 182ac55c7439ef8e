package oci

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/cri-server/cri-server/pkg/errs"
)

// requestedMount is a mount of the request as the spec has it.
type requestedMount struct {
	specs.Mount
	request int            // index in the request
	image   *cri.ImageSpec // nil for host paths
	subPath string
}

// requestedMounts translates config.mounts in their order, and copies them for the status.
func (t *translation) requestedMounts() ([]requestedMount, error) {
	var out []requestedMount
	for i, m := range t.Config.GetMounts() {
		field := indexed("mounts", i)
		rm, err := t.requestedMount(field, m)
		if err != nil {
			return nil, err
		}
		rm.request = i
		out = append(out, rm)
		t.out.Mounts = append(t.out.Mounts, proto.Clone(m).(*cri.Mount))
	}
	return out, nil
}

func (t *translation) requestedMount(field string, m *cri.Mount) (requestedMount, error) {
	dest := m.GetContainerPath()
	if !path.IsAbs(dest) {
		return requestedMount{}, errs.New(errs.Invalid, "%s.container_path: %q is not absolute", field, dest)
	}
	if err := checkText(field+".container_path", dest); err != nil {
		return requestedMount{}, err
	}
	if dest = path.Clean(dest); dest == "/" {
		return requestedMount{}, errs.New(errs.Invalid, "%s.container_path: a mount over the root directory would hide the image", field)
	}
	extra, err := mountOptions(field, m.GetMountOptions())
	if err != nil {
		return requestedMount{}, err
	}
	rm := requestedMount{Mount: specs.Mount{Destination: dest, Type: "bind"}}
	if m.GetImage().GetImage() != "" || m.GetImageSubPath() != "" {
		rm.image, rm.subPath = m.GetImage(), m.GetImageSubPath()
		rm.Options = append([]string{"rbind", "rprivate", "ro"}, extra...)
		return rm, checkImageVolume(field, m)
	}
	if rm.Source, err = resolveHostPath(field, m.GetHostPath()); err != nil {
		return requestedMount{}, err
	}
	access, err := t.mountAccess(field, m)
	if err != nil {
		return requestedMount{}, err
	}
	propagation, err := t.propagation(field, m, rm.Source)
	if err != nil {
		return requestedMount{}, err
	}
	rm.Options = slices.Concat([]string{"rbind", propagation}, access, extra)
	if rm.UIDMappings, rm.GIDMappings, err = t.mountMappings(field, m); err != nil {
		return requestedMount{}, err
	}
	if m.GetSelinuxRelabel() && t.spec.Linux.MountLabel != "" {
		t.out.Relabel = append(t.out.Relabel, Relabel{Path: rm.Source, Label: t.spec.Linux.MountLabel})
	}
	return rm, nil
}

// checkImageVolume holds image mounts to what the CRI defines. The kubelet looks for the text's prefix.
func checkImageVolume(field string, m *cri.Mount) error {
	fail := func(format string, args ...any) error {
		args = append([]any{crierrors.ErrImageVolumeMountFailed, field}, args...)
		return errs.New(errs.Invalid, "%w: %s."+format, args...)
	}
	sub := m.GetImageSubPath()
	switch {
	case m.GetImage().GetImage() == "":
		return fail("image_sub_path: %q without an image", sub)
	case m.GetHostPath() != "":
		return fail("host_path: %q together with image %q; only one can be mounted", m.GetHostPath(), m.GetImage().GetImage())
	case !m.GetReadonly():
		return fail("readonly: false; an image is mounted read-only")
	case m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE:
		return fail("propagation: %s; an image is mounted private", m.GetPropagation())
	case path.IsAbs(sub), slices.Contains(strings.Split(sub, "/"), ".."), strings.ContainsRune(sub, 0):
		return fail("image_sub_path: %q leaves the image", sub)
	}
	return nil
}

// resolveHostPath follows links on the node, as the CRI wants, and names what does not exist.
func resolveHostPath(field, hostPath string) (string, error) {
	if !path.IsAbs(hostPath) {
		return "", errs.New(errs.Invalid, "%s.host_path: %q is not absolute", field, hostPath)
	}
	if err := checkText(field+".host_path", hostPath); err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(hostPath)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", errs.New(errs.NotFound, "%s.host_path: %q does not exist on the node", field, hostPath)
	case err != nil:
		return "", errs.New(errs.Invalid, "%s.host_path: %q: %w", field, hostPath, err)
	}
	return resolved, nil
}

// mountAccess gives ro, rw, or both ro and rro: a runtime that does not know rro then at least does ro.
func (t *translation) mountAccess(field string, m *cri.Mount) ([]string, error) {
	switch {
	case !m.GetRecursiveReadOnly() && m.GetReadonly():
		return []string{"ro"}, nil
	case !m.GetRecursiveReadOnly():
		return []string{"rw"}, nil
	case !m.GetReadonly():
		return nil, errs.New(errs.Invalid, "%s.recursive_read_only: true without readonly", field)
	case m.GetPropagation() != cri.MountPropagation_PROPAGATION_PRIVATE:
		return nil, errs.New(errs.Invalid, "%s.recursive_read_only: true with propagation %s; it must be private", field, m.GetPropagation())
	case !t.Host.RRO:
		return nil, errs.New(errs.Unsupported, "%w: %s.recursive_read_only: this kernel has no mount_setattr(2). Linux 5.12 or newer is needed",
			crierrors.ErrRROUnsupported, field)
	}
	return []string{"ro", "rro"}, nil
}

// mountOptions holds mount_options to those that take rights away.
func mountOptions(field string, in []string) ([]string, error) {
	var out []string
	for i, o := range in {
		switch o {
		case "noexec", "nodev", "nosuid":
			if !slices.Contains(out, o) {
				out = append(out, o)
			}
		default:
			return nil, errs.New(errs.Invalid, "%s: %q; noexec, nodev and nosuid are supported", indexed(field+".mount_options", i), o)
		}
	}
	return out, nil
}

// propagation translates the mode and checks that the mount the source lies on can do it: without a peer
// group on the node nothing would ever propagate, and nobody would notice.
func (t *translation) propagation(field string, m *cri.Mount, source string) (string, error) {
	mode := m.GetPropagation()
	if mode == cri.MountPropagation_PROPAGATION_PRIVATE {
		return "rprivate", nil
	}
	info, err := mountOf(source)
	if err != nil {
		return "", errs.New(errs.Unknown, "%s.propagation: find the mount of %s: %w", field, source, err)
	}
	shared, slave := hasTag(info.Optional, "shared:"), hasTag(info.Optional, "master:")
	root := &t.spec.Linux.RootfsPropagation
	switch mode {
	case cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if !shared && !slave {
			return "", errs.New(errs.Invalid, "%s.propagation: %s lies on %s, which is neither a shared nor a slave mount. Make it one, for example with \"mount --make-rshared %s\"",
				field, source, info.Mountpoint, info.Mountpoint)
		}
		if *root == "" {
			*root = "rslave"
		}
		return "rslave", nil
	case cri.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if !shared {
			return "", errs.New(errs.Invalid, "%s.propagation: %s lies on %s, which is not a shared mount. Make it one, for example with \"mount --make-rshared %s\"",
				field, source, info.Mountpoint, info.Mountpoint)
		}
		*root = "rshared"
		return "rshared", nil
	}
	return "", errs.New(errs.Invalid, "%s.propagation: no such mode %d", field, mode)
}

// mountOf finds the topmost mount that path lies on.
func mountOf(path string) (*mountinfo.Info, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return !within(i.Mountpoint, path), false })
	if err != nil {
		return nil, err
	}
	var best *mountinfo.Info
	for _, i := range infos {
		if best == nil || len(i.Mountpoint) >= len(best.Mountpoint) {
			best = i
		}
	}
	if best == nil {
		return nil, errors.New("no mount holds it")
	}
	return best, nil
}

func hasTag(optional, tag string) bool {
	return slices.ContainsFunc(strings.Fields(optional), func(f string) bool { return strings.HasPrefix(f, tag) })
}

// mountMappings translates an ID-mapped mount. It needs a pod with a user namespace and both kinds of map.
func (t *translation) mountMappings(field string, m *cri.Mount) (uids, gids []specs.LinuxIDMapping, err error) {
	uids, gids = idMappings(m.GetUidMappings()), idMappings(m.GetGidMappings())
	switch {
	case len(uids) == 0 && len(gids) == 0:
		return nil, nil, nil
	case len(uids) == 0, len(gids) == 0:
		return nil, nil, errs.New(errs.Invalid, "%s: uidMappings and gidMappings must be given together", field)
	case !t.pod.userns():
		return nil, nil, errs.New(errs.Invalid, "%s.uidMappings: given in a pod without a user namespace", field)
	}
	for _, list := range [][]specs.LinuxIDMapping{uids, gids} {
		for _, id := range list {
			if id.Size == 0 || uint64(id.HostID)+uint64(id.Size)-1 > maxID || uint64(id.ContainerID)+uint64(id.Size)-1 > maxID {
				return nil, nil, errs.New(errs.Invalid, "%s: mapping %+v is empty or past the last ID", field, id)
			}
		}
	}
	return uids, gids, nil
}
