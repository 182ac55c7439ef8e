//go:build root

package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// script is a hook that runs a shell script.
func script(text string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", text}, Env: []string{"PATH=/usr/bin:/bin", "NAME=value"}}
}

// saw is what a hook told of itself: its state in JSON, and lines after it.
type saw struct {
	specs.State
	rest []string
}

func readSaw(t *testing.T, file string) saw {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(string(data), "\n")
	var s saw
	if err := json.Unmarshal([]byte(first), &s.State); err != nil {
		t.Fatalf("%s: %v: %s", file, err, data)
	}
	s.rest = strings.Split(strings.TrimSpace(rest), "\n")
	return s
}

// TestHookPlaces runs a hook of each kind and checks when and where it ran, and what it was told.
func TestHookPlaces(t *testing.T) {
	for _, own := range []bool{true, false} {
		b := newBench(t)
		dir := t.TempDir()
		rootfs := filepath.Join(b.bundle, "rootfs")
		tell := func(file string) string {
			return "cat >" + file + "; echo >>" + file + "; { readlink /proc/self/ns/net; pwd; echo $NAME; ls /etc/inside; ls -d " + dir + "; } >>" + file + " 2>/dev/null; ls /proc/self/fd | tr '\\n' ' ' >>" + file
		}
		kinds := []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
		b.config("c1", func(s *specs.Spec) {
			s.Annotations = map[string]string{"a": "b\"\\"}
			var h [6][]specs.Hook
			for i, k := range kinds {
				file := filepath.Join(dir, k)
				if k == "startContainer" {
					file = "/" + k
				}
				h[i] = []specs.Hook{script(tell(file)), script("echo " + k + " >>" + filepath.Dir(file) + "/order")}
			}
			s.Hooks = &specs.Hooks{Prestart: h[0], CreateRuntime: h[1], CreateContainer: h[2], StartContainer: h[3], Poststart: h[4], Poststop: h[5]} //nolint:staticcheck // in use
			s.Root.Readonly = false
			if !own { // the host's PID namespace
				s.Linux.Namespaces = without(s.Linux.Namespaces, specs.PIDNamespace)
			}
		}, "sh", "-c", "echo user >>/order; sleep 1000")
		os.WriteFile(filepath.Join(rootfs, "etc/inside"), nil, 0o644)
		b.ok("create", "--bundle", b.bundle, "c1")
		order := func(file, want string) {
			t.Helper()
			got, _ := os.ReadFile(file)
			if string(got) != want {
				t.Errorf("own=%v: order %q, want %q", own, got, want)
			}
		}
		order(dir+"/order", "prestart\ncreateRuntime\ncreateContainer\n")
		order(rootfs+"/order", "")
		b.ok("start", "c1")
		order(dir+"/order", "prestart\ncreateRuntime\ncreateContainer\npoststart\n")
		var st shown
		json.Unmarshal([]byte(b.ok("state", "c1")), &st)
		inside, _ := os.Readlink("/proc/" + strconv.Itoa(st.Pid) + "/ns/net")
		outside, _ := os.Readlink("/proc/self/ns/net")
		b.ok("delete", "-f", "c1")
		order(dir+"/order", "prestart\ncreateRuntime\ncreateContainer\npoststart\npoststop\n")
		inner := st.Pid
		if own {
			inner = 1
		}
		for i, want := range []struct {
			file, status, ns string
			pid              int
			seen             string
		}{
			{dir + "/prestart", "created", outside, st.Pid, dir}, {dir + "/createRuntime", "created", outside, st.Pid, dir},
			{dir + "/createContainer", "created", inside, inner, dir}, {rootfs + "/startContainer", "created", inside, inner, "/etc/inside"},
			{dir + "/poststart", "running", outside, st.Pid, dir}, {dir + "/poststop", "stopped", outside, 0, dir},
		} {
			s := readSaw(t, want.file)
			if string(s.Status) != want.status || s.Pid != want.pid || s.ID != "c1" || s.Bundle != b.bundle || s.Annotations["a"] != "b\"\\" || s.Version != specs.Version {
				t.Errorf("own=%v %s: state %+v, want pid %d", own, kinds[i], s.State, want.pid)
			}
			if len(s.rest) < 5 || s.rest[0] != want.ns || s.rest[2] != "value" || s.rest[3] != want.seen {
				t.Errorf("own=%v %s: %q, want %s and %s", own, kinds[i], s.rest, want.ns, want.seen)
				continue
			}
			if kinds[i] == "createContainer" && s.rest[1] != rootfs || kinds[i] == "startContainer" && s.rest[1] != "/" {
				t.Errorf("%s: ran in %s", kinds[i], s.rest[1])
			}
			if strings.HasSuffix(kinds[i], "Container") && strings.TrimSpace(s.rest[4]) != "0 1 2 3" { // 3 is ls's own
				t.Errorf("%s: descriptors %s", kinds[i], s.rest[4])
			}
		}
	}
}

