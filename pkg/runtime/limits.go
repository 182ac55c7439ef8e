package runtime

import (
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// rlimitNames are the resources by number.
var rlimitNames = []string{
	"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
}

// capSysResource is CAP_SYS_RESOURCE.
const capSysResource = 24

func parseRlimit(l specs.POSIXRlimit) (launch.Rlimit, error) {
	name := strings.TrimPrefix(l.Type, "RLIMIT_")
	for i, n := range rlimitNames {
		if n != name || name == l.Type {
			continue
		}
		if l.Soft > l.Hard {
			return launch.Rlimit{}, errs.New(errs.Invalid, "resource limit %s: the soft limit %d is above the hard limit %d", l.Type, l.Soft, l.Hard)
		}
		return launch.Rlimit{Resource: i, Soft: l.Soft, Hard: l.Hard}, nil
	}
	return launch.Rlimit{}, errs.New(errs.Invalid, "resource limit %q is unknown", l.Type)
}

// limits reads resource limits and the OOM score. In a user namespace neither raising one nor lowering
// the other is allowed, so there the launcher sets them while the program waits; elsewhere the program
// does, and the limits it is to set are returned.
func (c *compiler) limits(pl *processPlan) ([]launch.Rlimit, error) {
	var list []launch.Rlimit
	seen := 0
	for _, s := range pl.proc.Rlimits {
		l, err := parseRlimit(s)
		if err != nil {
			return nil, err
		}
		if seen>>l.Resource&1 != 0 {
			return nil, errs.New(errs.Invalid, "resource limit %s appears twice", s.Type)
		}
		seen |= 1 << l.Resource
		if l, err = c.clampRlimit(l, s.Type, pl.clamp); err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	adj, err := c.oomScoreAdj(pl)
	if err != nil {
		return nil, err
	}
	if c.confined {
		return list, nil // the launcher may no more than the program
	}
	if pl.userns {
		c.req.OOMScoreAdj, c.req.Rlimits = adj, list
		return nil, nil
	}
	if adj != nil {
		c.writeProc("set oom_score_adj to "+strconv.Itoa(*adj), "self/oom_score_adj", strconv.Itoa(*adj))
	}
	return list, nil
}

// confinedOOM adds what sets the OOM score of a container whose launcher is not the machine's root: first
// of all, while the process is still its user's. A score that may not be lowered stays as it is.
func (c *compiler) confinedOOM(adj *int) {
	if !c.confined || adj == nil {
		return
	}
	value := strconv.Itoa(*adj)
	c.p.Subject("set oom_score_adj to " + value)
	c.open(c.procfs(), "self/oom_score_adj", unix.O_WRONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV).Save(c.dst)
	c.p.Call(unix.SYS_WRITE, c.dst.Val(), c.p.Str(value), num(len(value))).Accept(unix.EACCES)
	c.close(c.dst)
}

// rlimits adds the operations that set limits from inside.
func (c *compiler) rlimits(list []launch.Rlimit) {
	for _, l := range list {
		name := "RLIMIT_" + rlimitNames[l.Resource]
		c.p.Subject("set " + name)
		c.p.Call(unix.SYS_PRLIMIT64, num(0), num(l.Resource), c.p.Words(l.Soft, l.Hard), nilp)
		c.hint(func(e syscall.Errno) error { return wrapErrno(e, "set %s to %d:%d", name, l.Soft, l.Hard) })
	}
}

// clampRlimit lowers a hard limit that this process may not raise.
func (c *compiler) clampRlimit(l launch.Rlimit, name string, clamp bool) (launch.Rlimit, error) {
	own, err := c.host.caps()
	if err != nil || own.has(capSysResource) {
		return l, err
	}
	hard, err := c.host.hardLimit(l.Resource)
	if err != nil || l.Hard <= hard {
		return l, err
	}
	if !clamp {
		return l, errs.With(errs.Invalid, wrapErrno(unix.EPERM, "set %s to %d:%d: this process's own limit is %d, and it has no CAP_SYS_RESOURCE", name, l.Soft, l.Hard, hard))
	}
	c.warn("%s %d is above this process's own limit, and it has no CAP_SYS_RESOURCE: %d", name, l.Hard, hard)
	return launch.Rlimit{Resource: l.Resource, Soft: min(l.Soft, hard), Hard: hard}, nil
}

// oomScoreAdj is the score to be written, nil for none.
func (c *compiler) oomScoreAdj(pl *processPlan) (*int, error) {
	adj := pl.proc.OOMScoreAdj
	if adj == nil {
		return nil, nil
	}
	if *adj < -1000 || *adj > 1000 {
		return nil, errs.New(errs.Invalid, "oomScoreAdj %d is not between -1000 and 1000", *adj)
	}
	return c.clampOOM(*adj, pl.clamp), nil
}

// clampOOM raises a score to this process's own where that cannot be lowered.
func (c *compiler) clampOOM(adj int, clamp bool) *int {
	caps, err := c.host.caps()
	if !clamp || err != nil || caps.has(capSysResource) {
		return &adj
	}
	if own, err := c.host.oomScoreAdj(); err == nil && adj < own {
		c.warn("oomScoreAdj %d is below this process's own, and it has no CAP_SYS_RESOURCE: %d", adj, own)
		adj = own
	}
	return &adj
}
