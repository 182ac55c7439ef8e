package runtime

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// schedPolicies are the kernel's numbers of scheduling policies.
var schedPolicies = []struct {
	name specs.LinuxSchedulerPolicy
	nr   uint32
}{
	{specs.SchedOther, 0}, {specs.SchedFIFO, 1}, {specs.SchedRR, 2}, {specs.SchedBatch, 3}, {specs.SchedISO, 4}, {specs.SchedIdle, 5}, {specs.SchedDeadline, 6},
}

// schedFlags are the kernel's bits of sched_attr's flags.
var schedFlags = []struct {
	name specs.LinuxSchedulerFlag
	bit  uint64
}{
	{specs.SchedFlagResetOnFork, 1}, {specs.SchedFlagReclaim, 2}, {specs.SchedFlagDLOverrun, 4}, {specs.SchedFlagKeepPolicy, 8},
	{specs.SchedFlagKeepParams, 16}, {specs.SchedFlagUtilClampMin, 32}, {specs.SchedFlagUtilClampMax, 64},
}

// scheduling adds what the process section says of processors and disks. final are the processors of an
// exec after it has joined the container's cgroup.
func (c *compiler) scheduling(pl *processPlan) error {
	proc := pl.proc
	if s := proc.Scheduler; s != nil {
		attr, err := schedAttr(s)
		if err != nil {
			return err
		}
		// What is nested is a fork, which does not inherit these; and in a user namespace nobody may.
		if pl.userns || pl.nested && (s.Policy == specs.SchedDeadline || slices.Contains(s.Flags, specs.SchedFlagResetOnFork)) {
			c.req.Scheduler = attr
		} else {
			c.p.Subject("set the scheduler")
			c.p.Call(unix.SYS_SCHED_SETATTR, num(0), c.p.Bytes(attr), num(0))
			if pl.cpus != "" {
				c.hint(pinned(pl.cpus))
			}
		}
	}
	if io := proc.IOPriority; io != nil {
		class := map[specs.IOPriorityClass]uint32{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}[io.Class]
		if class == 0 || io.Priority < 0 || io.Priority > 7 {
			return errs.New(errs.Invalid, "ioPriority: class %q, priority %d: classes are IOPRIO_CLASS_RT, _BE and _IDLE, priorities 0 to 7", io.Class, io.Priority)
		}
		c.p.Subject("set the I/O priority")
		const whoProcess, classShift = 1, 13
		c.p.Call(unix.SYS_IOPRIO_SET, num(whoProcess), num(0), num(class<<classShift|uint32(io.Priority)))
	}
	a := proc.ExecCPUAffinity
	switch {
	case a == nil:
		return nil
	case pl.create: // of use to exec, which may be long from now
		return checkAffinity(a)
	case a.Final != "":
		return c.affinity("final", a.Final)
	}
	return nil
}

// checkAffinity refuses lists that no exec could take.
func checkAffinity(a *specs.CPUAffinity) error {
	for what, list := range map[string]string{"initial": a.Initial, "final": a.Final} {
		if list == "" {
			continue
		}
		if _, err := cpuMask(list); err != nil {
			return fmt.Errorf("execCPUAffinity.%s: %w", what, err)
		}
	}
	return nil
}

// pinned words the refusal of a policy that needs every processor, in runc's words.
func pinned(cpus string) hint {
	return func(e syscall.Errno) error {
		if e == unix.EPERM {
			return wrapErrno(e, "process scheduler can't be used together with AllowedCPUs: resources.cpu.cpus is %q", cpus)
		}
		return wrapErrno(e, "set the scheduler")
	}
}

// anyCPU lets the process run on all processors of its cgroup, where its launcher may not.
func (c *compiler) anyCPU() {
	if !c.host.pinned() {
		return
	}
	c.p.Subject("allow every processor")
	all := slices.Repeat([]byte{0xff}, maxCPUs/8)
	c.p.Call(unix.SYS_SCHED_SETAFFINITY, num(0), num(len(all)), c.p.Bytes(all)).Accept()
}

// affinity adds a sched_setaffinity to a list of processors ("0-3,7").
func (c *compiler) affinity(what, list string) error {
	mask, err := cpuMask(list)
	if err != nil {
		return fmt.Errorf("execCPUAffinity.%s: %w", what, err)
	}
	c.p.Subject("set the " + what + " CPU affinity to " + list)
	c.p.Call(unix.SYS_SCHED_SETAFFINITY, num(0), num(len(mask)), c.p.Bytes(mask))
	return nil
}

// maxCPUs is the most that kernels are built for.
const maxCPUs = 8192

func cpuMask(list string) ([]byte, error) {
	mask := make([]byte, maxCPUs/8)
	for _, part := range strings.Split(strings.TrimSpace(list), ",") {
		lo, hi, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			hi = lo
		}
		a, err := strconv.ParseUint(lo, 10, 16)
		b, err2 := strconv.ParseUint(hi, 10, 16)
		if err != nil || err2 != nil || a > b || b >= maxCPUs {
			return nil, errs.New(errs.Invalid, "%q is no list of processors", list)
		}
		for n := a; n <= b; n++ {
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return mask, nil
}

// schedAttr is the kernel's struct sched_attr.
func schedAttr(s *specs.Scheduler) ([]byte, error) {
	policy := -1
	for _, p := range schedPolicies {
		if p.name == s.Policy {
			policy = int(p.nr)
		}
	}
	if policy < 0 {
		return nil, errs.New(errs.Invalid, "scheduler: policy %q is unknown", s.Policy)
	}
	if s.Nice < -20 || s.Nice > 19 {
		return nil, errs.New(errs.Invalid, "scheduler: nice %d is not between -20 and 19", s.Nice)
	}
	if s.Priority < 0 {
		return nil, errs.New(errs.Invalid, "scheduler: priority %d is negative", s.Priority)
	}
	var flags uint64
	for _, name := range s.Flags {
		bit := uint64(0)
		for _, f := range schedFlags {
			if f.name == name {
				bit = f.bit
			}
		}
		if bit == 0 {
			return nil, errs.New(errs.Invalid, "scheduler: flag %q is unknown", name)
		}
		flags |= bit
	}
	const size = 48
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, size), size)
	b = binary.LittleEndian.AppendUint32(b, uint32(policy))
	b = binary.LittleEndian.AppendUint64(b, flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Nice))
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Priority))
	b = binary.LittleEndian.AppendUint64(b, s.Runtime)
	b = binary.LittleEndian.AppendUint64(b, s.Deadline)
	return binary.LittleEndian.AppendUint64(b, s.Period), nil
}
