package oci

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// resources fills in the container's limits and its oom_score_adj.
func (t *translation) resources() error {
	in := t.Config.GetLinux().GetResources()
	limits, err := Resources(in, t.Host)
	if err != nil {
		return err
	}
	res := t.spec.Linux.Resources
	limits.Devices = res.Devices
	if t.Defaults.PidsLimit > 0 {
		limit := t.Defaults.PidsLimit
		limits.Pids = &specs.LinuxPids{Limit: &limit}
	}
	t.spec.Linux.Resources = limits
	adj, err := OOMScoreAdj(in, t.Host)
	t.spec.Process.OOMScoreAdj = &adj
	return err
}

// OOMScoreAdj returns the oom_score_adj of a container's processes, raised to what the daemon may give.
func OOMScoreAdj(in *cri.LinuxContainerResources, host *HostFacts) (int, error) {
	adj := in.GetOomScoreAdj()
	if adj < -1000 || adj > 1000 {
		return 0, errs.New(errs.Invalid, "resources.oom_score_adj: %d; from -1000 to 1000", adj)
	}
	return max(int(adj), host.OOMScoreAdjMin), nil
}

// Resources translates limits, for creating and for updating alike; nil gives none. Zero and "" leave a
// limit as it is. With a memory limit and no swap limit the container gets no swap. The device filter is
// not part of it.
func Resources(in *cri.LinuxContainerResources, host *HostFacts) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if in == nil {
		return out, nil
	}
	if err := checkLimits(in); err != nil {
		return nil, err
	}
	cpu := &specs.LinuxCPU{Cpus: in.GetCpusetCpus(), Mems: in.GetCpusetMems()}
	if v := in.GetCpuShares(); v != 0 {
		cpu.Shares = ptr(uint64(v))
	}
	if v := in.GetCpuQuota(); v != 0 {
		cpu.Quota = ptr(v)
	}
	if v := in.GetCpuPeriod(); v != 0 {
		cpu.Period = ptr(uint64(v))
	}
	if *cpu != (specs.LinuxCPU{}) {
		out.CPU = cpu
	}
	out.Memory = memory(in, host)
	for _, h := range in.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	for k, v := range in.GetUnified() {
		if out.Unified == nil {
			out.Unified = make(map[string]string)
		}
		out.Unified[k] = v
	}
	return out, nil
}

func memory(in *cri.LinuxContainerResources, host *HostFacts) *specs.LinuxMemory {
	limit, swap := in.GetMemoryLimitInBytes(), in.GetMemorySwapLimitInBytes()
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = ptr(limit)
	}
	switch {
	case !host.Swap:
	case swap != 0:
		m.Swap = ptr(swap)
	case limit != 0:
		m.Swap = ptr(limit) // OCI's swap is memory plus swap
	}
	if *m == (specs.LinuxMemory{}) {
		return nil
	}
	return m
}

func ptr[T any](v T) *T { return &v }

// maxQuota is the kernel's max_cfs_runtime, in microseconds: 203 days.
const maxQuota = 1<<44 - 1

func checkLimits(in *cri.LinuxContainerResources) error {
	limit, swap := in.GetMemoryLimitInBytes(), in.GetMemorySwapLimitInBytes()
	for _, l := range []struct {
		field    string
		v        int64
		min, max int64
	}{
		{"cpu_shares", in.GetCpuShares(), 0, 262144},
		{"cpu_quota", in.GetCpuQuota(), -1, maxQuota},
		{"cpu_period", in.GetCpuPeriod(), 0, 1_000_000},
		{"memory_limit_in_bytes", limit, -1, math.MaxInt64},
		{"memory_swap_limit_in_bytes", swap, -1, math.MaxInt64},
	} {
		if l.v < l.min || l.v > l.max {
			return errs.New(errs.Invalid, "resources.%s: %d is out of range", l.field, l.v)
		}
	}
	if in.GetCpuShares() == 1 { // cgroup v1 would take 2 for it, and not say so
		return errs.New(errs.Invalid, "resources.cpu_shares: 1; from 2 to 262144, or 0 for the default")
	}
	if p := in.GetCpuPeriod(); p != 0 && p < 1000 {
		return errs.New(errs.Invalid, "resources.cpu_period: %d; from 1000 to 1000000 microseconds", p)
	}
	if q := in.GetCpuQuota(); q > 0 && q < 1000 {
		return errs.New(errs.Invalid, "resources.cpu_quota: %d; at least 1000 microseconds, or -1 for none", q)
	}
	if limit > 0 && swap > 0 && swap < limit {
		return errs.New(errs.Invalid, "resources.memory_swap_limit_in_bytes: %d is below memory_limit_in_bytes %d, which it includes", swap, limit)
	}
	if limit == -1 && swap > 0 {
		return errs.New(errs.Invalid, "resources.memory_swap_limit_in_bytes: %d with unlimited memory, which it includes", swap)
	}
	if err := checkSet("resources.cpuset_cpus", in.GetCpusetCpus()); err != nil {
		return err
	}
	if err := checkSet("resources.cpuset_mems", in.GetCpusetMems()); err != nil {
		return err
	}
	for i, h := range in.GetHugepageLimits() {
		if !validPageSize(h.GetPageSize()) {
			return errs.New(errs.Invalid, "%s.page_size: %q; a size such as 2MB or 1GB", indexed("resources.hugepage_limits", i), h.GetPageSize())
		}
	}
	return checkUnified(in.GetUnified())
}

// checkSet refuses what is no list of the kernel's format, "0-3,8".
func checkSet(field, set string) error {
	if set == "" {
		return nil
	}
	for _, part := range strings.Split(set, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(lo, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(hi, 10, 16)
		}
		if err != nil || b < a {
			return errs.New(errs.Invalid, "%s: %q is no list such as 0-3,8", field, set)
		}
	}
	return nil
}

func validPageSize(s string) bool {
	digits, ok := strings.CutSuffix(s, "B")
	if !ok || digits == "" || !slices.Contains([]byte("KMG"), digits[len(digits)-1]) {
		return false
	}
	n, err := strconv.ParseUint(digits[:len(digits)-1], 10, 32)
	return err == nil && n > 0
}

// checkUnified holds keys to names of cgroup v2's files, so that none climbs out of the group or moves
// processes, and values to one line.
func checkUnified(unified map[string]string) error {
	for k, v := range unified {
		controller, file, ok := strings.Cut(k, ".")
		valid := func(s string) bool {
			return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == ""
		}
		if !ok || !valid(controller) || !valid(file) || strings.Contains(k, "..") || len(k) > 255 {
			return errs.New(errs.Invalid, "resources.unified: key %q is no cgroup v2 file", k)
		}
		if controller == "cgroup" {
			return errs.New(errs.Invalid, "resources.unified: key %q is not a resource", k)
		}
		if len(v) > 4096 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }) {
			return errs.New(errs.Invalid, "resources.unified: value %q of %q", v, k)
		}
	}
	return nil
}
