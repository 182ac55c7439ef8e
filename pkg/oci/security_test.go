package oci

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestCapabilities(t *testing.T) {
	def := DefaultCapabilities()
	without := func(list []string, names ...string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(names, s) })
	}
	with := func(list []string, names ...string) []string {
		return slices.Sorted(slices.Values(slices.Concat(list, names)))
	}
	for name, c := range map[string]struct {
		caps       *cri.Capability
		privileged bool
		own        map[string]bool
		want       []string
		ambient    []string
	}{
		"default":               {want: def},
		"add":                   {caps: &cri.Capability{AddCapabilities: []string{"NET_ADMIN", "cap_sys_time", "Net_Admin"}}, want: with(def, "CAP_NET_ADMIN", "CAP_SYS_TIME")},
		"drop":                  {caps: &cri.Capability{DropCapabilities: []string{"chown", "CAP_KILL", "SYS_BOOT"}}, want: without(def, "CAP_CHOWN", "CAP_KILL")},
		"drop wins":             {caps: &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"NET_ADMIN"}}, want: def},
		"drop all":              {caps: &cri.Capability{DropCapabilities: []string{"ALL"}}},
		"drop all, add one":     {caps: &cri.Capability{DropCapabilities: []string{"all"}, AddCapabilities: []string{"KILL"}}, want: []string{"CAP_KILL"}},
		"add all":               {caps: &cri.Capability{AddCapabilities: []string{"All"}}, want: allCapabilities},
		"add all, drop one":     {caps: &cri.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"SYS_ADMIN"}}, want: without(allCapabilities, "CAP_SYS_ADMIN")},
		"add all, drop all":     {caps: &cri.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"ALL"}}},
		"ambient":               {caps: &cri.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE", "SYS_NICE"}}, want: with(def, "CAP_SYS_NICE"), ambient: []string{"CAP_NET_BIND_SERVICE", "CAP_SYS_NICE"}},
		"ambient dropped":       {caps: &cri.Capability{AddAmbientCapabilities: []string{"KILL"}, DropCapabilities: []string{"KILL"}}, want: without(def, "CAP_KILL")},
		"ambient, rest dropped": {caps: &cri.Capability{AddAmbientCapabilities: []string{"KILL"}, DropCapabilities: []string{"ALL"}}, want: []string{"CAP_KILL"}, ambient: []string{"CAP_KILL"}},
		"ambient all":           {caps: &cri.Capability{AddAmbientCapabilities: []string{"ALL"}}, want: allCapabilities, ambient: allCapabilities},
		"privileged":            {privileged: true, caps: &cri.Capability{DropCapabilities: []string{"ALL"}}, want: allCapabilities},
		"daemon has few":        {own: map[string]bool{"CAP_CHOWN": true, "CAP_NET_ADMIN": true}, caps: &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}, AddAmbientCapabilities: []string{"SYS_TIME"}}, want: []string{"CAP_CHOWN", "CAP_NET_ADMIN"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			in.security().Capabilities, in.Host.Capabilities = c.caps, c.own
			in.security().Privileged, in.podSecurity().Privileged, in.Defaults.PrivilegedWithoutHostDevices = c.privileged, c.privileged, true
			got := mustTranslate(t, in).Spec.Process.Capabilities
			for set, pair := range map[string][2][]string{
				"bounding": {c.want, got.Bounding}, "permitted": {c.want, got.Permitted}, "effective": {c.want, got.Effective},
				"ambient": {c.ambient, got.Ambient}, "inheritable": {c.ambient, got.Inheritable},
			} {
				if !slices.Equal(pair[0], pair[1]) {
					t.Errorf("%s is %q, want %q", set, pair[1], pair[0])
				}
			}
		})
	}
	checkRefusals(t, map[string]refusal{
		"unknown added": {func(in *ContainerInput) {
			in.security().Capabilities = &cri.Capability{AddCapabilities: []string{"KILL", "FLY"}}
		}, errs.Invalid, []string{"add_capabilities[1]", `"FLY"`}},
		"unknown dropped": {func(in *ContainerInput) { in.security().Capabilities = &cri.Capability{DropCapabilities: []string{""}} }, errs.Invalid, []string{"drop_capabilities[0]"}},
		"unknown ambient": {func(in *ContainerInput) {
			in.security().Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"CAP_CAP_KILL"}}
		}, errs.Invalid, []string{"add_ambient_capabilities[0]"}},
	})
}

