package runtime

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

var update = flag.Bool("update", false, "write the golden programs")

// paper is a host that opens harmless things and writes down what it was asked.
type paper struct {
	t   *testing.T
	log *strings.Builder
	dir string
	own hostCaps
	few bool
}

func (p *paper) say(format string, args ...any) { fmt.Fprintf(p.log, "# "+format+"\n", args...) }

func (p *paper) open(name string) (*os.File, error) { return os.Open(name) }

func (p *paper) openTree(path string, recursive bool) (*os.File, error) {
	p.say("clone %s recursive=%v", path, recursive)
	switch {
	case path == "/sys":
		return os.Open(path)
	case strings.HasPrefix(path, "/none"):
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: unix.ENOENT}
	case strings.HasSuffix(path, ".file"):
		return os.Open("/dev/null")
	}
	return p.open(p.dir)
}

func (p *paper) openDevice(d *device) (*os.File, error) {
	p.say("clone device /%s", d.dest)
	return p.open("/dev/null")
}

func (p *paper) newMount(fstype string, options []sys.MountOption) (*os.File, error) {
	p.say("make %s %v", fstype, options)
	return p.open(p.dir)
}

func (p *paper) setMount(_ *os.File, recursive bool, a unix.MountAttr) error {
	p.say("set recursive=%v set=%#x clr=%#x propagation=%#x", recursive, a.Attr_set, a.Attr_clr, a.Propagation)
	return nil
}

func (p *paper) mknod(_ *os.File, name string, d *device) error {
	p.say("make node %s %o %d:%d", name, d.kind|d.mode, d.major, d.minor)
	return nil
}

func (p *paper) chown(_ *os.File, name string, uid, gid uint32) error {
	p.say("chown %q %d:%d", name, uid, gid)
	return nil
}

func (p *paper) procfs() (*os.File, error)         { return p.open(p.dir) }
func (p *paper) caps() (hostCaps, error)           { return p.own, nil }
func (p *paper) hardLimit(int) (uint64, error)     { return 1000, nil }
func (p *paper) oomScoreAdj() (int, error)         { return 0, nil }
func (p *paper) hierarchies() ([]Hierarchy, error) { return parseHierarchies(hybrid), nil }
func (p *paper) isUserns(f *os.File) bool          { return f != nil }
func (p *paper) newUserns(uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	p.say("make a user namespace %v %v", uids, gids)
	return p.open(p.dir)
}
func (p *paper) foreign(pid int, _ uintptr) (uintptr, error) { return uintptr(pid), nil }
func (p *paper) pinned() bool                                { return p.few }
func (p *paper) rootOf(int, *os.File) (*os.File, error)      { return p.open(p.dir) }

// hybrid is a machine with two v1 hierarchies and a v2 one.
const hybrid = `30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
`

// place is a cgroup on that machine.
type place struct{ dir string }

func (p place) Path() string           { return "/pods/x" }
func (p place) Dir() (*os.File, error) { return os.Open(p.dir) }
func (p place) TaskFiles() ([]*os.File, error) {
	a, err := os.Open(p.dir)
	if err != nil {
		return nil, err
	}
	b, err := os.Open(p.dir)
	return []*os.File{a, b}, err
}

// bare is the smallest container there is.
func bare() *specs.Spec {
	return &specs.Spec{
		Root:    &specs.Root{Path: "/bundle/rootfs"},
		Process: &specs.Process{Args: []string{"/bin/app"}, Cwd: "/"},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}},
	}
}

// pidfds stand for the holder of a pod.
func pidfds(p *paper, types ...specs.LinuxNamespaceType) map[specs.LinuxNamespaceType]*os.File {
	f, err := os.Open(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	m := map[specs.LinuxNamespaceType]*os.File{}
	for _, t := range types {
		m[t] = f
	}
	return m
}

func addNS(s *specs.Spec, types ...specs.LinuxNamespaceType) {
	for _, t := range types {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t})
	}
}

// rootlessSpec is of a launcher without privileges, whose user namespace is there already.
func rootlessSpec(p *paper, o *Options) {
	addNS(o.Spec, specs.PIDNamespace, specs.UserNamespace)
	o.Namespaces = pidfds(p, specs.UserNamespace)
	o.Spec.Linux.UIDMappings, o.Spec.Linux.GIDMappings = maps, maps
	o.Confined, o.UserFirst = true, true
}

var maps = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}

