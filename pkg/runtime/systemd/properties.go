package systemd

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// Versions of systemd that brought what properties say.
const (
	hasQuotaPeriod = 242
	hasCPUSets     = 244
	hasIdle        = 252
	hasOOMPolicy   = 253
)

// infinity is no limit.
const infinity = math.MaxUint64

// translation makes properties of resources.
type translation struct {
	unified bool
	version int
	props   []Property
}

func (t *translation) add(name, sig string, v any) {
	t.props = append(t.props, Property{name, Value{sig, v}})
}

func (t *translation) limit(name string, v uint64) { t.add(name, "t", v) }

// ForScope are the properties that a new scope of the resources has, accounting and device filter included.
// version is systemd's.
func ForScope(res *specs.LinuxResources, unified bool, version int) ([]Property, error) {
	t := &translation{unified: unified, version: version}
	for _, name := range []string{"MemoryAccounting", "CPUAccounting", pick(unified, "IOAccounting", "BlockIOAccounting"), "TasksAccounting"} {
		t.add(name, "b", true)
	}
	if res == nil {
		res = &specs.LinuxResources{}
	}
	if err := t.devices(res.Devices); err != nil {
		return nil, err
	}
	if v, ok := res.Unified["memory.oom.group"]; ok && version >= hasOOMPolicy {
		if policy := map[string]string{"0": "continue", "1": "kill"}[strings.TrimSpace(v)]; policy != "" {
			t.add("OOMPolicy", "s", policy)
		}
	}
	err := t.resources(res)
	return t.props, err
}

// ForUpdate are the properties that a change of resources changes. Quotas come with their periods, sums of
// memory and swap with the memory (cgroup.Group.Complete).
func ForUpdate(res *specs.LinuxResources, unified bool, version int) ([]Property, error) {
	t := &translation{unified: unified, version: version}
	if res.Devices != nil {
		if err := t.devices(res.Devices); err != nil {
			return nil, err
		}
	}
	err := t.resources(res)
	return t.props, err
}

func pick(unified bool, v2, v1 string) string {
	if unified {
		return v2
	}
	return v1
}

