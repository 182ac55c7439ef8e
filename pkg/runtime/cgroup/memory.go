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

// memory is the part of the resources with its zeros, which mean "not set", told from its limits. A limit
// below zero is none.
type memory struct {
	limit, swap, reservation int64
	*specs.LinuxMemory
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func setMemory(t *txn, res *specs.LinuxResources) error {
	m := memory{deref(res.Memory.Limit), deref(res.Memory.Swap), deref(res.Memory.Reservation), res.Memory}
	oom := deref(m.DisableOOMKiller) || t.update && m.DisableOOMKiller != nil
	if m.limit == 0 && m.swap == 0 && m.reservation == 0 && deref(m.KernelTCP) == 0 && m.Swappiness == nil && !oom {
		return nil
	}
	if m.limit > 0 && m.swap > 0 && m.swap < m.limit {
		return errs.New(errs.Invalid, "memory swap %d: it is the sum of memory and swap and less than the memory limit %d", m.swap, m.limit)
	}
	if m.limit < 0 && m.swap == 0 {
		m.swap = -1 // no limit on memory leaves none on the sum, which v1 would refuse and v2 misread
	}
	d, err := t.dir("memory")
	if err != nil {
		return err
	}
	if err := checkUsage(d, m); err != nil {
		return err
	}
	if d.tree.Unified {
		return setMemory2(t, d, m)
	}
	return setMemory1(t, d, m)
}

// checkUsage refuses on v2, where the resources ask for it, a limit that the group is over and cannot be
// brought below: setting it would kill. As v1's kernel does by itself, it takes back first what can be had.
func checkUsage(d dir, m memory) error {
	if !d.tree.Unified || !deref(m.CheckBeforeUpdate) {
		return nil
	}
	if m.limit > 0 {
		usage, err := d.reclaim(uint64(m.limit), "memory.current")
		if err != nil {
			return err
		}
		if usage > uint64(m.limit) {
			return errs.New(errs.Conflict, "memory limit %d: the group uses %d that the kernel cannot take back, and would be killed", m.limit, usage)
		}
	}
	if m.swap > 0 {
		usage, err := d.reclaim(uint64(m.swap), "memory.current", "memory.swap.current")
		if err != nil {
			return err
		}
		if usage > uint64(m.swap) {
			return errs.New(errs.Conflict, "memory swap %d: the group uses %d of memory and swap that the kernel cannot take back, and would be killed", m.swap, usage)
		}
	}
	return nil
}

// reclaim has the kernel take memory back from a v2 group until the sum of the files is at most limit, as far
// as it can, and returns the sum. Unlike a lowered memory.high, what it does needs no undoing.
func (d dir) reclaim(limit uint64, files ...string) (uint64, error) {
	const rounds = 16 // a group that reads files fills up again meanwhile
	stuck := false
	for round := 0; ; round++ {
		usage := uint64(0)
		for _, file := range files {
			v, err := d.uint(file)
			if err != nil && (file == "memory.current" || !unset(err)) { // a kernel without swap has no file for it
				return 0, err
			}
			usage += v
		}
		if usage <= limit || stuck || round == rounds {
			return usage, nil
		}
		err := d.write("memory.reclaim", strconv.FormatUint(usage-limit, 10))
		switch {
		case unset(err): // before Linux 5.19; setting the limit takes the page cache back
			text, err := d.read("memory.stat")
			if err != nil {
				return 0, err
			}
			return usage - min(usage, number(text, "active_file")+number(text, "inactive_file")), nil
		case errors.Is(err, unix.EAGAIN): // it is all that could be had
			stuck = true
		case err != nil:
			return 0, err
		}
	}
}

func number(text, key string) uint64 {
	v, _ := strconv.ParseUint(field(text, key), 10, 64)
	return v
}

func pick(d dir, v1, v2 string) string {
	if d.tree.Unified {
		return v2
	}
	return v1
}

// setMemory1 keeps v1's rule that the limit never exceeds that of memory and swap: what grows goes from
// the outside in, what shrinks from the inside out.
func setMemory1(t *txn, d dir, m memory) error {
	const limitFile, swapFile = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	var list []entry
	if m.limit != 0 {
		list = append(list, entry{limitFile, strconv.FormatInt(max(m.limit, -1), 10)})
	}
	if m.swap != 0 {
		current, err := d.uint(swapFile)
		swap := entry{swapFile, strconv.FormatInt(max(m.swap, -1), 10)}
		switch {
		case unset(err) && (m.swap < 0 || m.swap == m.limit):
			// The kernel does not account swap: there is no limit, or no swap is to be had by the limit.
		case unset(err):
			return errs.New(errs.Unsupported, "memory swap %d: this kernel does not account swap. Boot it with swapaccount=1", m.swap)
		case err != nil:
			return err
		case m.swap < 0 || uint64(m.swap) >= current:
			list = append([]entry{swap}, list...)
		default:
			list = append(list, swap)
		}
	}
	if m.reservation != 0 {
		list = append(list, entry{"memory.soft_limit_in_bytes", strconv.FormatInt(max(m.reservation, -1), 10)})
	}
	if v := deref(m.KernelTCP); v != 0 {
		list = append(list, entry{"memory.kmem.tcp.limit_in_bytes", strconv.FormatInt(max(v, -1), 10)})
	}
	if m.Swappiness != nil {
		if *m.Swappiness > 100 {
			return errs.New(errs.Invalid, "memory swappiness %d: it is 0 to 100", *m.Swappiness)
		}
		list = append(list, entry{"memory.swappiness", strconv.FormatUint(*m.Swappiness, 10)})
	}
	for _, e := range list {
		if err := t.set(d, e.file, e.value); err != nil {
			return explainMemory(d, e, err)
		}
	}
	return setOOM(t, d, m)
}

// explainMemory says what the kernel's refusal of a limit means.
func explainMemory(d dir, e entry, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		if usage, e2 := d.uint("memory.usage_in_bytes"); e2 == nil {
			return errs.New(errs.Conflict, "%s %s: the group uses %d and the kernel cannot take that much back: %w", e.file, e.value, usage, err)
		}
	case errors.Is(err, unix.EINVAL) && strings.HasSuffix(e.file, "limit_in_bytes"):
		return errs.New(errs.Invalid, "%s %s: the limit of memory and swap must not be below that of memory: %w", e.file, e.value, err)
	}
	return err
}

