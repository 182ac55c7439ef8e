package oci

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

// capSet is a set of capabilities by canonical name, "CAP_CHOWN".
type capSet map[string]bool

// capabilityBits are the capabilities by name with their numbers.
var capabilityBits = func() map[string]uint {
	bits := make(map[string]uint)
	for _, c := range capability.ListKnown() {
		bits["CAP_"+strings.ToUpper(c.String())] = uint(c)
	}
	return bits
}()

var allCapabilities = slices.Sorted(maps.Keys(capabilityBits))

// capabilities fills in the five sets. The order is ALL of add, ALL of drop, then what is added by name,
// then what is dropped by name, so that a drop always wins over an add of the same kind.
//
// Inheritable stays empty but for ambient capabilities, which need it: an inheritable capability that
// nobody asked for lets file capabilities of the image raise it (CVE-2022-24769).
func (t *translation) capabilities() error {
	caps := t.sc.GetCapabilities()
	add, addAll, err := parseCapabilities("capabilities.add_capabilities", caps.GetAddCapabilities())
	if err != nil {
		return err
	}
	ambient, ambientAll, err := parseCapabilities("capabilities.add_ambient_capabilities", caps.GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	drop, dropAll, err := parseCapabilities("capabilities.drop_capabilities", caps.GetDropCapabilities())
	if err != nil {
		return err
	}
	base := make(capSet)
	switch {
	case t.sc.GetPrivileged(), addAll && !dropAll, ambientAll && !dropAll:
		base.add(allCapabilities)
	case !dropAll:
		base.add(t.Defaults.Capabilities)
	}
	raised := make(capSet)
	if ambientAll && !dropAll {
		raised.add(allCapabilities)
	}
	raised.add(ambient)
	base.add(add)
	base.add(ambient)
	if !t.sc.GetPrivileged() { // "1. All capabilities are added"
		base.remove(drop)
		raised.remove(drop)
	}
	t.spec.Process.Capabilities = t.sets(base, raised)
	return nil
}

// sets lays out the sets, without what the daemon itself has not got: no process of its could have it.
func (t *translation) sets(base, raised capSet) *specs.LinuxCapabilities {
	if t.Host.Capabilities != nil {
		for _, set := range []capSet{base, raised} {
			for name := range set {
				if !t.Host.Capabilities[name] {
					delete(set, name)
				}
			}
		}
	}
	list := base.list()
	return &specs.LinuxCapabilities{
		Bounding: list, Effective: list, Permitted: list,
		Inheritable: raised.list(), Ambient: raised.list(),
	}
}

func (s capSet) add(names []string) {
	for _, n := range names {
		s[n] = true
	}
}

func (s capSet) remove(names []string) {
	for _, n := range names {
		delete(s, n)
	}
}

func (s capSet) list() []string {
	return slices.Sorted(maps.Keys(s))
}

// parseCapabilities canonicalizes names: any case, with or without "CAP_". ALL is told apart.
func parseCapabilities(field string, in []string) (names []string, all bool, err error) {
	for i, s := range in {
		name := strings.ToUpper(s)
		if name == "ALL" || name == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if _, known := slices.BinarySearch(allCapabilities, name); !known {
			return nil, false, errs.New(errs.Invalid, "%s: %q is no capability", indexed(field, i), s)
		}
		names = append(names, name)
	}
	return names, all, nil
}
