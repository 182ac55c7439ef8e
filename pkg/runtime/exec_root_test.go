//go:build root

package runtime_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/sys"
)

// sleeper is a container that does nothing.
func sleeper(root string) *specs.Spec {
	s := spec(root, "")
	s.Process.Args = []string{"sleep", "100000"}
	return s
}

func TestExec(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	os.Mkdir(root+"/work", 0o755)
	c := begin(t, runtime.Options{Spec: sleeper(root)})
	r, err := c.exec(t, `id -u; id -G; pwd; hostname; ls / | tr '\n' ' '; echo; ps -o pid,args; echo fds $(ls /proc/self/fd | wc -l)
grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; readlink /proc/self/exe; exit 3`, func(o *runtime.ExecOptions) {
		o.Process.Cwd = "/work"
		o.Process.User = specs.User{UID: 12, GID: 34, AdditionalGids: []uint32{56}}
	})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "12", "34 56", "/work", "box", "bin dev etc proc root sys tmp usr var work ", "    1 sleep 100000", "fds 4", "NoNewPrivs:\t1", "/bin/sh")
	if r.code != 3 {
		t.Errorf("exit code %d", r.code)
	}
	if _, err := c.exec(t, "", func(o *runtime.ExecOptions) { o.Process.Args = []string{"nothing"} }); err == nil || !strings.Contains(err.Error(), `exec: "nothing": executable file not found in $PATH`) {
		t.Error(err)
	}
	if _, err := c.exec(t, "", func(o *runtime.ExecOptions) { o.Process.Cwd = "/none" }); err == nil || !strings.Contains(err.Error(), "working directory /none") {
		t.Error(err)
	}
	if _, err := os.Stat(root + "/none"); err == nil {
		t.Error("an exec made its working directory")
	}
	c.Kill(unix.SIGKILL)
	c.Wait()
	if _, err := c.exec(t, "true"); err == nil {
		t.Error("exec in a container that has ended")
	}
}

// watchScript tells what it can see of other processes, until there is a file /stop.
const watchScript = `
while ! [ -e /stop ]; do for p in /proc/[0-9]*; do
  e=$(readlink $p/exe 2>/dev/null) && case "$e" in ""|/bin/*|"/memfd:exec (deleted)"|"/memfd:init (deleted)"|"/memfd:pause (deleted)") ;; *) echo "exe $e" ;; esac
  r=$(readlink $p/root 2>/dev/null) && case "$r" in ""|/) ;; *) echo "root $r" ;; esac
  for f in $p/fd/*; do l=$(readlink $f 2>/dev/null) && case "$l" in ""|/dev/null|pipe:*|/proc/*|/) ;; *) echo "fd $f $l" ;; esac; done
done; done; echo end`

// TestExecHidden watches /proc from a container that may ptrace, while processes are exec'd into it: no
// executable, root or descriptor of the host may show.
func TestExecHidden(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	s := spec(root, watchScript)
	caps := append(s.Process.Capabilities.Bounding, "CAP_SYS_PTRACE")
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	p, err := runtime.Prepare(context.Background(), runtime.Options{ID: "test", Spec: s, Clamp: true})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan result, 1)
	pids := make(chan int, 1)
	go func() {
		r, err := launchWatched(t, p, pids)
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	pid := <-pids
	for i := range 100 {
		proc := *s.Process
		proc.Args = []string{"true"}
		e, err := runtime.PrepareExec(context.Background(), runtime.ExecOptions{ID: "test", Spec: s, Process: &proc, Pid: pid, Clamp: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := launchPrepared(t, e); err != nil {
			t.Fatalf("exec %d: %v", i, err)
		}
	}
	os.WriteFile(root+"/stop", nil, 0o644)
	if r := <-done; r.out != "end\n" {
		t.Errorf("seen: %s %s", r.out, r.err)
	}
}

// pod is a holder and what its containers join.
func pod(t *testing.T, o runtime.HolderOptions) (*os.File, int) {
	t.Helper()
	o.ID, o.Clamp = "pod", true
	p, err := runtime.PrepareHolder(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	proc := startPrepared(t, p)
	return proc.Pidfd, proc.Pid
}

// joined is a container of the pod whose holder's pidfd is given.
func joined(s *specs.Spec, pidfd *os.File, types ...specs.LinuxNamespaceType) runtime.Options {
	byFD := map[specs.LinuxNamespaceType]*os.File{}
	for _, t := range types {
		byFD[t] = pidfd
		found := false
		for _, n := range s.Linux.Namespaces {
			found = found || n.Type == t
		}
		if !found {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t})
		}
	}
	return runtime.Options{Spec: s, Namespaces: byFD}
}

var podTypes = []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace}