func TestSeccomp(t *testing.T) {
	local := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(local, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const unconfined, builtin, custom = "unconfined", "builtin", "local"
	for name, c := range map[string]struct {
		profile *cri.SecurityProfile
		path    string
		change  func(*ContainerInput)
		want    string
	}{
		"unset":                 {want: unconfined},
		"unset with the switch": {change: func(in *ContainerInput) { in.Defaults.SeccompUnset = true }, want: builtin},
		"runtime default":       {profile: &cri.SecurityProfile{}, want: builtin},
		"unconfined":            {profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, want: unconfined},
		"localhost":             {profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: local}, want: custom},
		"old runtime/default":   {path: "runtime/default", want: builtin},
		"old docker/default":    {path: "docker/default", want: builtin},
		"old unconfined":        {path: "unconfined", want: unconfined},
		"old localhost":         {path: "localhost/" + local, want: custom},
		"new wins over old":     {profile: &cri.SecurityProfile{}, path: "unconfined", want: builtin},
		"operator's default": {profile: &cri.SecurityProfile{}, change: func(in *ContainerInput) {
			in.Defaults.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
		}, want: custom},
		"privileged": {profile: &cri.SecurityProfile{}, change: func(in *ContainerInput) {
			in.security().Privileged, in.podSecurity().Privileged, in.Defaults.PrivilegedWithoutHostDevices = true, true, true
		}, want: unconfined},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			in.security().Seccomp, in.security().SeccompProfilePath = c.profile, c.path //nolint:staticcheck // the deprecated field is under test
			if c.change != nil {
				c.change(in)
			}
			got := unconfined
			if s := mustTranslate(t, in).Spec.Linux.Seccomp; s != nil {
				if got = custom; s.DefaultAction == specs.ActErrno {
					got = builtin
				}
			}
			if got != c.want {
				t.Errorf("profile %s, want %s", got, c.want)
			}
		})
	}
}

func TestDefaultSeccompFollowsCapabilities(t *testing.T) {
	allowed := func(caps ...string) bool {
		s, err := DefaultSeccomp(&specs.LinuxCapabilities{Bounding: caps})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && slices.Contains(c.Names, "mount") && len(c.Args) == 0
		})
	}
	if allowed("CAP_CHOWN") || !allowed("CAP_SYS_ADMIN") {
		t.Error("mount(2) does not follow CAP_SYS_ADMIN")
	}
}

