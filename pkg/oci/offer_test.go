package oci

import (
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

func TestCheckOffer(t *testing.T) {
	offer := &cgroup.Offer{Cpus: "0-1,8", Mems: "0", PageSizes: []string{"2MB"}, Unified: []string{"memory.high", "memory.max", "cgroup.max.depth"}}
	page := func(size string, limit uint64) *cri.LinuxContainerResources {
		return &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: size, Limit: limit}}}
	}
	unified := func(key string) *cri.LinuxContainerResources {
		return &cri.LinuxContainerResources{Unified: map[string]string{key: "1"}}
	}
	for _, in := range []*cri.LinuxContainerResources{
		nil, {}, {CpusetCpus: "0-1", CpusetMems: "0"}, {CpusetCpus: "8"}, page("2MB", 1<<21), page("1GB", 0), unified("memory.high"), unified("cgroup.max.depth"),
	} {
		if err := CheckOffer(in, offer); err != nil {
			t.Errorf("%v: %v", in, err)
		}
	}
	for text, in := range map[string]*cri.LinuxContainerResources{
		`memory_limit_in_bytes: 1;`:           {MemoryLimitInBytes: 1},
		`cpuset_cpus: "0-2"`:                  {CpusetCpus: "0-2"},
		`cpuset_cpus: "4000"`:                 {CpusetCpus: "4000"},
		`cpuset_mems: "1"`:                    {CpusetMems: "1"},
		`hugepage_limits[0].page_size: "1GB"`: page("1GB", 1<<30),
		`unified: key "memory.none"`:          unified("memory.none"),
		`unified: key "cgroup.procs"`:         unified("cgroup.procs"),
		`unified: key "nosuch.max"`:           unified("nosuch.max"),
	} {
		wantError(t, CheckOffer(in, offer), errs.Invalid, "resources."+text)
	}
	wantError(t, CheckOffer(unified("memory.high"), &cgroup.Offer{}), errs.Invalid, `"memory.high"`, "memory controller of cgroup v2")
	wantError(t, CheckOffer(&cri.LinuxContainerResources{CpusetCpus: "0"}, &cgroup.Offer{}), errs.Invalid, "cpuset_cpus", "no cpusets")
	wantError(t, CheckOffer(page("2MB", 1), &cgroup.Offer{}), errs.Invalid, "no huge pages")
}
