package oci

import (
	"maps"
	"os"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// CheckOffer refuses well-formed limits that this machine, or the pod's cgroup, cannot give. The kernel would, too,
// but only when the container starts.
func CheckOffer(in *cri.LinuxContainerResources, offer *cgroup.Offer) error {
	for _, s := range []struct{ field, want, have string }{
		{"cpuset_cpus", in.GetCpusetCpus(), offer.Cpus}, {"cpuset_mems", in.GetCpusetMems(), offer.Mems},
	} {
		if s.want == "" {
			continue
		}
		if s.have == "" {
			return errs.New(errs.Invalid, "resources.%s: %q; this machine has no cpusets", s.field, s.want)
		}
		if n, lacks := cgroup.Lacking(s.want, s.have); lacks {
			return errs.New(errs.Invalid, "resources.%s: %q; there is no %d among %s, which the pod's cgroup has", s.field, s.want, n, s.have)
		}
	}
	if v, page := in.GetMemoryLimitInBytes(), int64(os.Getpagesize()); v > 0 && v < page {
		return errs.New(errs.Invalid, "resources.memory_limit_in_bytes: %d; the smallest amount is a page of %d", v, page)
	}
	for i, h := range in.GetHugepageLimits() {
		if h.GetLimit() > 0 && !slices.Contains(offer.PageSizes, h.GetPageSize()) { // no pages of a size that is not there is what there is
			return errs.New(errs.Invalid, "%s.page_size: %q; %s", indexed("resources.hugepage_limits", i), h.GetPageSize(),
				oneOf("this machine limits", offer.PageSizes, "no huge pages"))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(in.GetUnified())) {
		if slices.Contains(offer.Unified, key) {
			continue
		}
		controller, _, _ := strings.Cut(key, ".")
		if slices.ContainsFunc(offer.Unified, func(file string) bool { return strings.HasPrefix(file, controller+".") }) {
			return errs.New(errs.Invalid, "resources.unified: key %q; this kernel's %s controller has no such limit", key, controller)
		}
		return errs.New(errs.Invalid, "resources.unified: key %q; the pod has no %s controller of cgroup v2", key, controller)
	}
	return nil
}

func oneOf(what string, list []string, none string) string {
	if len(list) == 0 {
		return what + " " + none
	}
	return what + " " + strings.Join(list, ", ")
}