func TestConfinementRefused(t *testing.T) {
	dir := t.TempDir()
	bad, fifo := filepath.Join(dir, "bad"), filepath.Join(dir, "fifo")
	os.WriteFile(bad, []byte("{"), 0o600)
	if err := mkfifo(fifo); err != nil {
		t.Fatal(err)
	}
	seccomp := func(p *cri.SecurityProfile) func(*ContainerInput) {
		return func(in *ContainerInput) { in.security().Seccomp = p }
	}
	local := func(ref string) *cri.SecurityProfile {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	armor := func(enabled bool, p *cri.SecurityProfile, old string) func(*ContainerInput) {
		return func(in *ContainerInput) {
			in.Host.AppArmor, in.security().Apparmor = enabled, p
			in.security().ApparmorProfile = old //nolint:staticcheck // the deprecated field is under test
			in.Host.AppArmorLoaded = func(string) bool { return false }
		}
	}
	checkRefusals(t, map[string]refusal{
		"seccomp: no file":           {seccomp(local(filepath.Join(dir, "none"))), errs.NotFound, []string{"seccomp.localhost_ref", "none"}},
		"seccomp: relative":          {seccomp(local("profiles/x.json")), errs.Invalid, []string{"seccomp.localhost_ref", "absolute"}},
		"seccomp: no profile":        {seccomp(local(bad)), errs.Invalid, []string{"seccomp.localhost_ref", "bad"}},
		"seccomp: FIFO":              {seccomp(local(fifo)), errs.Invalid, []string{"no regular file"}},
		"seccomp: device":            {seccomp(local("/dev/zero")), errs.Invalid, []string{"no regular file"}},
		"seccomp: no reference":      {seccomp(local("")), errs.Invalid, []string{"seccomp.localhost_ref"}},
		"seccomp: useless reference": {seccomp(&cri.SecurityProfile{LocalhostRef: "/x"}), errs.Invalid, []string{"seccomp.localhost_ref"}},
		"seccomp: no such type":      {seccomp(&cri.SecurityProfile{ProfileType: 8}), errs.Invalid, []string{"seccomp.profile_type"}},
		"seccomp: old nonsense":      {func(in *ContainerInput) { in.security().SeccompProfilePath = "default" }, errs.Invalid, []string{`"default"`}}, //nolint:staticcheck // as above
		"apparmor: absent":           {armor(false, local("p"), ""), errs.Invalid, []string{"apparmor", "not enabled"}},
		"apparmor: absent, default":  {armor(false, &cri.SecurityProfile{}, ""), errs.Invalid, []string{"apparmor", "not enabled"}},
		"apparmor: absent, old":      {armor(false, nil, "localhost/p"), errs.Invalid, []string{"apparmor", "not enabled"}},
		"apparmor: not loaded":       {armor(true, local("p"), ""), errs.NotFound, []string{"apparmor.localhost_ref", `"p"`}},
		"apparmor: old, not loaded":  {armor(true, nil, "localhost/p"), errs.NotFound, []string{`"p"`}},
		"apparmor: no default": {func(in *ContainerInput) {
			armor(true, &cri.SecurityProfile{}, "")(in)
			in.Defaults.NoAppArmor = "no parser"
		}, errs.Invalid, []string{"apparmor", "RuntimeDefault", "no parser"}},
		"apparmor: old nonsense": {armor(true, nil, "p"), errs.Invalid, []string{`"p"`}},
	})
}

func TestAppArmor(t *testing.T) {
	local := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "mine"}
	for name, c := range map[string]struct {
		off        bool
		profile    *cri.SecurityProfile
		old        string
		privileged bool
		want       string
	}{
		"unset":                         {want: "default"},
		"default":                       {profile: &cri.SecurityProfile{}, want: "default"},
		"unconfined":                    {profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, want: "unconfined"},
		"localhost":                     {profile: local, want: "mine"},
		"old default":                   {old: "runtime/default", want: "default"},
		"old unconfined":                {old: "unconfined", want: "unconfined"},
		"old localhost":                 {old: "localhost/mine", want: "mine"},
		"new wins over old":             {profile: local, old: "unconfined", want: "mine"},
		"privileged":                    {privileged: true, want: ""},
		"privileged, localhost":         {privileged: true, profile: local, want: "mine"},
		"no LSM":                        {off: true, want: ""},
		"no LSM, unconfined":            {off: true, profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, want: ""},
		"no LSM, old, same as not said": {off: true, old: "runtime/default", want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			in.Host.AppArmor, in.Defaults.AppArmor = !c.off, "default"
			in.Host.AppArmorLoaded = func(p string) bool { return p == "mine" || p == "default" }
			in.security().Apparmor, in.security().ApparmorProfile = c.profile, c.old //nolint:staticcheck // the deprecated field is under test
			in.security().Privileged, in.podSecurity().Privileged, in.Defaults.PrivilegedWithoutHostDevices = c.privileged, c.privileged, true
			if got := mustTranslate(t, in).Spec.Process.ApparmorProfile; got != c.want {
				t.Errorf("profile %q, want %q", got, c.want)
			}
		})
	}
}

// TestUnloadedAppArmorDefault: what an operator has unloaded is loaded again, when it is the server's.
func TestUnloadedAppArmorDefault(t *testing.T) {
	for name, c := range map[string]struct {
		load  func(*bool) func() error
		wants []string // of the error
	}{
		"the server's":    {load: func(loaded *bool) func() error { return func() error { *loaded = true; return nil } }},
		"not to be had":   {load: func(*bool) func() error { return func() error { return errors.New("no parser") } }, wants: []string{"default", "unloaded", "no parser"}},
		"somebody else's": {load: func(*bool) func() error { return nil }, wants: []string{"default", "not loaded"}},
	} {
		t.Run(name, func(t *testing.T) {
			loaded := false
			in := input(t)
			in.Host.AppArmor, in.Defaults.AppArmor, in.Defaults.LoadAppArmor = true, "default", c.load(&loaded)
			in.Host.AppArmorLoaded = func(string) bool { return loaded }
			out, err := Container(t.Context(), in)
			if c.wants != nil {
				wantError(t, err, errs.Conflict, c.wants...)
			} else if err != nil || !loaded || out.Spec.Process.ApparmorProfile != "default" {
				t.Errorf("loaded %t: %v", loaded, err)
			}
		})
	}
}

