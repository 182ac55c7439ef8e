package cgroup

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// CPUWeight converts v1 shares (2 to 262144, 1024 by default) to a v2 weight (1 to 10000, 100 by default).
// The curve goes through both ends and both defaults, as those of the kubelet, crun and runc do since
// 2025; 0 is 0, not set.
func CPUWeight(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func setCPU(t *txn, res *specs.LinuxResources) error {
	c := res.CPU
	if *c == (specs.LinuxCPU{Cpus: c.Cpus, Mems: c.Mems}) {
		return nil
	}
	d, err := t.dir("cpu")
	if err != nil {
		return err
	}
	if d.tree.Unified {
		return setCPU2(t, d, c)
	}
	if err := setShares(t, d, c); err != nil {
		return err
	}
	if err := setQuota(t, d, c); err != nil {
		return err
	}
	// The runtime must fit into the period: whichever fits the values in force goes first.
	var rt []entry
	if v := c.RealtimePeriod; v != nil && *v != 0 {
		rt = append(rt, entry{"cpu.rt_period_us", strconv.FormatUint(*v, 10)})
	}
	if v := c.RealtimeRuntime; v != nil && *v != 0 {
		rt = append(rt, entry{"cpu.rt_runtime_us", strconv.FormatInt(*v, 10)})
	}
	return t.setEither(d, rt)
}

// setShares writes v1's weight, or makes the group idle. A group that is idle has no weight to set.
func setShares(t *txn, d dir, c *specs.LinuxCPU) error {
	if c.Idle != nil {
		if err := setIdle(t, d, *c.Idle); err != nil {
			return err
		}
		if *c.Idle != 0 {
			return nil
		}
	}
	if c.Shares == nil || *c.Shares == 0 {
		return nil
	}
	want := strconv.FormatUint(*c.Shares, 10)
	if err := t.set(d, "cpu.shares", want); err != nil {
		return err
	}
	// The kernel clamps silently: a limit that is not in force is to be known.
	if got, err := d.get("cpu.shares"); err == nil && got != want {
		return errs.New(errs.Invalid, "cpu shares %s: out of range, the kernel takes %s", want, got)
	}
	return nil
}

func setIdle(t *txn, d dir, idle int64) error {
	if idle != 0 && idle != 1 {
		return errs.New(errs.Invalid, "cpu idle %d: it is 0 or 1", idle)
	}
	err := t.set(d, "cpu.idle", strconv.FormatInt(idle, 10))
	if idle == 0 && unset(err) { // since Linux 5.15
		return nil
	}
	return err
}

// setQuota writes v1's bandwidth limits. The kernel checks every write against the others in force and
// against the parent's: quota over period must not exceed the parent's share, nor the burst the quota.
func setQuota(t *txn, d dir, c *specs.LinuxCPU) error {
	var list []entry
	if v := c.Period; v != nil && *v != 0 {
		list = append(list, entry{"cpu.cfs_period_us", strconv.FormatUint(*v, 10)})
	}
	if v := c.Quota; v != nil && *v != 0 {
		list = append(list, entry{"cpu.cfs_quota_us", strconv.FormatInt(max(*v, -1), 10)})
	}
	if v := c.Burst; v != nil {
		list = append(list, entry{"cpu.cfs_burst_us", strconv.FormatUint(*v, 10)})
	}
	return t.setEither(d, list)
}

// entry is a value for a file.
type entry struct{ file, value string }

// setEither writes files whose values the kernel checks against each other. What is refused is tried again
// after the others, until a round writes nothing more.
func (t *txn) setEither(d dir, list []entry) error {
	for len(list) > 0 {
		var refused []entry
		var first error
		for _, e := range list {
			err := t.set(d, e.file, e.value)
			if err == nil || e.value == "0" && strings.HasSuffix(e.file, "burst_us") && unset(err) { // burst: since Linux 5.14
				continue
			}
			if !errors.Is(err, unix.EINVAL) {
				return err
			}
			if refused = append(refused, e); first == nil {
				first = err
			}
		}
		if len(refused) == len(list) {
			return errs.New(errs.Invalid, "%w: it is out of range, or more than the group above has", first)
		}
		list = refused
	}
	return nil
}

func setCPU2(t *txn, d dir, c *specs.LinuxCPU) error {
	if v := c.RealtimeRuntime; v != nil && *v > 0 {
		return errs.New(errs.Unsupported, "realtime runtime %d: cgroup v2 has no realtime limits", *v)
	}
	idle := false
	if c.Idle != nil {
		if err := setIdle(t, d, *c.Idle); err != nil {
			return err
		}
		idle = *c.Idle != 0
	}
	if c.Shares != nil && *c.Shares != 0 && !idle {
		if err := t.set(d, "cpu.weight", strconv.FormatUint(CPUWeight(*c.Shares), 10)); err != nil {
			return err
		}
	}
	var list []entry
	limit, err := cpuMax(d, c)
	if err != nil {
		return err
	}
	if limit != "" {
		list = append(list, entry{"cpu.max", limit})
	}
	if c.Burst != nil {
		burst := entry{"cpu.max.burst", strconv.FormatUint(*c.Burst, 10)}
		if *c.Burst == 0 && !d.has(burst.file) { // since Linux 5.14
			return t.setEither(d, list)
		}
		list = append(list, burst)
	}
	return t.setEither(d, list)
}

// cpuMax is the value of cpu.max, "" when it is to stay: a quota without a period keeps the period, and
// the other way round.
func cpuMax(d dir, c *specs.LinuxCPU) (string, error) {
	hasQuota, hasPeriod := c.Quota != nil && *c.Quota != 0, c.Period != nil && *c.Period != 0
	if !hasQuota && !hasPeriod {
		return "", nil
	}
	quota, period := "max", "100000"
	if !hasQuota || !hasPeriod {
		text, err := d.get("cpu.max")
		if err != nil && !unset(err) {
			return "", err
		}
		if f := strings.Fields(text); len(f) == 2 {
			quota, period = f[0], f[1]
		}
	}
	if hasQuota {
		if quota = "max"; *c.Quota > 0 {
			quota = strconv.FormatInt(*c.Quota, 10)
		}
	}
	if hasPeriod {
		period = strconv.FormatUint(*c.Period, 10)
	}
	return quota + " " + period, nil
}

// setCpuset writes processors and memory nodes. The parent's must contain them.
func setCpuset(t *txn, res *specs.LinuxResources) error {
	d, err := t.dir("cpuset")
	if err != nil {
		return err
	}
	for _, e := range []entry{{"cpuset.cpus", res.CPU.Cpus}, {"cpuset.mems", res.CPU.Mems}} {
		if e.value == "" {
			continue
		}
		if err := checkList(e.value); err != nil {
			return errs.New(errs.Invalid, "%s %q: %w", e.file, e.value, err)
		}
		switch err := t.set(d, e.file, e.value); {
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ERANGE):
			return errs.New(errs.Invalid, "%s %q: the parent group or the machine does not have them: %w", e.file, e.value, err)
		case err != nil:
			return err
		}
	}
	return nil
}

// checkList checks the kernel's list format, "0-3,7", before it is written anywhere.
func checkList(s string) error {
	for _, r := range strings.Split(strings.TrimSpace(s), ",") {
		lo, hi, isRange := strings.Cut(r, "-")
		a, err := strconv.ParseUint(lo, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not a number", lo)
		}
		if !isRange {
			continue
		}
		b, err := strconv.ParseUint(hi, 10, 16)
		if err != nil || b < a {
			return fmt.Errorf("%q is not a range", r)
		}
	}
	return nil
}

func setPids(t *txn, res *specs.LinuxResources) error {
	d, err := t.dir("pids")
	if err != nil {
		return err
	}
	value := "max"
	if n := *res.Pids.Limit; n >= 0 {
		value = strconv.FormatInt(max(n, 1), 10) // 0 would keep the first process out, on v2 alone
	}
	return t.set(d, "pids.max", value)
}
