//go:build root

package runtime_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/sys"
)

func policy(t *testing.T, pid int) *unix.SchedAttr {
	t.Helper()
	a, err := unix.SchedGetAttr(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ioPriority(t *testing.T, pid int) uintptr {
	t.Helper()
	const process = 1
	v, _, e := unix.Syscall(unix.SYS_IOPRIO_GET, process, uintptr(pid), 0)
	if e != 0 {
		t.Fatal(e)
	}
	return v
}

// mayRealtime reports whether a thread of ours may have a realtime policy, which a cgroup of v1 rations.
func mayRealtime() bool {
	err := sys.OnThread(func() error {
		return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0)
	})
	return err == nil
}

// startExec starts a further process that stays.
func (s *started) startExec(t *testing.T, change func(p *specs.Process)) (int, error) {
	t.Helper()
	proc := *s.spec.Process
	proc.Args = []string{"sleep", "1000"}
	change(&proc)
	p, err := runtime.PrepareExec(context.Background(), runtime.ExecOptions{ID: "test", Spec: s.spec, Process: &proc, Pid: s.Pid, Clamp: true})
	if err != nil {
		return 0, err
	}
	return startPrepared(t, p).Pid, nil
}

// TestScheduling looks from outside at what a container's processes were told of processors and disks.
func TestScheduling(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 65536}}
	for _, userns := range []bool{false, true} {
		s := spec(root, "")
		if userns {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
		}
		s.Process.Args = []string{"sleep", "1000"}
		s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 7}
		s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		c := begin(t, runtime.Options{Spec: s})
		if a := policy(t, c.Pid); a.Policy != unix.SCHED_BATCH || a.Nice != 7 {
			t.Errorf("user namespace %v: %+v", userns, a)
		}
		if p := ioPriority(t, c.Pid); p != 2<<13|6 {
			t.Errorf("user namespace %v: I/O priority %#x", userns, p)
		}
		pid, err := c.startExec(t, func(*specs.Process) {}) // an exec is told the same
		if err != nil {
			t.Fatal(err)
		}
		if a, p := policy(t, pid), ioPriority(t, pid); a.Policy != unix.SCHED_BATCH || a.Nice != 7 || p != 2<<13|6 {
			t.Errorf("user namespace %v: exec: %+v, %#x", userns, a, p)
		}
		for _, want := range []specs.Scheduler{
			{Policy: specs.SchedIdle}, {Policy: specs.SchedOther, Nice: -3, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}},
			{Policy: specs.SchedRR, Priority: 3}, {Policy: specs.SchedFIFO, Priority: 4, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}},
			{Policy: specs.SchedDeadline, Runtime: 42000, Deadline: 100000, Period: 1000000, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}},
			{Policy: specs.SchedDeadline, Runtime: 42000, Deadline: 100000, Period: 1000000},
		} {
			if want.Priority > 0 && !mayRealtime() {
				t.Logf("the test's cgroup has no realtime: %s is not tried", want.Policy)
				continue
			}
			pid, err := c.startExec(t, func(p *specs.Process) { p.Scheduler = &want })
			if err != nil {
				t.Fatal(err)
			}
			number := map[specs.LinuxSchedulerPolicy]uint32{specs.SchedIdle: unix.SCHED_IDLE, specs.SchedRR: unix.SCHED_RR, specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedDeadline: unix.SCHED_DEADLINE}[want.Policy]
			a := policy(t, pid)
			if a.Policy != number || number == unix.SCHED_NORMAL && a.Nice != want.Nice || a.Priority != uint32(want.Priority) || a.Runtime != want.Runtime && number == unix.SCHED_DEADLINE || a.Flags&1 != uint64(len(want.Flags)) {
				t.Errorf("user namespace %v: %+v for %+v", userns, a, want)
			}
		}
	}
	s := spec(root, "true")
	s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE, Priority: 8}
	if _, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), "priorities 0 to 7") {
		t.Error(err)
	}
}

