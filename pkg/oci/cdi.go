package oci

import (
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

// cdi lets the registry edit the spec for the devices of the request.
func (t *translation) cdi() error {
	var names []string
	for i, d := range t.Config.GetCDIDevices() {
		if d.GetName() == "" {
			return errs.New(errs.Invalid, "%s.name: empty", indexed("CDI_devices", i))
		}
		names = append(names, d.GetName())
	}
	if len(names) == 0 {
		return nil
	}
	if t.CDI == nil {
		return errs.New(errs.Unsupported, "CDI_devices: %q was asked for, and CDI is switched off", names)
	}
	unknown, err := t.CDI.InjectDevices(t.spec, names...)
	if len(unknown) > 0 {
		return errs.New(errs.NotFound, "CDI_devices: no CDI spec on the node defines %q", unknown)
	}
	if err != nil {
		return errs.New(errs.Invalid, "CDI_devices: %q: %w", names, err)
	}
	t.findImageVolumes()
	t.user.groups = t.spec.Process.User.AdditionalGids // devices may come with groups
	return t.tellUser()
}

// findImageVolumes looks their mounts up again: the library sorts the list.
func (t *translation) findImageVolumes() {
	for i, v := range t.out.ImageVolumes {
		dest := t.Config.GetMounts()[v.Request].GetContainerPath()
		t.out.ImageVolumes[i].Index = slices.IndexFunc(t.spec.Mounts, func(m specs.Mount) bool {
			return m.Source == "" && m.Destination == path.Clean(dest)
		})
	}
}
