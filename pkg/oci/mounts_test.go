package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestHostPathLinksAreFollowed(t *testing.T) {
	dir := realTempDir(t)
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	os.Symlink("real", filepath.Join(dir, "link"))
	in := input(t)
	in.Config.Mounts = []*cri.Mount{{HostPath: filepath.Join(dir, "link"), ContainerPath: "/data/"}}
	out := mustTranslate(t, in)
	m := hasMount(out.Spec, "/data")
	if m == nil || m.Source != filepath.Join(dir, "real") || !slices.Equal(m.Options, []string{"rbind", "rprivate", "rw"}) {
		t.Errorf("mount %+v", m)
	}
	if got := out.Mounts[0]; got.GetHostPath() != filepath.Join(dir, "link") || got.GetContainerPath() != "/data/" {
		t.Errorf("the status does not show the request's mount: %v", got)
	}
}

func realTempDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestMountsRefused(t *testing.T) {
	one := func(m *cri.Mount) func(*ContainerInput) {
		return func(in *ContainerInput) { in.Config.Mounts = []*cri.Mount{{HostPath: "/", ContainerPath: "/ok"}, m} }
	}
	img := &cri.ImageSpec{Image: "sha256:x"}
	maps := []*cri.IDMapping{{HostId: 1, Length: 1}}
	slave, shared := cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
	checkRefusals(t, map[string]refusal{
		"missing host path":           {one(&cri.Mount{HostPath: "/no/such/path", ContainerPath: "/x"}), errs.NotFound, []string{"mounts[1].host_path", "/no/such/path"}},
		"host path below a file":      {one(&cri.Mount{HostPath: "/proc/version/x", ContainerPath: "/x"}), errs.Invalid, []string{"mounts[1].host_path"}},
		"no host path":                {one(&cri.Mount{ContainerPath: "/x"}), errs.Invalid, []string{"mounts[1].host_path"}},
		"relative host path":          {one(&cri.Mount{HostPath: "proc", ContainerPath: "/x"}), errs.Invalid, []string{"mounts[1].host_path"}},
		"no container path":           {one(&cri.Mount{HostPath: "/"}), errs.Invalid, []string{"mounts[1].container_path"}},
		"relative container path":     {one(&cri.Mount{HostPath: "/", ContainerPath: "x"}), errs.Invalid, []string{"container_path", `"x"`}},
		"over the root":               {one(&cri.Mount{HostPath: "/", ContainerPath: "/a/.."}), errs.Invalid, []string{"container_path"}},
		"NUL":                         {one(&cri.Mount{HostPath: "/", ContainerPath: "/a\x00"}), errs.Invalid, []string{"container_path", "NUL"}},
		"rro without readonly":        {one(&cri.Mount{HostPath: "/", ContainerPath: "/x", RecursiveReadOnly: true}), errs.Invalid, []string{"recursive_read_only"}},
		"rro with slave":              {one(&cri.Mount{HostPath: "/", ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: slave}), errs.Invalid, []string{"recursive_read_only", "HOST_TO_CONTAINER"}},
		"rro with shared":             {one(&cri.Mount{HostPath: "/", ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: shared}), errs.Invalid, []string{"recursive_read_only", "BIDIRECTIONAL"}},
		"unknown option":              {one(&cri.Mount{HostPath: "/", ContainerPath: "/x", MountOptions: []string{"nodev", "exec"}}), errs.Invalid, []string{"mount_options[1]", `"exec"`}},
		"no such propagation":         {one(&cri.Mount{HostPath: "/", ContainerPath: "/x", Propagation: 9}), errs.Invalid, []string{"propagation"}},
		"maps without user ns":        {one(&cri.Mount{HostPath: "/", ContainerPath: "/x", UidMappings: maps, GidMappings: maps}), errs.Invalid, []string{"uidMappings"}},
		"uid map alone":               {one(&cri.Mount{HostPath: "/", ContainerPath: "/x", UidMappings: maps}), errs.Invalid, []string{"gidMappings"}},
		"image and host path":         {one(&cri.Mount{HostPath: "/", Image: img, ContainerPath: "/x", Readonly: true}), errs.Invalid, []string{"ImageVolumeMountFailed: mounts[1]", "host_path"}},
		"writable image":              {one(&cri.Mount{Image: img, ContainerPath: "/x"}), errs.Invalid, []string{"ImageVolumeMountFailed", "readonly"}},
		"shared image":                {one(&cri.Mount{Image: img, ContainerPath: "/x", Readonly: true, Propagation: shared}), errs.Invalid, []string{"ImageVolumeMountFailed", "propagation"}},
		"image sub path climbs":       {one(&cri.Mount{Image: img, ContainerPath: "/x", Readonly: true, ImageSubPath: "a/../../b"}), errs.Invalid, []string{"ImageVolumeMountFailed", "image_sub_path"}},
		"image sub path absolute":     {one(&cri.Mount{Image: img, ContainerPath: "/x", Readonly: true, ImageSubPath: "/etc"}), errs.Invalid, []string{"ImageVolumeMountFailed", "image_sub_path"}},
		"sub path without image":      {one(&cri.Mount{HostPath: "/", ContainerPath: "/x", Readonly: true, ImageSubPath: "a"}), errs.Invalid, []string{"ImageVolumeMountFailed", "image_sub_path"}},
		"shared from a private mount": {one(&cri.Mount{HostPath: privateMount(t), ContainerPath: "/x", Propagation: shared}), errs.Invalid, []string{"mounts[1].propagation", "not a shared mount"}},
		"kernel without rro": {func(in *ContainerInput) {
			in.Host.RRO = false
			in.Config.Mounts = []*cri.Mount{{HostPath: "/", ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true}}
		}, errs.Unsupported, []string{"RROUnsupported: mounts[0]"}},
	})
}

