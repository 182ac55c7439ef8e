//go:build systemd

package systemd

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

func TestMain(m *testing.M) {
	if st, err := os.Stat("/run/systemd/system"); err != nil || !st.IsDir() || os.Geteuid() != 0 {
		fmt.Println("these tests need root, and systemd as init: VM_INIT=systemd hack/vm/test 6.12")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runtime runs a runtime's command line with a root directory of its own.
type runtime struct {
	t    *testing.T
	exe  string
	root string
}

func ours(t *testing.T) *runtime { return &runtime{t, executable(t), t.TempDir()} }

// executable is the cri-runtime that the tests are about.
func executable(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CRI_RUNTIME")
	if path == "" {
		t.Fatal("CRI_RUNTIME does not name a cri-runtime")
	}
	return path
}

var shared string

// rootfs is the root filesystem of every container.
func rootfs(t *testing.T) string {
	t.Helper()
	if shared == "" {
		dir, err := os.MkdirTemp("", "systemd-test")
		if err != nil {
			t.Fatal(err)
		}
		shared = testroot.Rootfs(t, dir)
	}
	return shared
}

// try runs a command and returns what it says.
func (r *runtime) try(env string, args ...string) (string, error) {
	cmd := exec.Command(r.exe, append([]string{"--root", r.root, "--systemd-cgroup"}, args...)...)
	cmd.Env = os.Environ()
	if env != "" {
		cmd.Env = append(cmd.Env, env)
	}
	return output(r.t, cmd)
}

// output runs a command and returns what it says. What stays of one may hold its output open: a file needs nobody to read it.
func output(t *testing.T, cmd *exec.Cmd) (string, error) {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text, _ := os.ReadFile(out.Name())
	return string(text), err
}

func (r *runtime) do(args ...string) string {
	r.t.Helper()
	out, err := r.try("", args...)
	if err != nil {
		r.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// bundle makes one whose container sleeps.
func bundle(t *testing.T, change func(*specs.Spec)) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(executable(t), "spec")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("spec: %v: %s", err, out)
	}
	file := filepath.Join(dir, "config.json")
	var s specs.Spec
	read(t, file, &s)
	s.Process.Terminal = false
	s.Root.Path = rootfs(t)
	s.Process.Args = []string{"/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1000 & wait; done"}
	if change != nil {
		change(&s)
	}
	data, err := json.Marshal(&s)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, file string, to any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

// show asks systemd for properties of a unit.
func show(t *testing.T, unit string, props ...string) map[string]string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "-p", strings.Join(props, ","), unit).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl show %s: %v: %s", unit, err, out)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		if m[k] != "" { // a list has a line for each element
			v = m[k] + ", " + v
		}
		m[k] = v
	}
	return m
}

func want(t *testing.T, unit string, pairs ...string) {
	t.Helper()
	var names []string
	for i := 0; i < len(pairs); i += 2 {
		names = append(names, pairs[i])
	}
	got := show(t, unit, names...)
	for i := 0; i < len(pairs); i += 2 {
		if got[pairs[i]] != pairs[i+1] {
			t.Errorf("%s of %s is %q, want %q", pairs[i], unit, got[pairs[i]], pairs[i+1])
		}
	}
}

// machine is the guest's cgroups.
func machine(t *testing.T) *cgroup.Host {
	t.Helper()
	h, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// file reads a control file of a group: of the hierarchy with its controller.
func file(t *testing.T, group, v1, v2 string) string {
	t.Helper()
	name := v1
	h := machine(t)
	if h.Mode() == cgroup.V2 {
		name = v2
	}
	controller, _, _ := strings.Cut(name, ".")
	for _, m := range h.Hierarchies() {
		if m.Unified == (h.Mode() == cgroup.V2) && (m.Unified || slices.Contains(m.Controllers, controller)) {
			b, err := os.ReadFile(filepath.Join(m.Mount, group, name))
			if err != nil {
				t.Error(err)
			}
			return strings.TrimSpace(string(b))
		}
	}
	t.Fatalf("no hierarchy has %s", controller)
	return ""
}

// gone fails the test where systemd or the kernel still have something of the unit.
func gone(t *testing.T, unit, group string) {
	t.Helper()
	want(t, unit, "LoadState", "not-found")
	g, err := machine(t).At(group)
	if err != nil {
		t.Fatal(err)
	}
	if g.Exists() {
		t.Errorf("cgroup %s is left", group)
	}
}

// limited is a configuration with limits that both systemd and the kernel know.
func limited(s *specs.Spec) {
	s.Linux.CgroupsPath = "crit-pod1.slice:cri:limited"
	s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}
	s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(5000)), Period: ptr(uint64(50000)), Cpus: "0", Mems: "0"}
	s.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr(int64(50))}
}