// setOOM turns v1's OOM killer off or on again.
func setOOM(t *txn, d dir, m memory) error {
	if m.DisableOOMKiller == nil || !*m.DisableOOMKiller && !t.update {
		return nil
	}
	want, old := "0", "0"
	if *m.DisableOOMKiller {
		want = "1"
	}
	if t.update {
		text, err := d.read("memory.oom_control")
		if err != nil {
			return err
		}
		if old = field(text, "oom_kill_disable"); old == want {
			return nil
		}
	}
	if err := d.write("memory.oom_control", want); err != nil {
		return err
	}
	t.undo = append(t.undo, func() error { return d.write("memory.oom_control", old) })
	return nil
}

func setMemory2(t *txn, d dir, m memory) error {
	if deref(m.DisableOOMKiller) {
		return errs.New(errs.Unsupported, "memory disableOOMKiller: cgroup v2 cannot turn its OOM killer off")
	}
	if m.Swappiness != nil {
		return errs.New(errs.Unsupported, "memory swappiness %d: cgroup v2 has no swappiness of its own", *m.Swappiness)
	}
	swap, err := swapMax(d, m)
	if err != nil {
		return err
	}
	if swap != "" {
		err := t.set(d, "memory.swap.max", swap)
		if unset(err) && (swap == "max" || swap == "0") && d.has("memory.max") {
			err = nil // no swap in this kernel: nothing is used, and nothing more could be
		}
		if err != nil {
			return err
		}
	}
	if m.limit != 0 {
		if err := t.set(d, "memory.max", orMax(m.limit)); err != nil {
			return err
		}
	}
	if m.reservation != 0 {
		return t.set(d, "memory.low", orMax(m.reservation))
	}
	return nil
}

func orMax(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

// swapMax is the value of memory.swap.max, which counts swap alone where the resources count the sum. An
// update of the sum alone is taken against the limit in force.
func swapMax(d dir, m memory) (string, error) {
	if m.swap <= 0 {
		if m.swap < 0 {
			return "max", nil
		}
		return "", nil
	}
	limit := m.limit
	if limit == 0 {
		current, err := d.uint("memory.max")
		if err != nil {
			return "", err
		}
		if limit = int64(min(current, math.MaxInt64)); current == math.MaxUint64 {
			limit = -1
		}
	}
	if limit < 0 {
		return "", errs.New(errs.Invalid, "memory swap %d: it is the sum of memory and swap, and memory has no limit to subtract", m.swap)
	}
	if m.swap < limit {
		return "", errs.New(errs.Invalid, "memory swap %d: it is the sum of memory and swap and less than the memory limit %d", m.swap, limit)
	}
	return strconv.FormatInt(m.swap-limit, 10), nil
}

// uint reads a file with one number; "max" is MaxUint64, and -1, as v1 writes some limits, too.
func (d dir) uint(file string) (uint64, error) {
	s, err := d.get(file)
	if err != nil {
		return 0, err
	}
	if s == "max" || s == "-1" {
		return math.MaxUint64, nil
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %q is not a number", d.name(file), s)
	}
	return v, nil
}

// field returns the value of a key in a file of "key value" lines, "" when it has none.
func field(text, key string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			return v
		}
	}
	return ""
}