// privateMount finds a mount point whose mount is not shared.
func privateMount(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/proc", "/sys", "/dev", "/"} {
		if m, err := mountOf(p); err == nil && !hasTag(m.Optional, "shared:") {
			return p
		}
	}
	t.Skip("every mount of this machine is shared, so none can be refused")
	return ""
}

func TestRequestedMountsReplaceOurs(t *testing.T) {
	dests := func(spec *specs.Spec) []string {
		var out []string
		for _, m := range spec.Mounts {
			out = append(out, m.Destination)
		}
		return out
	}
	for name, c := range map[string]struct {
		paths []string
		want  string
	}{
		"none":            {nil, "/proc /dev /dev/pts /dev/mqueue /sys /sys/fs/cgroup /dev/shm /etc/hostname /etc/hosts /etc/resolv.conf"},
		"hosts":           {[]string{"/etc/hosts", "/dev/shm/"}, "/proc /dev /dev/pts /dev/mqueue /sys /sys/fs/cgroup /etc/hostname /etc/resolv.conf /etc/hosts /dev/shm"},
		"dev":             {[]string{"/dev"}, "/proc /sys /sys/fs/cgroup /etc/hostname /etc/hosts /etc/resolv.conf /dev"},
		"etc and sys":     {[]string{"/etc", "/sys"}, "/proc /dev /dev/pts /dev/mqueue /dev/shm /etc /sys"},
		"similar names":   {[]string{"/device", "/etc/hosts2"}, "/proc /dev /dev/pts /dev/mqueue /sys /sys/fs/cgroup /dev/shm /etc/hostname /etc/hosts /etc/resolv.conf /device /etc/hosts2"},
		"parents first":   {[]string{"/a/b/c", "/a", "/a/b", "/z"}, "/proc /dev /dev/pts /dev/mqueue /sys /sys/fs/cgroup /dev/shm /etc/hostname /etc/hosts /etc/resolv.conf /a /z /a/b /a/b/c"},
		"below a default": {[]string{"/dev/pts/x"}, "/proc /dev /dev/pts /dev/mqueue /sys /sys/fs/cgroup /dev/shm /etc/hostname /etc/hosts /etc/resolv.conf /dev/pts/x"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			for _, p := range c.paths {
				in.Config.Mounts = append(in.Config.Mounts, &cri.Mount{HostPath: "/", ContainerPath: p})
			}
			if diff := cmp.Diff(strings.Fields(c.want), dests(mustTranslate(t, in).Spec)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestImageVolumes(t *testing.T) {
	in := input(t)
	in.Config.Mounts = []*cri.Mount{
		{HostPath: "/", ContainerPath: "/deep/er/still"},
		{Image: &cri.ImageSpec{Image: "img"}, ContainerPath: "/vol", Readonly: true, ImageSubPath: "sub/dir", MountOptions: []string{"noexec", "noexec"}},
		{HostPath: "/", ContainerPath: "/a"},
	}
	out := mustTranslate(t, in)
	if len(out.ImageVolumes) != 1 {
		t.Fatalf("image volumes %+v", out.ImageVolumes)
	}
	v := out.ImageVolumes[0]
	m := out.Spec.Mounts[v.Index]
	if v.Request != 1 || v.Image != "img" || v.SubPath != "sub/dir" || m.Destination != "/vol" || !slices.Equal(m.Options, []string{"rbind", "rprivate", "ro", "noexec"}) {
		t.Errorf("%+v at %+v", v, m)
	}
}

func TestPodFilesFollowTheRootFilesystem(t *testing.T) {
	in := input(t)
	in.security().ReadonlyRootfs = true
	spec := mustTranslate(t, in).Spec
	if m := hasMount(spec, "/etc/hosts"); !slices.Contains(m.Options, "ro") {
		t.Errorf("with a read-only root /etc/hosts is %v", m.Options)
	}
	if m := hasMount(spec, "/dev/shm"); slices.Contains(m.Options, "ro") {
		t.Errorf("/dev/shm is %v", m.Options)
	}
	in.Files = PodFiles{}
	if m := hasMount(mustTranslate(t, in).Spec, "/etc/hosts"); m != nil {
		t.Errorf("a file that is not there is mounted: %+v", m)
	}
}

func TestMountsInUserNamespaces(t *testing.T) {
	in := usernsInput(t)
	maps := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
	in.Config.Mounts = []*cri.Mount{{HostPath: "/", ContainerPath: "/x", UidMappings: maps, GidMappings: maps}}
	in.Config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/n", Permissions: "r"}, {HostPath: "/dev/null", ContainerPath: "/opt/n", Permissions: "r"}}
	spec := mustTranslate(t, in).Spec
	if m := hasMount(spec, "/x"); len(m.UIDMappings) != 1 || m.UIDMappings[0].HostID != 100000 || len(m.GIDMappings) != 1 {
		t.Errorf("%+v", m)
	}
	for _, dest := range []string{"/opt/n", "/dev/n"} {
		if m := hasMount(spec, dest); m == nil || m.Source != "/dev/null" || len(spec.Linux.Devices) != 0 {
			t.Errorf("device %s loses its owner: %+v, %+v", dest, m, spec.Linux.Devices)
		}
	}
	in.Defaults.DeviceOwnerFromUser = true
	owned := mustTranslate(t, in).Spec
	if d := owned.Linux.Devices; len(d) != 1 || d[0].Path != "/dev/n" || hasMount(owned, "/opt/n") == nil {
		t.Errorf("the user's devices: %+v", d)
	}
	if m := hasMount(spec, "/sys"); m.Type != "sysfs" {
		t.Errorf("/sys of a pod with its own network: %+v", m)
	}
	in.podSecurity().NamespaceOptions.Network = cri.NamespaceMode_NODE
	delete(in.Namespaces, specs.NetworkNamespace)
	delete(in.Namespaces, specs.UTSNamespace)
	if m := hasMount(mustTranslate(t, in).Spec, "/sys"); m.Type != "bind" || !slices.Contains(m.Options, "ro") {
		t.Errorf("/sys of a pod in the node's network: %+v", m)
	}
}

func TestPaths(t *testing.T) {
	in := input(t)
	masked := func() ([]string, []string) {
		l := mustTranslate(t, in).Spec.Linux
		return l.MaskedPaths, l.ReadonlyPaths
	}
	if m, r := masked(); !slices.Equal(m, defaultMaskedPaths) || !slices.Equal(r, defaultReadonlyPaths) {
		t.Errorf("without lists: %q, %q", m, r)
	}
	in.security().MaskedPaths = []string{"/proc/kcore", "/bin/../bin/ls"}
	if m, _ := masked(); !slices.Equal(m[:2], []string{"/proc/kcore", "/bin/ls"}) || !slices.Contains(m, "/sys/devices/virtual/powercap") || len(m) != len(defaultMaskedPaths)+1 {
		t.Errorf("lists are not joined: %q", m)
	}
	in.security().Privileged, in.podSecurity().Privileged, in.Defaults.PrivilegedWithoutHostDevices = true, true, true
	if m, r := masked(); m != nil || r != nil {
		t.Errorf("privileged: %q, %q", m, r)
	}
	in = usernsInput(t)
	if m, r := masked(); m != nil || r != nil {
		t.Errorf("an unmasked /proc in a user namespace: %q, %q", m, r)
	}
	checkRefusals(t, map[string]refusal{
		"relative masked path": {func(in *ContainerInput) { in.security().MaskedPaths = []string{"proc"} }, errs.Invalid, []string{"masked_paths[0]"}},
		"NUL in a path":        {func(in *ContainerInput) { in.security().ReadonlyPaths = []string{"/a", "/\x00"} }, errs.Invalid, []string{"readonly_paths[1]"}},
	})
}
