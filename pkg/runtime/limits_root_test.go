//go:build root

package runtime_test

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

func TestCgroup(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	host, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	path := testroot.Cgroup(t) + "/placed"
	g, err := host.Create(path, cgroup.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Delete(t.Context()) })
	limit := int64(50)
	if err := g.Apply(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []bool{false, true} {
		s := spec(root, "cat /proc/self/cgroup; ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; grep cgroup /proc/mounts; touch /sys/fs/cgroup/x /sys/fs/cgroup/pids/x 2>/dev/null || echo read-only")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
		if ns {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}
		r, err := run(t, runtime.Options{Spec: s, Cgroup: g})
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(r.out, "\n") {
			if n := strings.Split(line, ":"); len(n) == 3 && (n[2] != path && !ns || ns && n[2] != "/") {
				t.Errorf("cgroup namespace %v: %s", ns, line)
			}
		}
		has(t, r.out, "50", "read-only")
		if t.Failed() {
			t.Log(r.out, r.err)
		}
	}
	s := spec(root, "")
	s.Process.Args = []string{"sleep", "1000"}
	c := begin(t, runtime.Options{Spec: s, Cgroup: g})
	r, err := c.exec(t, "cat /proc/self/cgroup", func(o *runtime.ExecOptions) { o.Cgroup = g })
	if err != nil || strings.Count(r.out, ":"+path+"\n") != strings.Count(r.out, "\n") {
		t.Errorf("exec: %+v, %v", r, err)
	}
}

// TestPlaced: a process that is not born in its cgroup is put there before it makes its namespaces, and while nothing of
// it has happened.
func TestPlaced(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	host, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if host.Mode() == cgroup.V1 {
		testroot.Skip(t, "there is no unified hierarchy")
	}
	g, err := host.Create(testroot.Cgroup(t)+"/put", cgroup.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Delete(t.Context()) })
	put := func(pid int, born bool) error {
		if born {
			return errors.New("born nowhere, but said to be there")
		}
		dir, err := g.Dir()
		if err != nil {
			return err
		}
		defer dir.Close()
		return os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/cgroup.procs", dir.Fd()), []byte(strconv.Itoa(pid)), 0)
	}
	for _, types := range [][]specs.LinuxNamespaceType{{specs.CgroupNamespace}, {specs.CgroupNamespace, specs.PIDNamespace, specs.TimeNamespace}} {
		s := spec(root, "cat /proc/self/cgroup")
		s.Hostname, s.Linux.Namespaces = "", []specs.LinuxNamespace{{Type: specs.MountNamespace}}
		for _, n := range types {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: n})
		}
		for _, gate := range []bool{false, true} {
			r, err := run(t, runtime.Options{Spec: s, Place: put, Gate: gate})
			if err != nil {
				t.Fatal(err)
			}
			has(t, r.out, "0::/")
		}
		if _, err := run(t, runtime.Options{Spec: s, Place: func(int, bool) error { return errors.New("no room") }}); err == nil || !strings.Contains(err.Error(), "no room") {
			t.Errorf("who could not be placed: %v", err)
		}
	}
	if pids, err := g.Pids(); err != nil || len(pids) > 0 {
		t.Errorf("processes %v are left, %v", pids, err)
	}
	s := spec(root, "")
	s.Process.Args = []string{"sleep", "1000"}
	c := begin(t, runtime.Options{Spec: s, Place: put})
	for _, tty := range []bool{false, true} {
		r, err := c.exec(t, "cat /proc/self/cgroup", func(o *runtime.ExecOptions) { o.Place, o.Gate = put, tty })
		if err != nil {
			t.Fatal(err)
		}
		has(t, r.out, "0::"+g.Path())
	}
	// One that may be born there is.
	r, err := c.exec(t, "cat /proc/self/cgroup", func(o *runtime.ExecOptions) {
		o.Cgroup, o.Place = g, func(_ int, born bool) error {
			if !born {
				return errors.New("not born there")
			}
			return nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "0::"+g.Path())
}

func TestSeccomp(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	errno := uint(42)
	filter := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}},
	}
	for _, nnp := range []bool{true, false} {
		s := spec(root, "mkdir /x; grep Seccomp: /proc/self/status; id -u")
		s.Process.User.UID = 1000
		s.Process.NoNewPrivileges = nnp
		s.Linux.Seccomp = filter
		r, err := run(t, runtime.Options{Spec: s})
		if err != nil || !strings.Contains(r.err, "No message of desired type") {
			t.Errorf("no_new_privs %v: %+v, %v", nnp, r, err)
		}
		has(t, r.out, "Seccomp:\t2", "1000")
		s.Process.Args = []string{"sleep", "1000"}
		c := begin(t, runtime.Options{Spec: s})
		r, err = c.exec(t, "mkdir /x; grep Seccomp: /proc/self/status")
		if err != nil || !strings.Contains(r.err, "No message of desired type") || !strings.Contains(r.out, "Seccomp:\t2") {
			t.Errorf("exec, no_new_privs %v: %+v, %v", nnp, r, err)
		}
	}
}

func TestTimeNamespace(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	s := spec(root, "cat /proc/uptime")
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000000}, "monotonic": {Secs: 1000000000}}
	r, err := run(t, runtime.Options{Spec: s})
	if err != nil || !strings.HasPrefix(r.out, "1000") || len(r.out) < 12 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestGate(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	r, err := run(t, runtime.Options{Spec: spec(root, "echo ran"), Gate: true})
	if err != nil || r.out != "ran\n" {
		t.Errorf("got %+v, %v", r, err)
	}
	s := spec(root, "")
	s.Process.Args = []string{"/bin/missing"}
	if _, err := run(t, runtime.Options{Spec: s, Gate: true}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing executable is not told before the gate: %v", err)
	}
}