func TestHolder(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	adj := 17
	pidfd, pid := pod(t, runtime.HolderOptions{
		Namespaces: podTypes, Hostname: "mypod", OOMScoreAdj: &adj,
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.msgmax": "9999", "net.ipv4.conf.lo.forwarding": "1"},
	})
	status := paused(t, pid)
	for _, want := range []string{"Name:\tpause", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"} {
		if !strings.Contains(status, want+"\n") {
			t.Errorf("no %q in %s", want, status)
		}
	}
	if mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid)); strings.Count(string(mounts), "\n") != 1 || !strings.Contains(string(mounts), " / tmpfs ro,") {
		t.Errorf("the holder's mounts: %s", mounts)
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err != nil || len(fds) != 0 {
		t.Errorf("the holder has descriptors: %v, %v", fds, err)
	}
	if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); string(b) != "17\n" {
		t.Errorf("oom_score_adj %s", b)
	}
	s := spec(root, "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax /proc/sys/net/ipv4/conf/lo/forwarding; readlink /proc/self/ns/net; echo pid $$")
	s.Hostname = ""
	r, err := run(t, joined(s, pidfd, podTypes...))
	if err != nil {
		t.Fatal(err)
	}
	net, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	has(t, r.out, "mypod", "77", "9999", "1", net, "pid 1")
}

// paused waits until the holder sleeps, which is after READY and its seccomp filter, and returns its status.
func paused(t *testing.T, pid int) string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) { // no event tells
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(status), "State:\tS") || time.Now().After(deadline) {
			return string(status)
		}
	}
}

func TestSharedPID(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	pidfd, _ := pod(t, runtime.HolderOptions{Namespaces: append([]specs.LinuxNamespaceType{specs.PIDNamespace}, podTypes...)})
	s := spec(root, `ps -o pid,args; (sleep 0.01 &) ; sleep 0.1; echo zombies $(ps -o stat | grep -c Z); ls -A /proc/1/fd /proc/1/root/ | grep -vc '^/'; touch /proc/1/root/x 2>/dev/null || echo ro`)
	s.Hostname = ""
	o := joined(s, pidfd, append(podTypes, specs.PIDNamespace)...)
	t.Cleanup(sys.Reprobe)
	for _, kernel := range []string{"", "procpidns"} {
		t.Setenv(sys.KernelEnv, kernel)
		sys.Reprobe()
		r, err := run(t, o)
		if err != nil {
			t.Fatal(err)
		}
		has(t, r.out, "    1 pause", "zombies 0", "ro")
		if strings.Contains(r.out, "    1 sh") {
			t.Error(r.out)
		}
	}
	s.Process.Args = []string{"sleep", "1000"}
	c := begin(t, o)
	if r, err := c.exec(t, "ps -o args"); err != nil || !strings.Contains(r.out, "sleep 1000") {
		t.Errorf("exec: %+v, %v", r, err)
	}
}

