//go:build root

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/errs"
)

func host(t *testing.T) *Host {
	t.Helper()
	testroot.NeedRoot(t)
	h, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// real makes a group of the kernel's that is gone after the test.
func real(t *testing.T, h *Host, name string) *Group {
	t.Helper()
	g, err := h.Create(testroot.Cgroup(t)+"/"+name, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Kill(limit(t)), g.Delete(limit(t))); err != nil {
			t.Error(err)
		}
	})
	return g
}

// start runs a shell command in the group, placed as a container's program places itself.
func start(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	tasks, err := g.TaskFiles()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `for f in "$@"; do echo 0 >/proc/self/fd/$f; done; `+script, "sh")
	for i, f := range tasks {
		cmd.Args = append(cmd.Args, fmt.Sprint(3+i))
		defer f.Close()
	}
	cmd.ExtraFiles = tasks
	dir, err := g.Dir()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestRealLife(t *testing.T) {
	h := host(t)
	t.Logf("mode %v: %+v", h.Mode(), h.Hierarchies())
	g := real(t, h, "life")
	res := &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p(uint64(512)), Quota: p(int64(50000)), Period: p(uint64(100000)), Cpus: "0", Mems: "0"},
		Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20)), Swap: p(int64(64 << 20))},
		Pids:   &specs.LinuxPids{Limit: p(int64(20))},
	}
	if err := g.Apply(res); err != nil {
		t.Fatal(err)
	}
	cmd := start(t, g, "(sleep 1000 & sleep 1000; :) & sleep 1000; :")
	waitPids(t, g, 4)
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory.Limit != 64<<20 || s.Pids.Limit != 20 || s.Pids.Current < 4 || s.Memory.Usage == 0 || s.CPU.Usage == 0 {
		t.Errorf("%+v", s)
	}
	if err := g.Freeze(limit(t)); err != nil {
		t.Fatal(err)
	}
	if frozen, err := g.Frozen(); err != nil || !frozen {
		t.Errorf("Frozen = %v, %v", frozen, err)
	}
	if err := g.Kill(limit(t)); err != nil { // of what is frozen
		t.Fatal(err)
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 0 {
		t.Errorf("after Kill: %v, %v", pids, err)
	}
	_ = cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("the process ended by %v", ws)
	}
	if err := g.Delete(limit(t)); err != nil {
		t.Fatal(err)
	}
	if g.Exists() {
		t.Error("it exists")
	}
}

// waitPids waits until the group has n processes; they come by forking, of which nothing tells.
func waitPids(t *testing.T, g *Group, n int) []int {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		pids, err := g.Pids()
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) >= n {
			return pids
		}
		if time.Now().After(deadline) {
			t.Fatalf("the group has %v, want %d processes", pids, n)
		}
	}
}

// TestRealForkBomb kills what forks as fast as it can.
func TestRealVanish(t *testing.T) {
	h := host(t)
	for name, fill := range map[string]func(*Group){
		"empty": func(*Group) {},
		"nested": func(g *Group) {
			if _, err := h.Create(g.Path()+"/below", CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		},
		"busy":   func(g *Group) { start(t, g, "sleep 1000 & sleep 1000; :"); waitPids(t, g, 3) },
		"frozen": func(g *Group) { start(t, g, "sleep 1000; :"); g.Freeze(limit(t)) },
	} {
		g := real(t, h, "vanish-"+name)
		fill(g)
		for range 2 { // the second time there is none
			if err := g.Vanish(limit(t)); err != nil || g.Exists() {
				t.Errorf("%s: %v, exists: %v", name, err, g.Exists())
			}
		}
	}
}

func TestRealForkBomb(t *testing.T) {
	g := real(t, host(t), "bomb")
	if err := g.Apply(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(60))}}); err != nil {
		t.Fatal(err)
	}
	cmd := start(t, g, "exec 2>/dev/null; bomb() { while :; do bomb & /bin/true; done; }; bomb")
	waitPids(t, g, 40)
	if err := g.Kill(limit(t)); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := g.Delete(limit(t)); err != nil {
		t.Fatal(err)
	}
}