// features are the golden programs: a file each.
var features = []struct {
	name   string
	change func(p *paper, o *Options)
}{
	{"bare", func(*paper, *Options) {}},
	{"namespaces", func(_ *paper, o *Options) {
		addNS(o.Spec, specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace, specs.TimeNamespace)
		o.Spec.Hostname, o.Spec.Domainname = "host", "domain"
		o.Spec.Linux.Sysctl = map[string]string{"net.ipv4.conf.eth0/1.forwarding": "1", "kernel/msgmax": "2"}
		o.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1, Nanosecs: 2}}
	}},
	{"pod", func(p *paper, o *Options) {
		addNS(o.Spec, specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace)
		o.Namespaces = pidfds(p, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace)
	}},
	{"shared-pid", func(p *paper, o *Options) {
		addNS(o.Spec, specs.PIDNamespace)
		o.Namespaces = pidfds(p, specs.PIDNamespace)
		o.Spec.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "hidepid=2"}}}
		o.Gate = true
	}},
	{"host-mounts", func(_ *paper, o *Options) {
		o.Spec.Linux.Namespaces = nil
		o.Spec.Linux.MaskedPaths = []string{"/proc/keys"}
		o.HostVisible = true
	}},
	{"mounts-in-order", func(_ *paper, o *Options) {
		o.Spec.Mounts = []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "unbindable"}},
			{Destination: "/peer", Type: "bind", Source: "/srv/peer", Options: []string{"rbind", "rshared"}},
		}
		o.InOrder = true
	}},
	{"rootless", func(p *paper, o *Options) {
		rootlessSpec(p, o)
		o.Spec.Mounts = []specs.Mount{
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup"},
		}
		score := -500
		o.Spec.Process.OOMScoreAdj = &score
		o.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}
		o.Spec.Process.User = specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}}
		o.StdioOwner = true
	}},
	{"rootless-cgroup", func(p *paper, o *Options) {
		rootlessSpec(p, o)
		addNS(o.Spec, specs.CgroupNamespace)
		o.Cgroup = place{p.dir}
		o.Spec.Mounts = []specs.Mount{
			{Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}},
		}
	}},
	{"rootless-placed", func(p *paper, o *Options) {
		rootlessSpec(p, o)
		addNS(o.Spec, specs.CgroupNamespace)
		o.Cgroup, o.Place = place{p.dir}, func(int, bool) error { return nil }
	}},
	{"rootless-pod", func(p *paper, o *Options) {
		rootlessSpec(p, o)
		addNS(o.Spec, specs.NetworkNamespace)
		for t, f := range pidfds(p, specs.NetworkNamespace) {
			o.Namespaces[t] = f
		}
	}},
	{"joined-mounts", func(p *paper, o *Options) {
		o.Namespaces = pidfds(p, specs.MountNamespace)
	}},
	{"shared-pid-helper", func(p *paper, o *Options) {
		p.t.Setenv(sys.KernelEnv, "6.17")
		sys.Reprobe()
		addNS(o.Spec, specs.PIDNamespace)
		o.Namespaces = pidfds(p, specs.PIDNamespace)
		o.Spec.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "hidepid=2"}}}
	}},
	{"userns", func(_ *paper, o *Options) {
		addNS(o.Spec, specs.UserNamespace)
		o.Spec.Linux.UIDMappings, o.Spec.Linux.GIDMappings = maps, maps
		o.Spec.Mounts = []specs.Mount{{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}}}
		adj := 7
		o.Spec.Process.OOMScoreAdj = &adj
		o.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1, Hard: 2}}
	}},
	{"userns-pod", func(p *paper, o *Options) {
		addNS(o.Spec, specs.PIDNamespace, specs.NetworkNamespace, specs.UserNamespace)
		o.Spec.Linux.UIDMappings, o.Spec.Linux.GIDMappings = maps, maps
		o.Namespaces = pidfds(p, specs.NetworkNamespace, specs.UserNamespace)
	}},
	{"idmapped", func(p *paper, o *Options) {
		addNS(o.Spec, specs.UserNamespace)
		o.Spec.Linux.UIDMappings, o.Spec.Linux.GIDMappings = maps, maps
		o.Namespaces = pidfds(p, specs.UserNamespace)
		other := []specs.LinuxIDMapping{{HostID: 5, Size: 1}}
		for i, m := range [][]specs.LinuxIDMapping{maps, other, other} { // the pod's, and one that is made once
			o.Spec.Mounts = append(o.Spec.Mounts, specs.Mount{Destination: fmt.Sprintf("/v%d", i), Source: "/srv", Options: []string{"bind"}, UIDMappings: m, GIDMappings: m})
		}
	}},
	{"mounts", func(_ *paper, o *Options) {
		o.Spec.Mounts = []specs.Mount{
			{Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "rro", "noatime", "rslave"}},
			{Destination: "/etc/hosts", Type: "bind", Source: "hosts.file", Options: []string{"bind", "ro", "size=1k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro", "nosuid"}},
			{Destination: "/tmp/x", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "size=1m", "shared"}},
			{Destination: "/ext", Type: "ext4", Source: "/dev/sda1", Options: []string{"ro", "data=ordered"}},
			{Destination: "/tmp/x", Options: []string{"remount", "nosuid"}},
		}
		o.Spec.Root.Readonly = true
		o.Spec.Linux.RootfsPropagation = "shared"
	}},
	{"cgroup", func(p *paper, o *Options) {
		o.Cgroup = place{p.dir}
		o.Spec.Mounts = []specs.Mount{{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}}}
	}},
	{"cgroup-namespace", func(p *paper, o *Options) {
		o.Cgroup = place{p.dir}
		addNS(o.Spec, specs.CgroupNamespace)
		o.Spec.Mounts = []specs.Mount{{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}}}
	}},
	{"masks", func(_ *paper, o *Options) {
		o.Spec.Linux.MaskedPaths = []string{"/proc/keys", "/sys/firmware"}
		o.Spec.Linux.ReadonlyPaths = []string{"/proc/sys"}
	}},
	{"devices", func(_ *paper, o *Options) {
		mode, id := os.FileMode(0o600), uint32(5)
		o.Spec.Mounts = []specs.Mount{{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}}}
		o.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sub/mine", Type: "b", Major: 8, Minor: 1, FileMode: &mode, UID: &id, GID: &id}, {Path: "/dev/fifo", Type: "p"}}
	}},
	{"credentials", func(_ *paper, o *Options) {
		u := uint32(0o77)
		o.Spec.Process.User = specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3, 4}, Umask: &u}
		c := []string{"CAP_KILL", "CAP_CHECKPOINT_RESTORE"}
		o.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: c, Permitted: c, Effective: c[:1], Inheritable: c[:1], Ambient: c[:1]}
		adj := -5
		o.Spec.Process.OOMScoreAdj = &adj
		o.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}}
		o.Spec.Process.ApparmorProfile, o.Spec.Process.SelinuxLabel = "profile", "u:r:t:s0"
		o.Spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	}},
	{"seccomp", func(_ *paper, o *Options) {
		o.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdirat"}, Action: specs.ActErrno}}}
	}},
	{"seccomp-nnp", func(_ *paper, o *Options) {
		o.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdirat"}, Action: specs.ActErrno}}}
		o.Spec.Process.NoNewPrivileges = true
	}},
	{"terminal", func(_ *paper, o *Options) {
		o.Spec.Process.Terminal = true
		o.Spec.Process.ConsoleSize = &specs.Box{Height: 24, Width: 80}
	}},
	{"path-and-cwd", func(_ *paper, o *Options) {
		o.Spec.Process.Args = []string{"app", "arg"}
		o.Spec.Process.Env = []string{"PATH=/usr/bin::/bin/", "A=B"}
		o.Spec.Process.Cwd = "/var/../srv/dir"
	}},
	{"cwd-in-readonly-root", func(_ *paper, o *Options) {
		o.Spec.Process.Cwd, o.Spec.Root.Readonly = "/srv/dir", true
	}},
	{"scheduling", func(_ *paper, o *Options) {
		o.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: -3, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}
		o.Spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		o.Spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "9"} // not of a container's first process
	}},
	{"pinned", func(p *paper, o *Options) {
		p.few = true
		o.Cgroup = place{p.dir}
		addNS(o.Spec, specs.UserNamespace) // where the launcher sets the policy
		o.Spec.Linux.UIDMappings, o.Spec.Linux.GIDMappings = maps, maps
		o.Spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedRR, Priority: 5}
	}},
	{"hooks", func(_ *paper, o *Options) {
		addNS(o.Spec, specs.PIDNamespace)
		limit := 5
		hook := []specs.Hook{{Path: "/usr/bin/hook", Args: []string{"hook", "arg"}, Env: []string{"A=b"}, Timeout: &limit}, {Path: "/usr/bin/other"}}
		o.Spec.Hooks = &specs.Hooks{CreateRuntime: hook, CreateContainer: hook, StartContainer: hook[1:], Poststart: hook, Poststop: hook}
		o.Spec.Linux.MaskedPaths = []string{"/proc/keys"}
		o.Gate = true
	}},
	{"hooks-shared-pid", func(p *paper, o *Options) {
		addNS(o.Spec, specs.PIDNamespace)
		o.Namespaces = pidfds(p, specs.PIDNamespace)
		hook := []specs.Hook{{Path: "/usr/bin/hook"}}
		o.Spec.Hooks = &specs.Hooks{CreateRuntime: hook, CreateContainer: hook, StartContainer: hook}
		o.HostMounts = o.Namespaces[specs.PIDNamespace]
		o.Spec.Process.NoNewPrivileges = true
		o.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdirat"}, Action: specs.ActErrno}}}
	}},
	{"seccomp-notify", func(_ *paper, o *Options) {
		o.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/none/agent", Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdirat"}, Action: specs.ActNotify}}}
		o.Spec.Process.NoNewPrivileges = true
		o.Gate, o.Detached = true, true
	}},
	{"memory-policy", func(p *paper, o *Options) {
		o.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0-1,64", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
	}},
	{"net-devices", func(p *paper, o *Options) {
		addNS(o.Spec, specs.NetworkNamespace)
		o.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {Name: "eth0"}}
		f, _ := os.Open(p.dir)
		p.t.Cleanup(func() { f.Close() })
		o.RdtTasks = []*os.File{f}
	}},
	{"extra-files", func(p *paper, o *Options) {
		f, _ := os.Open(p.dir)
		p.t.Cleanup(func() { f.Close() })
		o.ExtraFiles = []*os.File{f, f}
		o.Gate = true
	}},
}

