package oci

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// confinement fills in seccomp, AppArmor and SELinux. The profiles of a privileged container do not act,
// but a malformed one is still refused.
func (t *translation) confinement() error {
	var err error
	if t.spec.Linux.Seccomp, err = t.seccomp(); err != nil {
		return err
	}
	if t.spec.Process.ApparmorProfile, err = t.appArmor(); err != nil {
		return err
	}
	return nil
}

// profile is a SecurityProfile, or what the deprecated string fields said.
type profile struct {
	set  bool
	kind cri.SecurityProfile_ProfileType
	ref  string
}

// parseProfile reads the message, or the deprecated string where there is none.
func parseProfile(field string, p *cri.SecurityProfile, deprecated string) (profile, error) {
	if p != nil {
		out := profile{true, p.GetProfileType(), p.GetLocalhostRef()}
		switch {
		case out.kind != cri.SecurityProfile_RuntimeDefault && out.kind != cri.SecurityProfile_Unconfined && out.kind != cri.SecurityProfile_Localhost:
			return out, errs.New(errs.Invalid, "%s.profile_type: no such type %d", field, out.kind)
		case out.kind == cri.SecurityProfile_Localhost && out.ref == "":
			return out, errs.New(errs.Invalid, "%s.localhost_ref: empty with profile type Localhost", field)
		case out.kind != cri.SecurityProfile_Localhost && out.ref != "":
			return out, errs.New(errs.Invalid, "%s.localhost_ref: %q with profile type %s", field, out.ref, out.kind)
		}
		out.ref = strings.TrimPrefix(out.ref, "localhost/")
		return out, nil
	}
	name, isLocal := strings.CutPrefix(deprecated, "localhost/")
	switch {
	case deprecated == "":
		return profile{}, nil
	case deprecated == "unconfined":
		return profile{set: true, kind: cri.SecurityProfile_Unconfined}, nil
	case deprecated == "runtime/default", deprecated == "docker/default":
		return profile{set: true, kind: cri.SecurityProfile_RuntimeDefault}, nil
	case isLocal && name != "":
		return profile{set: true, kind: cri.SecurityProfile_Localhost, ref: name}, nil
	}
	field += "_profile" // what the string's own field is called
	if strings.HasSuffix(field, "seccomp_profile") {
		field += "_path"
	}
	return profile{}, errs.New(errs.Invalid, "%s: %q; runtime/default, unconfined or localhost/<profile>", field, deprecated)
}

func (t *translation) seccomp() (*specs.LinuxSeccomp, error) {
	//nolint:staticcheck // old kubelets and tools send the deprecated field
	p, err := parseProfile("seccomp", t.sc.GetSeccomp(), t.sc.GetSeccompProfilePath())
	if err != nil || t.sc.GetPrivileged() {
		return nil, err
	}
	if !p.set && t.Defaults.SeccompUnset {
		p = profile{set: true, kind: cri.SecurityProfile_RuntimeDefault}
	}
	switch {
	case !p.set || p.kind == cri.SecurityProfile_Unconfined:
		return nil, nil
	case p.kind == cri.SecurityProfile_Localhost:
		return loadSeccomp("seccomp.localhost_ref", p.ref, t.spec)
	case t.Defaults.Seccomp != nil:
		return t.Defaults.Seccomp, nil
	}
	return DefaultSeccomp(t.spec.Process.Capabilities)
}

// DefaultSeccomp returns the RuntimeDefault profile for a process with these capabilities, some of which
// open calls that need them. The caller may change it.
func DefaultSeccomp(caps *specs.LinuxCapabilities) (*specs.LinuxSeccomp, error) {
	if caps == nil {
		caps = &specs.LinuxCapabilities{}
	}
	return seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: caps}})
}

// maxSeccomp is more than any real profile; the largest known are 30 KiB.
const maxSeccomp = 1 << 20

// loadSeccomp reads a profile of the node, in the OCI's or Docker's form.
func loadSeccomp(field, file string, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	if !path.IsAbs(file) {
		return nil, errs.New(errs.Invalid, "%s: %q is not an absolute path", field, file)
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "%s: no profile %q on the node", field, file)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", field, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errs.New(errs.Invalid, "%s: %q is no regular file", field, file)
	}
	body, err := io.ReadAll(io.LimitReader(f, maxSeccomp+1))
	if err == nil && len(body) > maxSeccomp {
		err = errors.New("larger than 1 MiB")
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: read %q: %w", field, file, err)
	}
	profile, err := seccomp.LoadProfile(string(body), spec)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %q is no seccomp profile: %w", field, file, err)
	}
	return profile, nil
}