const (
	limitedUnit  = "cri-limited.scope"
	limitedGroup = "/crit.slice/crit-pod1.slice/cri-limited.scope"
)

func TestScopeLife(t *testing.T) {
	r := ours(t)
	v2 := machine(t).Mode() == cgroup.V2
	r.do("create", "--bundle", bundle(t, limited), "c1")
	want(t, limitedUnit, "ActiveState", "active", "Slice", "crit-pod1.slice", "Delegate", "yes", "TasksMax", "50", "DevicePolicy", "strict",
		"CPUQuotaPerSecUSec", "100ms", "CPUQuotaPeriodUSec", "50ms", "ControlGroup", limitedGroup, "AllowedCPUs", "0")
	if v2 {
		want(t, limitedUnit, "MemoryMax", strconv.Itoa(64<<20), "CPUWeight", fmt.Sprint(cgroup.CPUWeight(512)))
	} else {
		want(t, limitedUnit, "MemoryLimit", strconv.Itoa(64<<20), "CPUShares", "512")
	}
	limits := func() {
		t.Helper()
		for _, f := range [][3]string{
			{"memory.limit_in_bytes", "memory.max", strconv.Itoa(64 << 20)}, {"pids.max", "pids.max", "50"}, {"cpuset.cpus", "cpuset.cpus", "0"},
		} {
			if got := file(t, limitedGroup, f[0], f[1]); got != f[2] {
				t.Errorf("%s or %s is %q, want %q", f[0], f[1], got, f[2])
			}
		}
		if got := file(t, limitedGroup, "cpu.cfs_quota_us", "cpu.max"); got != "5000" && got != "5000 50000" {
			t.Errorf("the CPU limit is %q", got)
		}
	}
	limits()
	var st specs.State
	if err := json.Unmarshal([]byte(r.do("state", "c1")), &st); err != nil {
		t.Fatal(err)
	}
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", st.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(in)) {
		if _, path, _ := strings.Cut(strings.TrimSpace(line), ":/"); "/"+path != limitedGroup {
			t.Errorf("the process is in %s", line)
		}
	}
	r.do("start", "c1")
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		t.Fatalf("daemon-reload: %v: %s", err, out)
	}
	limits()
	if out := r.do("exec", "c1", "cat", "/proc/self/cgroup"); v2 && strings.TrimSpace(out) != "0::/" {
		t.Errorf("exec is in %s", out)
	}
	if out := r.do("exec", "c1", "sh", "-c", "echo x > /dev/null; cat /dev/zero | true; echo ok"); !strings.Contains(out, "ok") {
		t.Errorf("devices: %s", out)
	}
	if out := r.do("ps", "--format", "json", "c1"); !strings.Contains(out, strconv.Itoa(st.Pid)) {
		t.Errorf("ps: %s", out)
	}
	r.do("pause", "c1")
	if out := r.do("state", "c1"); !strings.Contains(out, "paused") {
		t.Errorf("state: %s", out)
	}
	r.do("resume", "c1")
	r.do("kill", "--all", "c1", "KILL")
	r.do("delete", "--force", "c1")
	gone(t, limitedUnit, limitedGroup)
}