func TestRealUpdateUndone(t *testing.T) {
	h := host(t)
	g := real(t, h, "undone")
	if err := g.Apply(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(20))}, Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20))}}); err != nil {
		t.Fatal(err)
	}
	err := g.Update(&specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p(uint64(77))},
		Memory: &specs.LinuxMemory{Limit: p(int64(32 << 20))},
		Pids:   &specs.LinuxPids{Limit: p(int64(1 << 60))}, // more than the kernel takes
	})
	if err == nil {
		t.Fatal("the kernel took 2^60 processes")
	}
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory.Limit != 64<<20 || s.Pids.Limit != 20 {
		t.Errorf("after a failed update: %+v %+v", s.Memory, s.Pids)
	}
}

// TestRealNoRoom lowers the limit of a group that cannot do with less, and of one that can.
func TestRealNoRoom(t *testing.T) {
	h := host(t)
	checked := func(limit int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(limit), Swap: p(limit), CheckBeforeUpdate: p(true)}}
	}
	file := filepath.Join(t.TempDir(), "ready")
	for name, c := range map[string]struct {
		fill string
		room bool
	}{
		"memory":     {"x=$(head -c 30000000 /dev/zero | tr '\\0' x); : > " + file, false},
		"page cache": {"dd if=/dev/zero of=" + file + ".tmp bs=1M count=40 conv=fsync 2> /dev/null; mv " + file + ".tmp " + file, true},
	} {
		g := real(t, h, "room")
		if err := g.Apply(checked(128 << 20)); err != nil {
			t.Fatal(err)
		}
		cmd := start(t, g, c.fill+"; while :; do sleep 1000; done")
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(file); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the group is not filled", name)
			}
		}
		before, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		err = g.Update(checked(20 << 20))
		after, err2 := g.Stats()
		if err2 != nil {
			t.Fatal(err2)
		}
		if c.room && (err != nil || after.Memory.Limit != 20<<20) || !c.room && (!errs.Is(err, errs.Conflict) || after.Memory.Limit != 128<<20) {
			t.Errorf("%s: %v; usage %d, limit %d", name, err, before.Memory.Usage, after.Memory.Limit)
		}
		if n, err := g.OOMKills(); n != 0 || err != nil {
			t.Errorf("%s: %d killed, %v", name, n, err)
		}
		if err := g.Kill(limit(t)); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if err := g.Delete(limit(t)); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(file)
	}
}

func TestRealOOM(t *testing.T) {
	g := real(t, host(t), "oom")
	if err := g.Apply(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(16 << 20)), Swap: p(int64(16 << 20))}}); err != nil {
		t.Fatal(err)
	}
	w, err := g.WatchOOM()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := start(t, g, "exec tail /dev/zero")
	if err := poll(limit(t), []unix.PollFd{{Fd: int32(w.Event.Fd()), Events: unix.POLLIN}}); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("the process ended by %v", ws)
	}
	text := make([]byte, 4096)
	n, err := w.Counter.ReadAt(text, 0)
	if n == 0 {
		t.Fatal(err)
	}
	if k := ParseOOMKills(text[:n]); k != 1 {
		t.Errorf("the counter says %d", k)
	}
	if n, err := g.OOMKills(); n != 1 || err != nil {
		t.Errorf("OOMKills = %d, %v", n, err)
	}
}

// TestRealDevices opens devices in a group with a filter. On v2, and on this hybrid machine too, the
// filter is the program; where v1 has the controller it is that.
func TestRealDevices(t *testing.T) {
	h := host(t)
	g := real(t, h, "devices")
	const kmsg = "/dev/kmsg"
	if _, err := os.Stat(kmsg); err != nil {
		testroot.Skip(t, "no /dev/kmsg")
	}
	check := func(want string) {
		t.Helper()
		cmd := start(t, g, "{ : <"+kmsg+"; } 2>/dev/null || exit 3")
		err := cmd.Wait()
		got := "allowed"
		if err != nil {
			got = "denied"
		}
		if got != want {
			t.Errorf("opening %s is %s, want %s: %v", kmsg, got, want, err)
		}
		if err := start(t, g, ": </dev/null >/dev/zero && : </dev/urandom").Wait(); err != nil {
			t.Errorf("opening the default devices: %v", err)
		}
	}
	if err := g.Apply(nil); err != nil {
		t.Fatal(err)
	}
	check("denied")
	if err := g.Apply(nil); err != nil { // again
		t.Fatal(err)
	}
	check("denied")
	log := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: p(int64(1)), Minor: p(int64(11)), Access: "r"}
	if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{}, log}}); err != nil {
		t.Fatal(err)
	}
	check("allowed")
	err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{}}, Pids: &specs.LinuxPids{Limit: p(int64(1 << 60))}})
	if err == nil {
		t.Fatal("the kernel took 2^60 processes")
	}
	check("allowed") // as before the failed update
	if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{}}}); err != nil {
		t.Fatal(err)
	}
	check("denied")
	if err := g.Update(&specs.LinuxResources{Devices: everything}); err != nil {
		t.Fatal(err)
	}
	check("allowed")
}

