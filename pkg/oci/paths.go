package oci

import (
	"path"
	"slices"

	"github.com/cri-server/cri-server/pkg/errs"
)

// What an unprivileged container must not read, or not write, of the kernel's file systems. The first ten
// are what a kubelet asks for; the others have leaked since (power and interrupt counters tell of
// other tenants' secrets, CVE-2020-8694 and its kin).
var defaultMaskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
	"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/interrupts",
}

var defaultReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// paths fills in masked and read-only paths.
//
// A request's list is joined with the operator's, so that a kubelet older than a leak does not open it.
// Two empty lists are a pod that asks for an unmasked /proc when it has a user namespace, without which a
// kubelet does not allow that; elsewhere they are a client that does not know of the fields, and it gets
// the defaults. Privileged containers see everything.
func (t *translation) paths() error {
	t.spec.Root.Readonly = t.sc.GetReadonlyRootfs()
	masked, err := checkPaths("masked_paths", t.sc.GetMaskedPaths())
	if err != nil {
		return err
	}
	readonly, err := checkPaths("readonly_paths", t.sc.GetReadonlyPaths())
	if err != nil || t.sc.GetPrivileged() {
		return err
	}
	if len(masked) == 0 && len(readonly) == 0 && t.pod.userns() {
		return nil
	}
	t.spec.Linux.MaskedPaths = union(masked, t.Defaults.MaskedPaths)
	t.spec.Linux.ReadonlyPaths = union(readonly, t.Defaults.ReadonlyPaths)
	return nil
}

func checkPaths(field string, in []string) ([]string, error) {
	var out []string
	for i, p := range in {
		if !path.IsAbs(p) {
			return nil, errs.New(errs.Invalid, "%s: %q is not absolute", indexed(field, i), p)
		}
		if err := checkText(indexed(field, i), p); err != nil {
			return nil, err
		}
		out = append(out, path.Clean(p))
	}
	return out, nil
}

func union(a, b []string) []string {
	var out []string
	for _, s := range slices.Concat(a, b) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
