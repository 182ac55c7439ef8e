package sandbox

import (
	"testing"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The bundle has the limits of the last update, whether the container runs or not.
func TestUpdatedBundle(t *testing.T) {
	w := newWorld(t)
	id := w.create(w.runPod("a"), "c")
	for _, shares := range []int64{512, 1024} {
		if err := w.mgr.UpdateContainer(t.Context(), id, &cri.LinuxContainerResources{CpuShares: shares, OomScoreAdj: 5}, nil); err != nil {
			t.Fatal(err)
		}
		rec, err := w.mgr.containerRec(id)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := w.mgr.readSpec(rec)
		if err != nil || *spec.Linux.Resources.CPU.Shares != uint64(shares) || *spec.Process.OOMScoreAdj != 5 {
			t.Errorf("bundle %+v, %v, want %d shares", spec, err, shares)
		}
		if shares == 512 {
			w.start(id)
		}
	}
}

// A container's resources are what it has after an update of some of them.
func TestMergeResources(t *testing.T) {
	type limits = cri.LinuxContainerResources
	for name, c := range map[string]struct{ old, update, want *limits }{
		"nothing before":         {nil, &limits{CpuShares: 5}, &limits{CpuShares: 5}},
		"what is not named":      {&limits{CpuShares: 5, CpusetCpus: "0", OomScoreAdj: 7}, &limits{CpuQuota: 1000}, &limits{CpuShares: 5, CpusetCpus: "0", OomScoreAdj: 7, CpuQuota: 1000}},
		"no swap stays none":     {&limits{MemoryLimitInBytes: 64, MemorySwapLimitInBytes: 64}, &limits{MemoryLimitInBytes: 128}, &limits{MemoryLimitInBytes: 128, MemorySwapLimitInBytes: 128}},
		"memory less, too":       {&limits{MemoryLimitInBytes: 64, MemorySwapLimitInBytes: 96}, &limits{MemoryLimitInBytes: 32}, &limits{MemoryLimitInBytes: 32, MemorySwapLimitInBytes: 32}},
		"memory without a limit": {&limits{MemoryLimitInBytes: 64, MemorySwapLimitInBytes: 64}, &limits{MemoryLimitInBytes: -1}, &limits{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
		"swap was not named":     {&limits{MemoryLimitInBytes: 64}, &limits{MemoryLimitInBytes: 128}, &limits{MemoryLimitInBytes: 128}},
		"swap alone":             {&limits{MemoryLimitInBytes: 64}, &limits{MemorySwapLimitInBytes: 128}, &limits{MemoryLimitInBytes: 64, MemorySwapLimitInBytes: 128}},
		"both":                   {&limits{MemoryLimitInBytes: 64, MemorySwapLimitInBytes: 64}, &limits{MemoryLimitInBytes: 128, MemorySwapLimitInBytes: 256}, &limits{MemoryLimitInBytes: 128, MemorySwapLimitInBytes: 256}},
		"maps and lists": {
			&limits{Unified: map[string]string{"a.b": "1", "c.d": "2"}, HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 1}}},
			&limits{Unified: map[string]string{"c.d": "3"}, HugepageLimits: []*cri.HugepageLimit{{PageSize: "1GB", Limit: 4}, {PageSize: "2MB", Limit: 2}}},
			&limits{Unified: map[string]string{"a.b": "1", "c.d": "3"}, HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 2}, {PageSize: "1GB", Limit: 4}}},
		},
	} {
		before := proto.CloneOf(c.old)
		if got := mergeResources(c.old, c.update); !proto.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if !proto.Equal(before, c.old) {
			t.Errorf("%s: the old limits have changed", name)
		}
	}
}