// TestHookFailures checks what becomes of a container whose hook fails.
func TestHookFailures(t *testing.T) {
	second := 1
	for name, c := range map[string]struct {
		hooks specs.Hooks
		start bool // create works
		want  []string
	}{
		"prestart":        {hooks: specs.Hooks{Prestart: []specs.Hook{script("exit 0"), script("echo out; echo err >&2; exit 3")}}, want: []string{"error running prestart hook #1: exit status 3, stdout: out\n, stderr: err\n"}}, //nolint:staticcheck // in use
		"createRuntime":   {hooks: specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/none"}}}, want: []string{"error running createRuntime hook #0: fork/exec /none: no such file or directory"}},
		"createContainer": {hooks: specs.Hooks{CreateContainer: []specs.Hook{script("echo quiet"), script("echo out; echo err >&2; exit 3")}}, want: []string{"error running createContainer hook #1: exit status 3, stdout: out\n, stderr: err\n"}},
		"no executable":   {hooks: specs.Hooks{CreateContainer: []specs.Hook{{Path: "/none"}}}, want: []string{"error running createContainer hook #0: fork/exec /none: no such file or directory"}},
		"killed":          {hooks: specs.Hooks{CreateContainer: []specs.Hook{script("kill -9 $$")}}, want: []string{"error running createContainer hook #0: signal: killed"}},
		"timeout":         {hooks: specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &second}}}, want: []string{"error running createContainer hook #0", "hook ran past specified timeout of 1.0s"}},
		"timeout outside": {hooks: specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &second}}}, want: []string{"error running createRuntime hook #0: hook ran past specified timeout of 1.0s"}},
		"startContainer":  {start: true, hooks: specs.Hooks{StartContainer: []specs.Hook{script("echo out; echo err >&2; exit 3")}}, want: []string{"error running startContainer hook #0: exit status 3, stdout: out\n, stderr: err\n"}},
		"start, none":     {start: true, hooks: specs.Hooks{StartContainer: []specs.Hook{{Path: "/none"}}}, want: []string{"error running startContainer hook #0: fork/exec /none: no such file or directory"}},
		"poststart":       {start: true, hooks: specs.Hooks{Poststart: []specs.Hook{script("exit 4"), script("exit 5")}}, want: []string{"error running poststart hook #0: exit status 4"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			gone := filepath.Join(t.TempDir(), "gone")
			c.hooks.Poststop = []specs.Hook{script("exit 9"), script("echo gone >" + gone)}
			b.config("c1", func(s *specs.Spec) { s.Hooks = &c.hooks }, "sleep", "1000")
			var r result
			if c.start {
				b.ok("create", "--bundle", b.bundle, "c1")
				r = b.do("start", "c1")
			} else {
				r = b.do("create", "--bundle", b.bundle, "c1")
			}
			text := strings.ReplaceAll(r.err, `\n`, "\n")
			for _, w := range c.want {
				if r.code != 1 || !strings.Contains(text, w) {
					t.Errorf("code %d, %s; want %q", r.code, text, w)
				}
			}
			if name == "poststart" { // the runtime goes on at step 12 of the lifecycle: there is nothing left to delete
				if r := b.do("state", "c1"); r.code != 1 || !strings.Contains(r.err, "container does not exist") || !strings.Contains(text, "poststop hook #0: exit status 9") {
					t.Errorf("after a poststart hook that failed: %+v, start said %s", r, text)
				}
			} else if c.start {
				b.wait("c1", statusStopped)
				if d := b.do("delete", "c1"); d.code != 0 || !strings.Contains(d.err, "poststop hook #0: exit status 9") {
					t.Errorf("delete: %+v", d)
				}
			}
			if _, err := os.Stat(gone); err != nil {
				t.Error("the poststop hook after one that failed did not run")
			}
		})
	}
}

