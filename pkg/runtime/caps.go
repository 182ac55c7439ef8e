package runtime

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// capNames are the capabilities by number, as the kernel's headers name them without CAP_.
var capNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// capabilities are the five sets, as bit masks.
type capabilities struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

// planCaps reads the five sets. What this process has not in its bounding set cannot be given: with clamp
// it is left out, else it is an error; in a user namespace of its own a container may have all.
func (c *compiler) planCaps(s *specs.LinuxCapabilities, clamp, userns bool) (capabilities, error) {
	var out capabilities
	if s == nil {
		return out, nil
	}
	own, err := c.host.caps()
	if err != nil {
		return out, err
	}
	have := own.bounding
	if userns {
		have = 1<<(own.last+1) - 1
	}
	for _, set := range []struct {
		names []string
		to    *uint64
	}{{s.Bounding, &out.bounding}, {s.Effective, &out.effective}, {s.Permitted, &out.permitted}, {s.Inheritable, &out.inheritable}, {s.Ambient, &out.ambient}} {
		for _, name := range set.names {
			n := capNumber(name)
			switch {
			case n < 0 || n > own.last:
				c.warn("capability %s is unknown to this kernel", name)
			case have>>n&1 != 0:
				*set.to |= 1 << n
			case clamp:
				c.warn("capability %s is not in this process's bounding set", name)
			default:
				return out, errs.With(errs.Invalid, wrapErrno(unix.EPERM, "capability %s is not in this process's bounding set, so no container can have it", name))
			}
		}
	}
	// The kernel raises no ambient capability that is not permitted and inheritable. Configurations written
	// by runc and crun before 2024 list some that are not; they ran, without them.
	for n := range own.last + 1 {
		if bit := uint64(1) << n; out.ambient&bit != 0 && out.permitted&out.inheritable&bit == 0 {
			c.warn("can't raise ambient capability CAP_%s: it is not permitted and inheritable too", capName(n))
			out.ambient &^= bit
		}
	}
	return out, nil
}

// CapabilityMask is the set of capabilities with these names; names that nothing has are left out.
func CapabilityMask(names []string) (mask uint64) {
	for _, name := range names {
		if n := capNumber(name); n >= 0 && n < 64 {
			mask |= 1 << n
		}
	}
	return mask
}

// warn keeps a warning, once.
func (c *compiler) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, w := range c.warnings {
		if w == text {
			return
		}
	}
	c.warnings = append(c.warnings, text)
}

func capNumber(name string) int {
	name = strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for i, n := range capNames {
		if n == name {
			return i
		}
	}
	return -1
}

// credentials adds what makes the process the container's user, with the container's capabilities.
func (c *compiler) credentials(pl *processPlan) {
	own, _ := c.host.caps()
	u, caps := pl.proc.User, pl.caps
	c.p.Subject("drop capabilities from the bounding set")
	for n := 0; n <= own.last; n++ {
		if caps.bounding>>n&1 == 0 {
			c.p.Call(unix.SYS_PRCTL, num(unix.PR_CAPBSET_DROP), num(n), num(0), num(0), num(0))
		}
	}
	c.p.Subject("keep capabilities across the change of user")
	c.p.Call(unix.SYS_PRCTL, num(unix.PR_SET_KEEPCAPS), num(1), num(0), num(0), num(0))
	c.groups(pl, u)
	c.p.Subject("become group " + strconv.FormatUint(uint64(u.GID), 10))
	c.p.Call(unix.SYS_SETRESGID, num(u.GID), num(u.GID), num(u.GID))
	c.hint(unmapped("gid", u.GID))
	c.p.Subject("become user " + strconv.FormatUint(uint64(u.UID), 10))
	c.p.Call(unix.SYS_SETRESUID, num(u.UID), num(u.UID), num(u.UID))
	c.hint(unmapped("uid", u.UID))
	c.p.Subject("set capabilities")
	head := c.p.Words(unix.LINUX_CAPABILITY_VERSION_3)
	e, p, i := caps.effective, caps.permitted, caps.inheritable
	const low = 1<<32 - 1
	c.p.Call(unix.SYS_CAPSET, head, c.p.Words(e&low|p<<32, i&low|e>>32<<32, p>>32|i>>32<<32))
	for n := 0; n <= own.last; n++ {
		if caps.ambient>>n&1 != 0 {
			c.p.Subject("raise ambient capability CAP_" + capName(n))
			c.p.Call(unix.SYS_PRCTL, num(unix.PR_CAP_AMBIENT), num(unix.PR_CAP_AMBIENT_RAISE), num(n), num(0), num(0))
		}
	}
	if pl.proc.NoNewPrivileges {
		c.p.Subject("set no_new_privs")
		c.p.Call(unix.SYS_PRCTL, num(unix.PR_SET_NO_NEW_PRIVS), num(1), num(0), num(0), num(0))
	}
}

func capName(n int) string {
	if n < len(capNames) {
		return capNames[n]
	}
	return strconv.Itoa(n)
}

func (c *compiler) groups(pl *processPlan, u specs.User) {
	c.p.Subject("set additional groups")
	if len(u.AdditionalGids) == 0 {
		op := c.p.Call(unix.SYS_SETGROUPS, num(0), nilp)
		if pl.userns || c.confined {
			op.Accept(unix.EPERM) // denied in the namespace: then there are none to drop either
		}
		return
	}
	list := make([]byte, 0, 4*len(u.AdditionalGids))
	for _, g := range u.AdditionalGids {
		list = append(list, byte(g), byte(g>>8), byte(g>>16), byte(g>>24))
	}
	c.p.Call(unix.SYS_SETGROUPS, num(len(u.AdditionalGids)), c.p.Bytes(list))
	c.hint(func(e syscall.Errno) error {
		switch e {
		case unix.EPERM: // runc's words; the rest says which
			return wrapErrno(e, "cannot set any additional groups in a rootless container: its user namespace denies setgroups")
		case unix.EINVAL:
			return wrapErrno(e, "set additional groups %v: one is not mapped in the container's user namespace", u.AdditionalGids)
		}
		return wrapErrno(e, "set additional groups %v", u.AdditionalGids)
	})
}

func unmapped(what string, id uint32) hint {
	return func(e syscall.Errno) error {
		if e == unix.EINVAL {
			return wrapErrno(e, "%s %d is not mapped in the container's user namespace", what, id)
		}
		return wrapErrno(e, "set %s %d", what, id)
	}
}