// appArmor chooses the profile's name. "runtime/default" in the deprecated field means the same as nothing.
func (t *translation) appArmor() (string, error) {
	//nolint:staticcheck // old kubelets and tools send the deprecated field
	old := t.sc.GetApparmorProfile()
	p, err := parseProfile("apparmor", t.sc.GetApparmor(), old)
	if err != nil {
		return "", err
	}
	if t.sc.GetApparmor() == nil && old == "runtime/default" {
		p = profile{}
	}
	if err := p.checkAppArmor("apparmor", t.Host); err != nil || !t.Host.AppArmor {
		return "", err
	}
	switch {
	case p.set && p.kind == cri.SecurityProfile_Unconfined:
		return "unconfined", nil
	case p.kind == cri.SecurityProfile_Localhost:
		return p.ref, nil
	case t.sc.GetPrivileged():
		return "", nil
	case p.set && t.Defaults.AppArmor == "" && t.Defaults.NoAppArmor != "":
		return "", errs.New(errs.Invalid, "apparmor: profile RuntimeDefault was asked for, and the node has none: %s", t.Defaults.NoAppArmor)
	}
	return t.Defaults.AppArmor, t.standing(t.Defaults.AppArmor)
}

// standing makes sure that the kernel still has the default profile: who restarts the node's AppArmor service unloads
// what is in none of its files.
func (t *translation) standing(name string) error {
	if name == "" || name == "unconfined" || t.Host.AppArmorLoaded == nil || t.Host.AppArmorLoaded(name) {
		return nil
	}
	if t.Defaults.LoadAppArmor == nil {
		return errs.New(errs.Conflict, "apparmor: the default profile %q is not loaded on the node. Load it, or configure another", name)
	}
	if err := t.Defaults.LoadAppArmor(); err != nil {
		return errs.New(errs.Conflict, "apparmor: the default profile %q has been unloaded: %w", name, err)
	}
	return nil
}

// checkAppArmor refuses a profile that the node cannot confine a container to.
func (p profile) checkAppArmor(field string, host *HostFacts) error {
	switch {
	case !p.set || p.kind == cri.SecurityProfile_Unconfined:
		return nil
	case !host.AppArmor:
		return errs.New(errs.Invalid, "%s: profile %s %q was asked for, and AppArmor is not enabled on this node", field, p.kind, p.ref)
	case p.kind == cri.SecurityProfile_Localhost && host.AppArmorLoaded != nil && !host.AppArmorLoaded(p.ref):
		return errs.New(errs.NotFound, "%s.localhost_ref: no profile %q is loaded on the node", field, p.ref)
	}
	return nil
}

// appArmorLoaded looks a profile up among those the kernel has.
func appArmorLoaded(name string) bool {
	f, err := os.Open("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return false
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if loaded, _, ok := strings.Cut(sc.Text(), " ("); ok && loaded == name {
			return true
		}
	}
	return false
}

// seLinux fills in the labels, before mounts need them: those of the container's own options, or the pod's.
func (t *translation) seLinux() error {
	if !t.Host.SELinux || t.sc.GetPrivileged() {
		return nil
	}
	l := t.Label
	if opts := t.sc.GetSelinuxOptions(); opts != nil || l.Process == "" {
		var err error
		if l, err = SELinuxLabel(opts, t.Host); err != nil {
			return err
		}
	}
	t.spec.Process.SelinuxLabel, t.spec.Linux.MountLabel = l.Process, l.Mount
	return nil
}

// SELinuxLabel makes the label pair for options, with a category pair of its own where they name no level.
// It is empty where SELinux is off. The caller releases the pair's categories when the object goes.
func SELinuxLabel(opts *cri.SELinuxOption, host *HostFacts) (Label, error) {
	if !host.SELinux {
		return Label{}, nil
	}
	var list []string
	for _, o := range []struct{ key, value string }{
		{"user", opts.GetUser()}, {"role", opts.GetRole()}, {"type", opts.GetType()}, {"level", opts.GetLevel()},
	} {
		if o.value == "" {
			continue
		}
		if strings.ContainsFunc(o.value, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return Label{}, errs.New(errs.Invalid, "selinux_options.%s: %q", o.key, o.value)
		}
		list = append(list, o.key+":"+o.value)
	}
	process, mount, err := label.InitLabels(list)
	if err != nil {
		return Label{}, errs.New(errs.Invalid, "selinux_options: %w", err)
	}
	return Label{process, mount}, nil
}