func without(list []specs.LinuxNamespace, t specs.LinuxNamespaceType) []specs.LinuxNamespace {
	var out []specs.LinuxNamespace
	for _, n := range list {
		if n.Type != t {
			out = append(out, n)
		}
	}
	return out
}

// TestNoNamespaces runs a container that shares every namespace with us: its mounts go when it goes.
func TestNoNamespaces(t *testing.T) {
	b := newBench(t)
	before, err := mountsAt(filepath.Join(b.bundle, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	b.config("c1", func(s *specs.Spec) { s.Linux.Namespaces, s.Hostname = nil, "" }, "sh", "-c", "readlink /proc/self/ns/mnt; ls /; sleep 1000")
	b.ok("create", "--bundle", b.bundle, "c1")
	var st shown
	json.Unmarshal([]byte(b.ok("state", "c1")), &st)
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	theirs, _ := os.Readlink("/proc/" + strconv.Itoa(st.Pid) + "/ns/mnt")
	root, _ := os.Readlink("/proc/" + strconv.Itoa(st.Pid) + "/root")
	if ours != theirs || root != filepath.Join(b.bundle, "rootfs") {
		t.Errorf("mount namespace %s, ours is %s; root %s", theirs, ours, root)
	}
	b.ok("start", "c1")
	b.wait("c1", statusRunning)
	if out := b.ok("exec", "--cwd", "/tmp", "c1", "sh", "-c", "readlink /proc/self/ns/mnt; pwd; test -e "+root+" || echo inside"); out != ours+"\n/tmp\ninside\n" {
		t.Errorf("exec: %s", out)
	}
	b.ok("delete", "-f", "c1")
	if after, err := mountsAt(filepath.Join(b.bundle, "rootfs")); err != nil || after != before {
		t.Errorf("%d mounts, %v; there were %d", after, err, before)
	}
}

// TestHookEnvironment: hooks without an environment have that of whoever runs them. The container's, in which its image
// has a say, is that of hooks inside alone: outside, its LD_PRELOAD would be root's on the host (CVE-2025-23266).
func TestHookEnvironment(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	bare := func(file string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >/dev/null; { pwd; export -p; } >" + file}}}
	}
	b.config("c1", func(s *specs.Spec) {
		s.Root.Readonly = false
		s.Process.Env = []string{"PATH=/bin", "LD_PRELOAD=/evil.so"}
		s.Hooks = &specs.Hooks{
			CreateRuntime: bare(dir + "/createRuntime"), CreateContainer: bare(dir + "/createContainer"), StartContainer: bare("/startContainer"),
			Poststart: bare(dir + "/poststart"), Poststop: bare(dir + "/poststop"),
		}
	}, "true")
	cmd := b.cmd("run", "--bundle", b.bundle, "c1")
	cmd.Env = append(cmd.Environ(), "CALLER=1")
	cmd.Dir = dir
	if r := run(t, cmd); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	for name, want := range map[string]struct {
		where             string
		caller, container bool
	}{
		"createRuntime": {b.bundle, true, false}, "createContainer": {b.bundle + "/rootfs", false, false}, "startContainer": {"/", false, true},
		"poststart": {b.bundle, true, false}, "poststop": {dir, true, false},
	} {
		file := filepath.Join(dir, name)
		if name == "startContainer" {
			file = filepath.Join(b.bundle, "rootfs", name)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		where, env, _ := strings.Cut(string(text), "\n")
		if where != want.where || strings.Contains(env, "CALLER=") != want.caller || strings.Contains(env, "evil.so") != want.container {
			t.Errorf("%s: in %s with %s", name, where, env)
		}
	}
}