// TestRealDeviceProgram puts the eBPF filter on a group of the unified hierarchy, wherever there is one.
func TestRealDeviceProgram(t *testing.T) {
	h := host(t)
	if h.unified() == nil {
		testroot.Skip(t, "no cgroup v2")
	}
	g := real(t, h, "program")
	d, err := h.at(h.unified(), g.path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	set := func(update bool, list ...specs.LinuxDeviceCgroup) {
		t.Helper()
		rules, err := parseRules(list)
		if err != nil {
			t.Fatal(err)
		}
		x := &txn{group: g, update: update}
		defer x.close()
		if err := setDevices2(x, d, rules); err != nil {
			t.Fatal(err)
		}
	}
	count := func(want int) {
		t.Helper()
		fd, err := openat(d.fd, ".", unix.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		list, err := attached(fd)
		if err != nil || len(list) != want {
			t.Errorf("%d programs, %v, want %d", len(list), err, want)
		}
		closeFDs(list)
	}
	try := func(want bool) {
		t.Helper()
		if err := start(t, g, "{ : </dev/kmsg; } 2>/dev/null || exit 3").Wait(); (err == nil) != want {
			t.Errorf("opening /dev/kmsg: %v", err)
		}
	}
	log := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: p(int64(1)), Minor: p(int64(11)), Access: "r"}
	set(false)
	count(1)
	try(false)
	set(false) // the same again
	count(1)
	set(true, log)
	count(1)
	try(true)
	set(true)
	try(false)
	set(true, specs.LinuxDeviceCgroup{}, log)
	try(true)
	set(true, specs.LinuxDeviceCgroup{Allow: true}, specs.LinuxDeviceCgroup{Type: "c", Major: p(int64(1)), Minor: p(int64(11))})
	try(false)
	set(true, specs.LinuxDeviceCgroup{Allow: true})
	count(0)
	try(true)
}

// TestRealNested kills and removes a group by way of one above it.
func TestRealNested(t *testing.T) {
	h := host(t)
	g := real(t, h, "nested")
	sub, err := h.Create(g.Path()+"/sub/deep", CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := start(t, sub, "sleep 1000")
	pids := waitPids(t, g, 1)
	if !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("the group has %v, started was %d", pids, cmd.Process.Pid)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := g.Delete(ctx); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Delete with a process: %v", err)
	}
	if err := g.Kill(limit(t)); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := g.Delete(limit(t)); err != nil {
		t.Fatal(err)
	}
}

// TestRealPlacement holds that a process is where it was put in every hierarchy.
func TestRealPlacement(t *testing.T) {
	h := host(t)
	g := real(t, h, "placement")
	cmd := start(t, g, "sleep 1000")
	waitPids(t, g, 1)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		out := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(text)), "\n"), func(line string) bool { return strings.HasSuffix(line, g.Path()) })
		if len(out) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("elsewhere in %v", out)
		}
	}
	if err := g.Kill(limit(t)); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	other := real(t, h, "other")
	cmd = exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := other.Enter(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	waitPids(t, other, 1)
	_ = other.Kill(limit(t))
	_ = cmd.Wait()
}

// TestRealBusyParent names the reason when a v2 group cannot have a controller.
func TestRealBusyParent(t *testing.T) {
	h := host(t)
	limited := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20))}}
	switch u := h.unified(); {
	case h.Mode() == V2:
	case u != nil && slices.Contains(u.Controllers, "hugetlb"): // what hybrid machines have left for it
		limited = &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2 << 20}}}
	default:
		testroot.Skip(t, "no cgroup v2 with a controller that can be limited here")
	}
	parent := real(t, h, "busy")
	cmd := start(t, parent, "sleep 1000")
	waitPids(t, parent, 1)
	g, err := h.Create(parent.Path()+"/child", CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = g.Apply(limited)
	if err == nil || !strings.Contains(err.Error(), "has processes of its own") {
		t.Errorf("limiting the child of a group with processes: %v", err)
	}
	_ = parent.Kill(limit(t))
	_ = cmd.Wait()
}
