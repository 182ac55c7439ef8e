package seccomp

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// policy is an OCI profile with its words understood: what is left is numbers.
type policy struct {
	deny   uint32 // the default verdict
	enosys bool   // calls above every named one answer ENOSYS
	notify bool
	flags  uint
	rules  []named
	next   int // row of the table behind the last one looked up

	unsorted, sorted []placed // of place
}

// lookup finds a name's row, nil for a name that no table has. Profiles are mostly in order: then it is the next row, or soon
// after.
func (p *policy) lookup(name string) *call {
	for i := p.next; i < min(p.next+4, len(calls)); i++ {
		if calls[i].name == name {
			p.next = i + 1
			return &calls[i]
		}
	}
	i := find(name)
	if i < 0 {
		return nil
	}
	p.next = i + 1
	return &calls[i]
}

// named is a rule for one system call.
type named struct {
	call *call
	rule rule
}

// rule gives a verdict when all its conditions hold; without conditions always.
type rule struct {
	ret   uint32
	conds []cond
}

// cond compares one of the six arguments, as 64 bits without sign.
type cond struct {
	index uint
	op    specs.LinuxSeccompOperator
	value uint64
	two   uint64 // of OpMaskedEqual: what the argument, masked by value, equals
}

const maxErrno = 4095 // the kernel's MAX_ERRNO: a filter cannot return more

// read understands an OCI profile, or says which word it does not.
func read(p *specs.LinuxSeccomp) (*policy, error) {
	deny, err := verdict(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("default action: %w", err)
	}
	if p.DefaultAction == specs.ActNotify {
		return nil, errors.New("SCMP_ACT_NOTIFY cannot be used as default action")
	}
	out := &policy{deny: deny, enosys: deny != unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)}
	switch p.DefaultAction {
	case specs.ActAllow, specs.ActLog, specs.ActTrace: // a permissive profile lets new calls through, and a tracer answers itself
		out.enosys = false
	}
	n := 0
	for i := range p.Syscalls {
		n += len(p.Syscalls[i].Names)
	}
	out.rules = make([]named, 0, min(n, 4096))
	out.unsorted = make([]placed, 0, min(n+n/8, 4096))
	for i := range p.Syscalls {
		if err := out.add(&p.Syscalls[i]); err != nil {
			return nil, err
		}
	}
	if out.notify && p.ListenerPath == "" {
		return nil, errors.New("SCMP_ACT_NOTIFY needs a listenerPath")
	}
	out.flags, err = flags(p.Flags, out.notify)
	return out, err
}

// add understands one block of the profile: the same verdict and conditions for several names.
func (p *policy) add(s *specs.LinuxSyscall) error {
	if len(s.Names) == 0 {
		return errors.New("a rule without names of system calls")
	}
	ret, err := verdict(s.Action, s.ErrnoRet)
	if err != nil {
		return fmt.Errorf("rule for %s: %w", s.Names[0], err)
	}
	rules, err := conditions(s.Args, ret)
	if err != nil {
		return fmt.Errorf("rule for %s: %w", s.Names[0], err)
	}
	for _, name := range s.Names {
		if name == "" {
			return errors.New("empty string is not a valid syscall")
		}
		if s.Action == specs.ActNotify {
			if name == "write" { // the listener is handed over by a write that nobody would answer
				return errors.New("SCMP_ACT_NOTIFY cannot be used for the write syscall")
			}
			p.notify = true
		}
		c := p.lookup(name)
		if c == nil {
			continue // not a call of any kernel this was built for: cannot be made, or is above the last named
		}
		for _, r := range rules {
			p.rules = append(p.rules, named{c, r})
		}
	}
	return nil
}

// conditions turns the arguments of a block into rules: one that needs them all or, when two of them look
// at the same argument, one for each, as runc has always read such profiles.
func conditions(args []specs.LinuxSeccompArg, ret uint32) ([]rule, error) {
	var conds []cond
	var seen [6]bool
	repeated := false
	for _, a := range args {
		if a.Index > 5 {
			return nil, fmt.Errorf("argument index %d: a system call has 6 arguments", a.Index)
		}
		if !slices.Contains(Operators(), a.Op) {
			return nil, fmt.Errorf("operator %q is not known", a.Op)
		}
		repeated = repeated || seen[a.Index]
		seen[a.Index] = true
		c := cond{a.Index, a.Op, a.Value, a.ValueTwo}
		if a.Op == specs.OpMaskedEqual {
			c.two &= c.value // bits outside the mask cannot be asked for
		}
		conds = append(conds, c)
	}
	if !repeated {
		return []rule{{ret, conds}}, nil
	}
	var out []rule
	for _, c := range conds {
		out = append(out, rule{ret, []cond{c}})
	}
	return out, nil
}

// verdict is the value a filter returns for an action. The errno is EPERM where the profile gives none.
func verdict(a specs.LinuxSeccompAction, errnoRet *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errnoRet != nil {
		if a != specs.ActErrno && a != specs.ActTrace {
			return 0, fmt.Errorf("action %s takes no errnoRet", a)
		}
		if limit := uint(unix.SECCOMP_RET_DATA); *errnoRet > limit || a == specs.ActErrno && *errnoRet > maxErrno {
			return 0, fmt.Errorf("errnoRet %d of %s is out of range", *errnoRet, a)
		}
		data = uint32(*errnoRet)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return unix.SECCOMP_RET_USER_NOTIF, nil
	}
	return 0, fmt.Errorf("action %q is not known", a)
}

// flags are those of seccomp(2). A profile that does not mention flags at all, as most do not, gets
// SPEC_ALLOW: the mitigation it turns off costs much and newer kernels do not tie it to seccomp either.
func flags(list []specs.LinuxSeccompFlag, notify bool) (uint, error) {
	var out uint
	if list == nil {
		out = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	}
	for _, f := range list {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC": // the loading process has one thread
		case specs.LinuxSeccompFlagLog:
			out |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			out |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			if notify { // the kernel refuses it without a listener
				out |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
			}
		default:
			return 0, fmt.Errorf("flag %q is not known", f)
		}
	}
	if notify {
		out |= unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	return out, nil
}

// Actions are the names of actions that a profile may use, for "features".
func Actions() []specs.LinuxSeccompAction {
	return []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess,
		specs.ActKillThread, specs.ActLog, specs.ActNotify, specs.ActTrace, specs.ActTrap}
}

// Operators are the names of comparisons that a profile may use, for "features".
func Operators() []specs.LinuxSeccompOperator {
	return []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan,
		specs.OpLessEqual, specs.OpLessThan, specs.OpMaskedEqual, specs.OpNotEqual}
}

// Flags are the names of flags that a profile may use, for "features".
func Flags() []specs.LinuxSeccompFlag {
	return []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagSpecAllow,
		specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagWaitKillableRecv}
}