var filter = regexp.MustCompile(`\{\d+ instructions [0-9a-f]{8}\}`)

// golden compares a program, and what its preparation asked of the host, with the file of that name.
func golden(t *testing.T, name string, p *paper, prepared *Prepared) {
	t.Helper()
	defer prepared.Close()
	r := prepared.Request
	got := p.log.String() + fmt.Sprintf("# request: clone=%#x nested=%v gate=%v terminal=%v cgroup=%v enter=%d maps=%v/%v rlimits=%v oom=%v stop=%v notify=%v\n",
		r.Cloneflags, r.Nested, r.Gate, r.Terminal, r.Cgroup >= 0, len(r.Enter), r.UIDMaps, r.GIDMaps, r.Rlimits, r.OOMScoreAdj != nil, r.Stop, r.Notify != nil) + prepared.Text()
	for _, w := range prepared.Warnings {
		got += "# warning: " + w + "\n"
	}
	file := filepath.Join("testdata", "golden", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(want)
	if goruntime.GOARCH != "amd64" { // system calls have other numbers there, which Text shows of filters alone
		for _, s := range []*string{&got, &text} {
			*s = filter.ReplaceAllString(*s, "{filter}")
		}
	}
	if d := cmp.Diff(text, got); d != "" {
		t.Errorf("%s differs (-update writes it anew):\n%s", file, d)
	}
}

func newPaper(t *testing.T) *paper {
	t.Cleanup(sys.Reprobe)
	t.Setenv(sys.KernelEnv, "6.18") // the golden programs are those of a new kernel
	sys.Reprobe()
	return &paper{t: t, log: &strings.Builder{}, dir: t.TempDir(), own: hostCaps{bounding: 1<<41 - 1, last: 40}}
}

func TestGolden(t *testing.T) {
	for _, f := range features {
		t.Run(f.name, func(t *testing.T) {
			p := newPaper(t)
			o := Options{ID: "c1", Spec: bare(), Bundle: "/bundle"}
			f.change(p, &o)
			prepared, err := prepare(p, o)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, f.name, p, prepared)
		})
	}
}