func TestScopeUpdate(t *testing.T) {
	r := ours(t)
	r.do("run", "--detach", "--bundle", bundle(t, limited), "c1")
	defer r.try("", "delete", "--force", "c1")
	r.do("update", "--memory", "100000000", "--pids-limit", "77", "--cpu-quota", "10000", "--cpu-share", "1024", "c1")
	want(t, limitedUnit, "TasksMax", "77", "CPUQuotaPerSecUSec", "200ms")
	limit, weight := "MemoryMax", "CPUWeight"
	if machine(t).Mode() != cgroup.V2 {
		limit, weight = "MemoryLimit", "CPUShares"
	}
	want(t, limitedUnit, limit, "100000000", weight, map[string]string{"CPUWeight": "100", "CPUShares": "1024"}[weight])
	check := func() {
		t.Helper()
		if got := file(t, limitedGroup, "memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(100000000/4096*4096) {
			t.Errorf("memory is limited to %s", got)
		}
		if got := file(t, limitedGroup, "pids.max", "pids.max"); got != "77" {
			t.Errorf("pids are limited to %s", got)
		}
		if got := file(t, limitedGroup, "cpu.cfs_quota_us", "cpu.max"); got != "10000" && got != "10000 50000" {
			t.Errorf("CPU is limited to %s", got)
		}
		if got := file(t, limitedGroup, "cpuset.cpus", "cpuset.cpus"); got != "0" {
			t.Errorf("CPUs are %s", got)
		}
	}
	check()
	if out, err := r.try("", "update", "--pids-limit", "99", "--cpuset-cpus", "4000", "c1"); err == nil {
		t.Errorf("CPUs that the machine does not have: %s", out)
	}
	check()
	want(t, limitedUnit, "TasksMax", "77")
	r.do("delete", "--force", "c1")
	gone(t, limitedUnit, limitedGroup)
}

func TestScopeEndsAlone(t *testing.T) {
	r := ours(t)
	dir := bundle(t, func(s *specs.Spec) { s.Process.Args = []string{"/bin/sh", "-c", "exit 7"} })
	out, err := r.try("", "run", "--bundle", dir, "alone")
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 { //nolint:errorlint // it is unwrapped
		t.Errorf("%v: %s", err, out)
	}
	gone(t, "runc-alone.scope", "/system.slice/runc-alone.scope")
}

func TestScopeAnnotations(t *testing.T) {
	r := ours(t)
	r.do("create", "--bundle", bundle(t, func(s *specs.Spec) {
		s.Annotations = map[string]string{"org.systemd.property.TimeoutStopSec": "uint64 123", "org.systemd.property.CollectMode": "'inactive-or-failed'",
			"org.systemd.property.TasksMax": "uint64 33", "org.systemd.property.MemoryHigh": "uint64 50000000"}
	}), "noted")
	want(t, "runc-noted.scope", "TimeoutStopUSec", "2min 3s", "CollectMode", "inactive-or-failed", "TasksMax", "33")
	r.do("delete", "--force", "noted")
	for name, annotations := range map[string]map[string]string{
		"no value":    {"org.systemd.property.CollectMode": "nonsense"},
		"no property": {"org.systemd.property.FrobnicateMax": "uint64 5"},
		"not here":    {"org.systemd.property.ExecStartPre": "'/bin/true'"},
	} {
		out, err := r.try("", "create", "--bundle", bundle(t, func(s *specs.Spec) { s.Annotations = annotations }), "noted")
		if err == nil {
			t.Errorf("%s: created: %s", name, out)
			r.do("delete", "--force", "noted")
		}
		gone(t, "runc-noted.scope", "/system.slice/runc-noted.scope")
		if left, _ := os.ReadDir(r.root); len(left) > 0 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
}

// TestScopeOutOfMemory has systemd see a scope whose processes the kernel kills.
func TestScopeOutOfMemory(t *testing.T) {
	r := ours(t)
	out, err := r.try("", "run", "--bundle", bundle(t, func(s *specs.Spec) {
		limited(s)
		s.Linux.Resources.Memory.Limit = ptr(int64(16 << 20))
		s.Process.Args = []string{"/bin/sh", "-c", "x=0123456789abcdef; while :; do x=$x$x; done"}
	}), "c1")
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 137 { //nolint:errorlint // it is unwrapped
		t.Errorf("%v: %s", err, out)
	}
	gone(t, limitedUnit, limitedGroup)
	r.do("run", "--detach", "--bundle", bundle(t, limited), "c1") // the name is free
	r.do("delete", "--force", "c1")
}

// TestScopeTaken refuses a name that another container's scope has, and leaves that alone.
func TestScopeTaken(t *testing.T) {
	r := ours(t)
	r.do("run", "--detach", "--bundle", bundle(t, limited), "c1")
	if out, err := r.try("", "run", "--detach", "--bundle", bundle(t, limited), "c2"); err == nil || !strings.Contains(out, "not empty") {
		t.Errorf("%v: %s", err, out)
	}
	want(t, limitedUnit, "ActiveState", "active")
	if out := r.do("state", "c1"); !strings.Contains(out, "running") {
		t.Errorf("state: %s", out)
	}
	r.do("delete", "--force", "c1")
	gone(t, limitedUnit, limitedGroup)
}

// TestScopeKilledCreate dies at every named place of create; delete takes what is left.
func TestScopeKilledCreate(t *testing.T) {
	for _, at := range []string{"runtime/cgroup", "runtime/prepare", "runtime/launch", "runtime/adopted", "runtime/process.json"} {
		r := ours(t)
		out, err := r.try("CRI_SERVER_FAULT="+at+"=kill", "create", "--bundle", bundle(t, limited), "c1")
		if err == nil {
			t.Errorf("%s: not killed: %s", at, out)
		}
		r.do("delete", "--force", "c1")
		gone(t, limitedUnit, limitedGroup)
	}
}

// TestHooksSeeScope has a hook look for the scope: it is there before any hook runs.
func TestHooksSeeScope(t *testing.T) {
	r := ours(t)
	seen := filepath.Join(t.TempDir(), "seen")
	r.do("create", "--bundle", bundle(t, func(s *specs.Spec) {
		limited(s)
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "systemctl is-active " + limitedUnit + " > " + seen}, Env: []string{"PATH=/usr/bin:/bin"}}}}
	}), "c1")
	if b, _ := os.ReadFile(seen); strings.TrimSpace(string(b)) != "active" {
		t.Errorf("the hook saw %q", b)
	}
	r.do("delete", "--force", "c1")
}