// TestAffinity: a process is where execCPUAffinity says, and else anywhere, wherever its launcher may be.
func TestAffinity(t *testing.T) {
	testroot.NeedRoot(t)
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		t.Fatal(err)
	}
	var cpus []string
	for i := range 1024 {
		if own.IsSet(i) {
			cpus = append(cpus, fmt.Sprint(i))
		}
	}
	if len(cpus) < 2 {
		testroot.Skip(t, "there is one processor")
	}
	s := spec(testroot.Rootfs(t, t.TempDir()), "")
	s.Process.Args = []string{"sleep", "1000"}
	c := begin(t, runtime.Options{Spec: s})
	for _, a := range []specs.CPUAffinity{{Initial: cpus[0]}, {Initial: cpus[1]}, {Initial: cpus[0], Final: cpus[1]}, {Final: cpus[0]}, {Initial: cpus[1], Final: cpus[0] + "," + cpus[1]}} {
		want := a.Final
		if want == "" {
			want = a.Initial
		}
		r, err := c.exec(t, "grep Cpus_allowed_list /proc/self/status", func(o *runtime.ExecOptions) { o.Process.ExecCPUAffinity = &a })
		if got := strings.ReplaceAll(strings.TrimSpace(r.out), "-", ","); err != nil || !strings.HasSuffix(got, "\t"+want) {
			t.Errorf("%+v: %+v, %v", a, r, err)
		}
	}
	for _, a := range []specs.CPUAffinity{{Initial: "x"}, {Final: "8192"}} {
		if _, err := c.exec(t, "true", func(o *runtime.ExecOptions) { o.Process.ExecCPUAffinity = &a }); err == nil || !strings.Contains(err.Error(), "is no list of processors") {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

// TestPersonality runs a container as a 32-bit one.
func TestPersonality(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	machine := unix.ByteSliceToString(u.Machine[:])
	small := map[string]string{"x86_64": "i686", "aarch64": "armv8l"}[machine]
	for domain, want := range map[specs.LinuxPersonalityDomain]string{specs.PerLinux: machine, specs.PerLinux32: small} {
		s := spec(root, "uname -m")
		s.Linux.Personality = &specs.LinuxPersonality{Domain: domain}
		if r, err := run(t, runtime.Options{Spec: s}); err != nil || r.out != want+"\n" {
			t.Errorf("%s: %+v, %v", domain, r, err)
		}
		s.Process.Args = []string{"sleep", "1000"}
		if r, err := begin(t, runtime.Options{Spec: s}).exec(t, "uname -m"); err != nil || r.out != want+"\n" {
			t.Errorf("exec, %s: %+v, %v", domain, r, err)
		}
	}
}

// TestTimeOffsets moves clocks both ways, for the container and for what joins it later.
func TestTimeOffsets(t *testing.T) {
	testroot.NeedRoot(t)
	s := spec(testroot.Rootfs(t, t.TempDir()), "")
	s.Process.Args = []string{"sleep", "1000"}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 7881, Nanosecs: 2718281}, "boottime": {Secs: 1337, Nanosecs: 3141519}}
	c := begin(t, runtime.Options{Spec: s})
	r, err := c.exec(t, "cat /proc/self/timens_offsets; for p in 1 self; do readlink /proc/$p/ns/time; done | uniq | wc -l")
	if f := strings.Fields(r.out); err != nil || !slices.Equal(f, []string{"monotonic", "7881", "2718281", "boottime", "1337", "3141519", "1"}) {
		t.Errorf("%+v, %v", r, err)
	}
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: -1 << 40}} // before the machine's start
	if _, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), "set the offset of clock boottime") {
		t.Error(err)
	}
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}
	if _, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), "clock realtime") {
		t.Error(err)
	}
}

// TestIdmapOptions: idmap shifts the owners of a mount, ridmap those of the mounts below it too, and a mount
// has mappings of its own.
func TestIdmapOptions(t *testing.T) {
	testroot.NeedRoot(t)
	if !sys.Has(sys.IdmapTmpfs) {
		testroot.Skip(t, "this kernel has no idmapped tmpfs")
	}
	dir := t.TempDir()
	mountOn(t, dir+"/top", 0, "")
	mountOn(t, dir+"/top/sub", 0, "")
	for _, f := range []string{dir + "/top/file", dir + "/top/sub/file"} {
		os.WriteFile(f, nil, 0o644)
		os.Chown(f, 5, 6)
	}
	shift := func(by uint32) []specs.LinuxIDMapping {
		return []specs.LinuxIDMapping{{ContainerID: 0, HostID: by, Size: 100}}
	}
	s := spec(testroot.Rootfs(t, dir), "for v in top all own both; do stat -c %u:%g /$v/file /$v/sub/file; done")
	for _, m := range []struct {
		dest, option string
		uids, gids   []specs.LinuxIDMapping
	}{{"/top", "idmap", shift(100), shift(200)}, {"/all", "ridmap", shift(100), shift(200)}, {"/own", "", shift(300), shift(400)}, {"/both", "ridmap", shift(500), shift(500)}} {
		options := []string{"rbind"}
		if m.option != "" {
			options = append(options, m.option)
		}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: m.dest, Type: "bind", Source: dir + "/top", Options: options, UIDMappings: m.uids, GIDMappings: m.gids})
	}
	for _, order := range []bool{false, true} {
		r, err := run(t, runtime.Options{Spec: s, InOrder: order})
		if want := "105:206\n5:6\n105:206\n105:206\n305:406\n5:6\n505:506\n505:506\n"; err != nil || r.out != want {
			t.Errorf("in order %v: %+v, %v", order, r, err)
		}
	}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/none", Type: "bind", Source: dir + "/top", Options: []string{"bind", "idmap"}})
	if _, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), "needs uidMappings and gidMappings") {
		t.Errorf("no mappings at all: %v", err)
	}
}