func TestGoldenExec(t *testing.T) {
	p := newPaper(t)
	pidfd := pidfds(p, specs.PIDNamespace)[specs.PIDNamespace]
	for name, flags := range map[string]int{
		"exec": unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET, "exec-userns": unix.CLONE_NEWNS | unix.CLONE_NEWUSER,
		"exec-host-mounts": unix.CLONE_NEWUTS, "exec-rootless": unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUSER,
	} {
		p.log.Reset()
		s := bare()
		proc := &specs.Process{Args: []string{"ls"}, Env: []string{"PATH=/bin"}, Cwd: "/w", Terminal: name == "exec", NoNewPrivileges: true}
		o := ExecOptions{ID: "c1", Spec: s, Process: proc, Pid: flags, Pidfd: pidfd, Cgroup: place{p.dir}}
		if name == "exec-rootless" {
			score := 5
			proc.OOMScoreAdj, proc.User.UID = &score, 7
			o.Cgroup, o.Confined, o.StdioOwner = nil, true, true
		}
		prepared, err := prepareExec(p, o)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, p, prepared)
	}
}

func TestCPUMask(t *testing.T) {
	for list, want := range map[string][2]byte{"0": {1, 0}, "0-2,9": {7, 2}, " 1 , 8-9": {2, 3}} {
		if m, err := cpuMask(list); err != nil || m[0] != want[0] || m[1] != want[1] {
			t.Errorf("%q: %x, %v", list, m[:2], err)
		}
	}
	for _, list := range []string{"", "x", "2-1", "1-", "-1", "8192", "1,,2"} {
		if _, err := cpuMask(list); err == nil {
			t.Errorf("%q is a list of processors", list)
		}
	}
}