func TestSELinuxIsTheOnlyOneWithoutEffectWhereItIsOff(t *testing.T) {
	in := input(t)
	in.security().SelinuxOptions = &cri.SELinuxOption{Level: "s0:c1,c2"}
	out := mustTranslate(t, in)
	if out.Spec.Process.SelinuxLabel != "" || out.Spec.Linux.MountLabel != "" || out.Relabel != nil {
		t.Errorf("%q, %q, %v", out.Spec.Process.SelinuxLabel, out.Spec.Linux.MountLabel, out.Relabel)
	}
	in.Host.SELinux = true
	in.security().SelinuxOptions.Level = "s0 \n"
	_, err := Container(t.Context(), in)
	wantError(t, err, errs.Invalid, "selinux_options.level")

	in.security().SelinuxOptions = nil
	in.Label = Label{"proc", "file"}
	in.Config.Mounts = []*cri.Mount{{HostPath: "/proc", ContainerPath: "/x", SelinuxRelabel: true}, {HostPath: "/proc", ContainerPath: "/y"}}
	out = mustTranslate(t, in)
	want := []Relabel{{Path: "/proc", Label: "file"}, {Path: "/pod/hostname", Label: "file", Shared: true}, {Path: "/pod/hosts", Label: "file", Shared: true}, {Path: "/pod/resolv.conf", Label: "file", Shared: true}}
	if diff := cmp.Diff(want, out.Relabel); out.Spec.Process.SelinuxLabel != "proc" || diff != "" {
		t.Errorf("the pod's label is not shared: %q\n%s", out.Spec.Process.SelinuxLabel, diff)
	}
}

// registry is a CDI registry of one device.
type registry struct{}

func (registry) InjectDevices(spec *specs.Spec, devices ...string) ([]string, error) {
	if devices[0] != "vendor.com/gpu=0" {
		return devices[:1], errors.New("unresolvable")
	}
	spec.Process.Env = append(spec.Process.Env, "GPU=0")
	spec.Process.User.AdditionalGids = append(spec.Process.User.AdditionalGids, 44)
	spec.Linux.Devices = append(spec.Linux.Devices, specs.LinuxDevice{Path: "/dev/gpu0", Type: "c"})
	slices.Reverse(spec.Mounts) // the library sorts
	return nil, nil
}

func TestCDI(t *testing.T) {
	in := input(t)
	in.CDI = registry{}
	in.Config.CDIDevices = []*cri.CDIDevice{{Name: "vendor.com/gpu=0"}}
	in.Config.Mounts = []*cri.Mount{{Image: &cri.ImageSpec{Image: "i"}, ContainerPath: "/vol", Readonly: true}}
	out := mustTranslate(t, in)
	if !slices.Contains(out.Spec.Process.Env, "GPU=0") || len(out.Spec.Linux.Devices) != 1 {
		t.Error("the device's edits are missing")
	}
	if got := out.User.GetLinux().GetSupplementalGroups(); !slices.Equal(got, []int64{0, 10, 44}) {
		t.Errorf("supplemental groups of the status %v, want that of the device among them", got)
	}
	if m := out.Spec.Mounts[out.ImageVolumes[0].Index]; m.Destination != "/vol" {
		t.Errorf("the image volume's index leads to %+v", m)
	}
	checkRefusals(t, map[string]refusal{
		"unknown": {func(in *ContainerInput) {
			in.CDI, in.Config.CDIDevices = registry{}, []*cri.CDIDevice{{Name: "vendor.com/gpu=7"}}
		}, errs.NotFound, []string{"CDI_devices", "gpu=7"}},
		"no name": {func(in *ContainerInput) { in.CDI, in.Config.CDIDevices = registry{}, []*cri.CDIDevice{{}} }, errs.Invalid, []string{"CDI_devices[0].name"}},
		"off":     {func(in *ContainerInput) { in.Config.CDIDevices = []*cri.CDIDevice{{Name: "v/c=d"}} }, errs.Unsupported, []string{"CDI_devices", "v/c=d"}},
	})
}
