package runtime

import (
	"context"
	"encoding/binary"
	goruntime "runtime"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// PrepareHolder makes the program that holds a pod's namespaces: it makes or joins them, gives up
// everything it has, and waits to be killed. It has no file, no capability and an empty root directory.
func PrepareHolder(ctx context.Context, o HolderOptions) (*Prepared, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return prepareHolder(machine{}, o)
}

func prepareHolder(h host, o HolderOptions) (*Prepared, error) {
	return newCompiler(o.ID, h).compile("pause", func(c *compiler) error { return c.holder(&o) })
}

func (c *compiler) holder(o *HolderOptions) error {
	b := &build{uidMaps: o.UIDMappings, gidMaps: o.GIDMappings}
	list := make([]specs.LinuxNamespace, 0, len(o.Namespaces)+len(o.Join)+1)
	for _, t := range o.Namespaces {
		list = append(list, specs.LinuxNamespace{Type: t})
	}
	for _, n := range nsFlags { // in a fixed order, since programs are compared
		if o.Join[n.name] != nil {
			list = append(list, specs.LinuxNamespace{Type: n.name})
		}
	}
	list = append(list, specs.LinuxNamespace{Type: specs.MountNamespace})
	if err := c.planNamespaces(list, o.Join, &b.ns, false); err != nil {
		return errs.New(errs.KindOf(err), "pod %s: %w", o.ID, err)
	}
	b.userns = b.ns.all()&unix.CLONE_NEWUSER != 0
	if err := c.planUserns(o.ID, b); err != nil {
		return err
	}
	if b.ns.early() || b.ns.late() {
		return errs.New(errs.Unsupported, "pod %s: a holder cannot join a PID namespace", o.ID)
	}
	var err error
	if b.tasks, err = c.planCgroupPlace(o.Cgroup); err != nil {
		return err
	}
	c.procfsFD = c.files.reserve()
	c.req.Name = "pause"
	c.begin(b.tasks)
	c.joinNamespaces(&b.ns)
	if err := c.identity(&specs.Spec{Hostname: o.Hostname, Domainname: o.Domainname}, &b.ns); err != nil {
		return errs.New(errs.KindOf(err), "pod %s: %w", o.ID, err)
	}
	if err := c.sysctls(o.Sysctls, &b.ns); err != nil {
		return errs.New(errs.KindOf(err), "pod %s: %w", o.ID, err)
	}
	c.holderLimits(o, b)
	c.emptyRoot()
	c.hold(o)
	return nil
}

// holderLimits sets the OOM score.
func (c *compiler) holderLimits(o *HolderOptions, b *build) {
	c.req.Gate = o.Gate
	if o.OOMScoreAdj != nil {
		adj := c.clampOOM(*o.OOMScoreAdj, o.Clamp)
		if b.userns {
			c.req.OOMScoreAdj = adj
		} else {
			value := strconv.Itoa(*adj)
			c.writeProc("set oom_score_adj to "+value, "self/oom_score_adj", value)
		}
	}
}

// emptyRoot makes an empty read-only filesystem the only one.
func (c *compiler) emptyRoot() {
	c.p.Subject("make the mounts of the launcher slaves")
	c.p.Call(unix.SYS_MOUNT, nilp, c.p.Str("/"), nilp, num(unix.MS_REC|unix.MS_SLAVE), nilp)
	void := c.p.Slot("void")
	c.makeVoid(void)
	c.attachAt(void.Val(), "/")
	c.p.Subject("enter the empty root")
	c.p.Call(unix.SYS_FCHDIR, void.Val())
	c.pivot()
	c.p.Call(unix.SYS_CHDIR, c.p.Str("/"))
}

// hold gives everything up and waits.
func (c *compiler) hold(o *HolderOptions) {
	c.p.Subject("name the process")
	c.p.Call(unix.SYS_PRCTL, num(unix.PR_SET_NAME), c.p.Str("pause"), num(0), num(0), num(0))
	// With SIGCHLD ignored the kernel reaps for PID 1 of the pod.
	c.p.Subject("ignore SIGCHLD")
	const sigIgn = 1
	c.p.Call(unix.SYS_RT_SIGACTION, num(unix.SIGCHLD), c.p.Words(sigIgn, 0, 0, 0), nilp, num(8))
	c.p.Subject("start a session")
	c.p.Call(unix.SYS_SETSID)
	c.credentials(&processPlan{proc: &specs.Process{NoNewPrivileges: true}, userns: true})
	// A holder never execs, so its labels change at once: last, since they may forbid all of the above.
	if o.ApparmorProfile != "" {
		c.p.Subject("change to the AppArmor profile " + o.ApparmorProfile)
		c.apparmor("changeprofile", o.ApparmorProfile)
	}
	if o.SelinuxLabel != "" {
		c.writeProc("change to the SELinux label "+o.SelinuxLabel, "self/attr/current", o.SelinuxLabel)
	}
	if c.req.Gated() {
		c.p.Subject("wait at the gate")
		c.p.Gate(num(launch.ReportFD), num(launch.GateFD))
	}
	c.p.Subject("report ready")
	c.p.Report(num(launch.ReportFD), launch.RecordReady)
	c.p.Subject("load the seccomp filter")
	const setModeFilter = 1
	c.p.Call(unix.SYS_SECCOMP, num(setModeFilter), num(0), c.p.Filter(pauseFilter(goruntime.GOARCH)))
	c.p.Subject("close descriptors")
	c.p.Call(unix.SYS_CLOSE_RANGE, num(0), num(1<<32-1), num(0))
	c.p.Subject("wait")
	c.p.Pause()
}

// pauseFilter allows a holder what it still does, and ends it for anything else.
func pauseFilter(goarch string) []byte {
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if goarch == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
	)
	insns := []unix.SockFilter{
		{Code: load, K: 4}, // architecture
		{Code: equal, K: arch, Jf: 5},
		{Code: load, K: 0}, // number
		{Code: equal, K: uint32(unix.SYS_PPOLL), Jt: 2},
		{Code: equal, K: uint32(unix.SYS_CLOSE_RANGE), Jt: 1},
		{Code: equal, K: uint32(unix.SYS_RESTART_SYSCALL), Jf: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
	}
	b := make([]byte, 0, 8*len(insns))
	for _, in := range insns {
		b = binary.LittleEndian.AppendUint16(b, in.Code)
		b = append(b, in.Jt, in.Jf)
		b = binary.LittleEndian.AppendUint32(b, in.K)
	}
	return b
}