func TestUserNamespace(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	os.Chown(root, 100000, 100000)
	for _, d := range []string{"tmp", "etc", "root"} {
		os.Chown(root+"/"+d, 100000, 100000)
	}
	script := `id -u; cat /proc/self/uid_map; grep CapEff /proc/self/status; stat -c '%n %t:%T %a %u:%g' /dev/null /dev/net/tun; stat -c 'link %u' /dev/fd; stat -c 'net %u' /dev/net; touch /new; stat -c %u /new
echo x > /dev/null && echo wrote; mount -t tmpfs tmpfs /tmp && echo mounted; cat /proc/self/oom_score_adj; ulimit -n; echo to stdout >/dev/stdout; pwd; umount /dev/shm && echo umounted`
	adj := 300
	prepare := func() *specs.Spec {
		s := spec(root, script)
		caps := append(s.Process.Capabilities.Bounding, "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE")
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace}, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200}}
		s.Process.OOMScoreAdj = &adj
		s.Process.Cwd = "/cwd/made"
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 99, Hard: 100}}
		return s
	}
	check := func(name string, r result, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		has(t, r.out, "0", "         0     100000      65536", "CapEff:\t00000000092004eb", "/dev/null 1:3 666 0:0", "/dev/net/tun a:c8 666 0:0", "wrote", "mounted", "link 0", "net 0", "300", "99", "to stdout", "/cwd/made", "umounted")
		if t.Failed() {
			t.Log(name, r.out, r.err)
		}
		os.Remove(root + "/new")
		os.RemoveAll(root + "/cwd")
	}
	r, err := run(t, runtime.Options{Spec: prepare(), StdioOwner: true})
	check("new", r, err)

	pidfd, pid := pod(t, runtime.HolderOptions{Namespaces: append([]specs.LinuxNamespaceType{specs.UserNamespace}, podTypes...), UIDMappings: maps, GIDMappings: maps, Hostname: "upod", OOMScoreAdj: &adj,
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "78", "kernel.shm_rmid_forced": "1"}})
	s := prepare()
	s.Hostname = ""
	o := joined(s, pidfd, append(podTypes, specs.UserNamespace)...)
	o.StdioOwner = true
	r, err = run(t, o)
	check("joined", r, err)

	s = prepare()
	s.Hostname = ""
	s.Process.Args = []string{"sleep", "1000"}
	s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5}}
	c := begin(t, joined(s, pidfd, append(podTypes, specs.UserNamespace)...))
	r, err = c.exec(t, "id -u; id -G; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; hostname; ps -o pid,args; cat /proc/self/oom_score_adj; ulimit -n; echo to stdout > /dev/stdout", func(o *runtime.ExecOptions) { o.StdioOwner = true })
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "1000", "1000 5", "78", "upod", "    1 sleep 1000", "300", "99", "to stdout")
	if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); string(b) != "300\n" {
		t.Errorf("the holder's oom_score_adj is %s", b)
	}
}

func TestUserNamespaceSharedPID(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	os.Chown(root, 200000, 200000)
	all := append([]specs.LinuxNamespaceType{specs.UserNamespace, specs.PIDNamespace}, podTypes...)
	pidfd, _ := pod(t, runtime.HolderOptions{Namespaces: all, UIDMappings: maps, GIDMappings: maps})
	s := spec(root, "ps -o pid,args; id -u; cat /proc/self/oom_score_adj")
	s.Hostname = ""
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	adj := 44
	s.Process.OOMScoreAdj = &adj
	r, err := run(t, joined(s, pidfd, all...))
	if err != nil {
		t.Fatal(err)
	}
	has(t, r.out, "    1 pause", "0", "44")
}

// TestNewUserNamespaceInOldNetwork joins what another user namespace owns, and makes a user namespace.
func TestNewUserNamespaceInOldNetwork(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	os.Chown(root, 200000, 200000)
	_, pid := pod(t, runtime.HolderOptions{Namespaces: podTypes, Hostname: "older"})
	s := spec(root, "readlink /proc/self/ns/net; hostname; cat /proc/self/uid_map; echo pid $$")
	s.Hostname = ""
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 10}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	s.Mounts = append(s.Mounts[:4], s.Mounts[4]) // no sysfs: it belongs to the network's owner
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	s.Linux.Namespaces = []specs.LinuxNamespace{
		{Type: specs.UserNamespace}, {Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace},
		{Type: specs.NetworkNamespace, Path: fmt.Sprintf("/proc/%d/ns/net", pid)}, {Type: specs.UTSNamespace, Path: fmt.Sprintf("/proc/%d/ns/uts", pid)},
	}
	r, err := run(t, runtime.Options{Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	net, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	has(t, r.out, net, "older", "         0     200000         10", "pid 1")
}