func (t *translation) resources(res *specs.LinuxResources) error {
	if res.Memory != nil {
		t.memory(res.Memory)
	}
	if res.CPU != nil {
		if err := t.cpu(res.CPU); err != nil {
			return err
		}
	}
	if res.Pids != nil && res.Pids.Limit != nil {
		t.tasks(*res.Pids.Limit)
	}
	if res.BlockIO != nil && res.BlockIO.Weight != nil && *res.BlockIO.Weight != 0 {
		if t.unified {
			t.limit("IOWeight", cgroup.IOWeight(*res.BlockIO.Weight))
		} else {
			t.limit("BlockIOWeight", uint64(*res.BlockIO.Weight))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(res.Unified)) {
		if err := t.file(key, strings.TrimSpace(res.Unified[key]), res.Unified); err != nil {
			return fmt.Errorf("unified resource %q: %w", key, err)
		}
	}
	return nil
}

func (t *translation) memory(m *specs.LinuxMemory) {
	value := func(p *int64) int64 {
		if p == nil {
			return 0
		}
		return max(*p, -1) // as unsigned: infinity
	}
	limit, low, swap := value(m.Limit), value(m.Reservation), value(m.Swap)
	if limit != 0 {
		t.limit(pick(t.unified, "MemoryMax", "MemoryLimit"), uint64(limit))
	}
	if !t.unified {
		return
	}
	if low != 0 {
		t.limit("MemoryLow", uint64(low))
	}
	switch {
	case swap < 0, swap == 0 && limit < 0:
		t.limit("MemorySwapMax", infinity)
	case swap > 0 && limit > 0 && swap >= limit:
		t.limit("MemorySwapMax", uint64(swap-limit))
	}
}

func (t *translation) cpu(c *specs.LinuxCPU) error {
	idle := c.Idle != nil && *c.Idle == 1 && t.unified && t.version >= hasIdle
	switch {
	case idle:
		t.limit("CPUWeight", 0) // which is systemd's way to say idle
	case c.Shares == nil || *c.Shares == 0:
	case t.unified:
		t.limit("CPUWeight", cgroup.CPUWeight(*c.Shares))
	default:
		t.limit("CPUShares", *c.Shares)
	}
	t.quota(c.Quota, c.Period)
	for _, s := range []struct{ name, list string }{{"AllowedCPUs", c.Cpus}, {"AllowedMemoryNodes", c.Mems}} {
		if err := t.set(s.name, s.list); err != nil {
			return err
		}
	}
	return nil
}

func (t *translation) quota(quota *int64, period *uint64) {
	var p uint64
	if period != nil {
		p = *period
	}
	if p != 0 && t.version >= hasQuotaPeriod {
		t.limit("CPUQuotaPeriodUSec", p)
	}
	switch {
	case quota != nil && *quota > 0:
		t.limit("CPUQuotaPerSecUSec", perSecond(*quota, p))
	case quota != nil && *quota != 0 || p != 0:
		t.limit("CPUQuotaPerSecUSec", infinity)
	}
}

const defaultPeriod = 100_000 // µs, the kernel's

// perSecond is a quota in microseconds of processor time a second. Systemd keeps whole percents: up to the next.
func perSecond(quota int64, period uint64) uint64 {
	if period == 0 {
		period = defaultPeriod
	}
	const percent = 10_000
	n := uint64(quota) * 1_000_000 / period
	return (n + percent - 1) / percent * percent
}

// Round returns resources whose processor quota is what systemd makes of it, so that its idea and the kernel's
// are the same. res is not changed.
func Round(res *specs.LinuxResources) *specs.LinuxResources {
	if res == nil || res.CPU == nil || res.CPU.Quota == nil || *res.CPU.Quota <= 0 {
		return res
	}
	period := uint64(defaultPeriod)
	if res.CPU.Period != nil && *res.CPU.Period != 0 {
		period = *res.CPU.Period
	}
	out, cpu := *res, *res.CPU
	if n := perSecond(*cpu.Quota, period); uint64(*cpu.Quota)*1_000_000/period != n {
		quota := int64(n * period / 1_000_000)
		cpu.Quota = &quota
	}
	out.CPU = &cpu
	return &out
}

// set adds a set of processors or memory nodes, which the bus has as a bit mask, lowest byte first.
func (t *translation) set(name, list string) error {
	if list == "" || t.version < hasCPUSets {
		return nil
	}
	var mask []byte
	for _, r := range strings.Split(list, ",") {
		if r = strings.TrimSpace(r); r == "" {
			continue
		}
		lo, hi, isRange := strings.Cut(r, "-")
		if !isRange {
			hi = lo
		}
		a, err := strconv.ParseUint(lo, 10, 16)
		b, err2 := strconv.ParseUint(hi, 10, 16)
		if err != nil || err2 != nil || b < a {
			return errs.New(errs.Invalid, "%s %q: %q is no number or range", name, list, r)
		}
		for ; a <= b; a++ {
			for uint64(len(mask)) <= a/8 {
				mask = append(mask, 0)
			}
			mask[a/8] |= 1 << (a % 8)
		}
	}
	if len(mask) == 0 {
		return errs.New(errs.Invalid, "%s %q: it is empty", name, list)
	}
	t.add(name, "ay", mask)
	return nil
}

func (t *translation) tasks(n int64) {
	v := uint64(infinity)
	if n >= 0 {
		v = uint64(max(n, 1)) // systemd takes no 0, nor does a container run with it
	}
	t.limit("TasksMax", v)
}

// devices sets systemd's device filter to the rules, where it can say them: in a list of what is allowed. What
// it cannot say is left to the filter that the runtime sets itself, which holds either way.
func (t *translation) devices(rules []specs.LinuxDeviceCgroup) error {
	allowed, err := cgroup.AllowedDevices(rules)
	if err != nil {
		return err
	}
	list := []any{}
	for _, d := range allowed.List {
		kind := map[byte]string{'b': "block", 'c': "char"}[d.Type]
		switch {
		case d.Major < 0 && d.Minor < 0:
			list = append(list, []any{kind + "-*", d.Access})
		case d.Major >= 0 && d.Minor < 0:
			list = append(list, []any{fmt.Sprintf("%s-%d", kind, d.Major), d.Access})
		case d.Major >= 0:
			list = append(list, []any{fmt.Sprintf("/dev/%s/%d:%d", kind, d.Major, d.Minor), d.Access})
		default:
			allowed.Else = true
		}
	}
	const sig = "a(ss)"
	t.add("DeviceAllow", sig, []any{}) // clears what there is
	if allowed.Else {
		t.add("DevicePolicy", "s", "auto")
		return nil
	}
	t.add("DevicePolicy", "s", "strict")
	t.add("DeviceAllow", sig, list)
	return nil
}

// file adds what a file of cgroup v2 means to systemd. Others stay the runtime's own affair.
func (t *translation) file(key, value string, all map[string]string) error {
	limit := func() (uint64, error) {
		if value == "max" {
			return infinity, nil
		}
		return strconv.ParseUint(value, 10, 64)
	}
	idle := strings.TrimSpace(all["cpu.idle"]) == "1" && t.version >= hasIdle
	name := map[string]string{
		"memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin", "memory.max": "MemoryMax",
		"memory.swap.max": "MemorySwapMax", "cpu.weight": "CPUWeight",
	}[key]
	switch {
	case key == "cpu.idle" && idle:
		t.limit("CPUWeight", 0)
	case key == "cpu.weight" && idle:
	case name != "":
		n, err := limit()
		if err != nil {
			return err
		}
		t.limit(name, n)
	case key == "pids.max":
		n, err := limit()
		if err != nil {
			return err
		}
		t.limit("TasksMax", max(n, 1))
	case key == "cpuset.cpus":
		return t.set("AllowedCPUs", value)
	case key == "cpuset.mems":
		return t.set("AllowedMemoryNodes", value)
	case key == "cpu.max":
		return t.max(value)
	}
	return nil
}

// max adds the value of cpu.max: a quota, or "max", and perhaps a period.
func (t *translation) max(value string) error {
	f := strings.Fields(value)
	if len(f) < 1 || len(f) > 2 {
		return fmt.Errorf("%q is no quota with its period", value)
	}
	quota, period := int64(-1), uint64(defaultPeriod)
	var err error
	if f[0] != "max" {
		if quota, err = strconv.ParseInt(f[0], 10, 64); err != nil {
			return err
		}
	}
	if len(f) == 2 {
		if period, err = strconv.ParseUint(f[1], 10, 64); err != nil {
			return err
		}
	}
	t.quota(&quota, &period)
	return nil
}
