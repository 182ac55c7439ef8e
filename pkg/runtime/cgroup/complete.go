package cgroup

import (
	"math"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Complete adds to an update those values in force that the ones it names are measured against: to a quota its
// period and the other way round, and on v2 to a sum of memory and swap the memory. res is not changed. A group
// without the file leaves them out.
func (g *Group) Complete(res *specs.LinuxResources) *specs.LinuxResources {
	if res == nil {
		return &specs.LinuxResources{}
	}
	out := *res
	if c := res.CPU; c != nil && (deref(c.Quota) != 0) != (deref(c.Period) != 0) {
		full := *c
		quota, period, ok := g.bandwidth()
		if ok && deref(c.Quota) == 0 {
			full.Quota = &quota
		}
		if ok && deref(c.Period) == 0 {
			full.Period = &period
		}
		out.CPU = &full
	}
	if m := res.Memory; m != nil && deref(m.Swap) > 0 && deref(m.Limit) == 0 {
		if d, err := g.controller("memory"); err == nil {
			defer d.close()
			if v, err := d.uint("memory.max"); err == nil && v <= math.MaxInt64 {
				full, limit := *m, int64(v)
				full.Limit = &limit
				out.Memory = &full
			}
		}
	}
	return &out
}

// bandwidth is the group's quota, -1 for none, and its period in microseconds.
func (g *Group) bandwidth() (quota int64, period uint64, ok bool) {
	d, err := g.controller("cpu")
	if err != nil {
		return 0, 0, false
	}
	defer d.close()
	if !d.tree.Unified {
		q, err := d.get("cpu.cfs_quota_us")
		p, err2 := d.uint("cpu.cfs_period_us")
		if err != nil || err2 != nil {
			return 0, 0, false
		}
		quota, err = strconv.ParseInt(q, 10, 64)
		return quota, p, err == nil
	}
	text, err := d.get("cpu.max")
	f := strings.Fields(text)
	if err != nil || len(f) != 2 {
		return 0, 0, false
	}
	if quota = -1; f[0] != "max" {
		if quota, err = strconv.ParseInt(f[0], 10, 64); err != nil {
			return 0, 0, false
		}
	}
	period, err = strconv.ParseUint(f[1], 10, 64)
	return quota, period, err == nil
}