// TestScopeLikeRunc compares what systemd and the kernel know of runc's containers and ours.
func TestScopeLikeRunc(t *testing.T) {
	exe, err := exec.LookPath("runc")
	if err != nil {
		testroot.Skip(t, "runc is not on PATH")
	}
	changes := map[string]func(*specs.Spec){
		"limits":  limited,
		"nothing": func(s *specs.Spec) { s.Linux.CgroupsPath = "crit-pod1.slice:cri:limited" },
		"devices": func(s *specs.Spec) {
			limited(s)
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "rw"},
				specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: ptr(int64(8)), Access: "r"})
		},
		"a quota between percents": func(s *specs.Spec) {
			limited(s)
			s.Linux.Resources.CPU.Quota = ptr(int64(5123))
		},
	}
	props := []string{"Slice", "Delegate", "DefaultDependencies", "Description", "MemoryMax", "MemoryLimit", "MemoryLow", "MemorySwapMax", "CPUWeight", "CPUShares",
		"CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "TasksMax", "AllowedCPUs", "AllowedMemoryNodes", "DevicePolicy", "IOWeight", "BlockIOWeight",
		"MemoryAccounting", "CPUAccounting", "IOAccounting", "BlockIOAccounting", "TasksAccounting", "CollectMode", "OOMPolicy", "ControlGroup", "DeviceAllow"}
	files := [][2]string{{"memory.limit_in_bytes", "memory.max"}, {"cpu.cfs_quota_us", "cpu.max"}, {"cpu.shares", "cpu.weight"}, {"pids.max", "pids.max"}, {"cpuset.cpus", "cpuset.cpus"}, {"cpuset.mems", "cpuset.mems"}}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			var seen [2]map[string]string
			for i, r := range []*runtime{ours(t), {t, exe, t.TempDir()}} {
				r.do("create", "--bundle", bundle(t, change), "c1")
				seen[i] = show(t, limitedUnit, props...)
				devices := strings.Split(seen[i]["DeviceAllow"], ", ")
				devices = slices.DeleteFunc(devices, func(d string) bool { // tun is runc's default, the console ours
					return d == "/dev/char/10:200 rwm" || d == "/dev/char/5:1 rwm"
				})
				slices.Sort(devices)
				seen[i]["DeviceAllow"] = strings.Join(devices, ", ")
				for _, f := range files {
					seen[i][f[1]] = file(t, limitedGroup, f[0], f[1])
				}
				r.do("delete", "--force", "c1")
			}
			for k, v := range seen[1] {
				if seen[0][k] != v {
					t.Errorf("%s: %q, with runc %q", k, seen[0][k], v)
				}
			}
		})
	}
}