func TestGoldenHolder(t *testing.T) {
	p := newPaper(t)
	adj := -998
	prepared, err := prepareHolder(p, HolderOptions{
		ID: "pod", Namespaces: []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.UTSNamespace}, Hostname: "pod",
		Sysctls: map[string]string{"net.core.somaxconn": "99"}, Cgroup: place{p.dir}, OOMScoreAdj: &adj, ApparmorProfile: "prof",
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "holder", p, prepared)
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		want   string
		kind   errs.Kind
		change func(o *Options)
	}{
		{"no linux or no process section", errs.Invalid, func(o *Options) { o.Spec.Linux = nil }},
		{"no arguments", errs.Invalid, func(o *Options) { o.Spec.Process.Args = nil }},
		{`"a\x00b" has a NUL`, errs.Invalid, func(o *Options) { o.Spec.Process.Env = []string{"a\x00b"} }},
		{"user 4294967295:0 is out of range", errs.Invalid, func(o *Options) { o.Spec.Process.User.UID = 1<<32 - 1 }},
		{"needs a mount namespace", errs.Unsupported, func(o *Options) { o.Spec.Linux.Namespaces = nil }},
		{`namespace type "mount" appears twice`, errs.Invalid, func(o *Options) { addNS(o.Spec, specs.MountNamespace) }},
		{`namespace type "x" is unknown`, errs.Invalid, func(o *Options) { addNS(o.Spec, "x") }},
		{"needs uidMappings and gidMappings", errs.Invalid, func(o *Options) { addNS(o.Spec, specs.UserNamespace) }},
		{"would hide the root filesystem", errs.Invalid, func(o *Options) { o.Spec.Mounts = []specs.Mount{{Destination: "/.."}} }},
		{"neither a filesystem nor", errs.Invalid, func(o *Options) { o.Spec.Mounts = []specs.Mount{{Destination: "/x", Type: "none"}} }},
		{"source /none: no such file or directory", errs.Unknown, func(o *Options) {
			o.Spec.Mounts = []specs.Mount{{Destination: "/x", Source: "/none", Options: []string{"bind"}}}
		}},
		{"cannot specify gid=65536 mount option for rootless container", errs.Invalid, func(o *Options) {
			rootlessSpec(&paper{t: t, dir: t.TempDir()}, o)
			o.Spec.Mounts = []specs.Mount{{Destination: "/dev/pts", Type: "devpts", Options: []string{"gid=65536"}}}
		}},
		{"it is inside /proc", errs.Invalid, func(o *Options) {
			o.Spec.Mounts = []specs.Mount{{Destination: "/proc/self", Source: "/y", Options: []string{"bind"}}}
		}},
		{"rootfsPropagation", errs.Invalid, func(o *Options) { o.Spec.Linux.RootfsPropagation = "sometimes" }},
		{"sysctl net.core.x: it needs a namespace", errs.Invalid, func(o *Options) { // the launcher's own
			o.Spec.Linux.Namespaces = append(o.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"})
			o.Spec.Linux.Sysctl = map[string]string{"net.core.x": "1"}
		}},
		{"a host name needs a UTS namespace", errs.Invalid, func(o *Options) {
			o.Spec.Linux.Namespaces = append(o.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UTSNamespace, Path: "/proc/self/ns/uts"})
			o.Spec.Hostname = "h"
		}},
		{"sysctl kernel.hostname: it is what the configuration's hostname is for", errs.Invalid, func(o *Options) {
			addNS(o.Spec, specs.UTSNamespace)
			o.Spec.Linux.Sysctl = map[string]string{"kernel.hostname": "h"}
		}},
		{"sysctl net.core.x: it needs a namespace", errs.Invalid, func(o *Options) { o.Spec.Linux.Sysctl = map[string]string{"net.core.x": "1"} }},
		{"soft limit 2 is above the hard limit 1", errs.Invalid, func(o *Options) {
			o.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_AS", Soft: 2, Hard: 1}}
		}},
		{"appears twice", errs.Invalid, func(o *Options) {
			o.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_AS"}, {Type: "RLIMIT_AS"}}
		}},
		{"oomScoreAdj 1001", errs.Invalid, func(o *Options) { n := 1001; o.Spec.Process.OOMScoreAdj = &n }},
		{`policy "SCHED_X" is unknown`, errs.Invalid, func(o *Options) { o.Spec.Process.Scheduler = &specs.Scheduler{Policy: "SCHED_X"} }},
		{"execCPUAffinity.final", errs.Invalid, func(o *Options) { o.Spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "1-0"} }},
		{"ioPriority: class", errs.Invalid, func(o *Options) { o.Spec.Process.IOPriority = &specs.LinuxIOPriority{Class: "X"} }},
		{"failed to connect with seccomp agent", errs.Unknown, func(o *Options) {
			o.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/none/agent", Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}
		}},
		{`startContainer hook #0: path "x" is not absolute`, errs.Invalid, func(o *Options) { o.Spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "x"}}} }},
		{"poststop hook #1: timeout 0 is not above zero", errs.Invalid, func(o *Options) {
			o.Spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}, {Path: "/y", Timeout: new(int)}}}
		}},
		{"without a NET namespace", errs.Invalid, func(o *Options) { o.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} }},
		{`invalid network device name "a/b"`, errs.Invalid, func(o *Options) {
			addNS(o.Spec, specs.NetworkNamespace)
			o.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {Name: "a/b"}}
		}},
		{"time namespace isn't enabled", errs.Invalid, func(o *Options) {
			o.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1}}
		}},
		{`personality: domain "X"`, errs.Invalid, func(o *Options) { o.Spec.Linux.Personality = &specs.LinuxPersonality{Domain: "X"} }},
		{"memory policy mode requires at least one node", errs.Invalid, func(o *Options) { o.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind} }},
		{"memory policy mode requires 0 nodes but got 1", errs.Invalid, func(o *Options) {
			o.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolDefault, Nodes: "0"}
		}},
		{`invalid memory policy mode "X"`, errs.Invalid, func(o *Options) { o.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "X"} }},
		{`invalid memory policy flag "X"`, errs.Invalid, func(o *Options) {
			o.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolDefault, Flags: []specs.MemoryPolicyFlagType{"X"}}
		}},
		{"-1:0 is no device number", errs.Invalid, func(o *Options) {
			o.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: -1}}
		}},
	} {
		o := Options{ID: "c1", Spec: bare()}
		c.change(&o)
		_, err := prepare(newPaper(t), o)
		if err == nil || !strings.Contains(err.Error(), c.want) || errs.KindOf(err) != c.kind {
			t.Errorf("got %v (%v), want %q (%v)", err, errs.KindOf(err), c.want, c.kind)
		}
	}
}

func TestClamp(t *testing.T) {
	p := newPaper(t)
	p.own.bounding &^= 1 << capSysResource
	o := Options{ID: "c1", Spec: bare()}
	all := []string{"CAP_SYS_RESOURCE", "CAP_KILL", "CAP_NOT_YET"}
	o.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all}
	if _, err := prepare(p, o); err == nil || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
		t.Errorf("a capability we lack: %v", err)
	}
	o.Spec.Process.Capabilities = nil
	o.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2000, Hard: 3000}}
	if _, err := prepare(p, o); err == nil || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
		t.Errorf("a limit we cannot raise: %v", err)
	}
	adj := -7
	o.Spec.Process.OOMScoreAdj = &adj
	o.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all}
	o.Clamp = true
	p.log.Reset()
	prepared, err := prepare(p, o)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "clamp", p, prepared)
}
