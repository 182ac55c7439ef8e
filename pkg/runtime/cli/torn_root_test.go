//go:build root

package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestTorn: whatever a record has become, the container is named with the way to remove it, which ends its
// processes; the others are listed.
func TestTorn(t *testing.T) {
	b := newBench(t)
	b.config("c2", nil, "sleep", "1000")
	b.ok("run", "-d", "--bundle", b.bundle, "c2")
	defer b.ok("delete", "-f", "c2")
	for name, tear := range map[string]func(whole []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut":       func(w []byte) []byte { return w[:len(w)/2] },
		"zeros":     func(w []byte) []byte { return make([]byte, len(w)) },
		"another's": func(w []byte) []byte { return []byte(strings.Replace(string(w), `"c1"`, `"c9"`, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			b.t = t
			b.config("c1", nil, "sleep", "1000")
			b.ok("run", "-d", "--bundle", b.bundle, "c1")
			var s shown
			if err := json.Unmarshal([]byte(b.ok("state", "c1")), &s); err != nil {
				t.Fatal(err)
			}
			pidfd, err := unix.PidfdOpen(s.Pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pidfd)
			file := filepath.Join(b.root, "c1", stateFile)
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, tear(whole), 0o600); err != nil {
				t.Fatal(err)
			}
			way := "delete --force c1"
			for _, args := range [][]string{{"state", "c1"}, {"kill", "c1"}, {"exec", "c1", "true"}, {"delete", "c1"}, {"start", "c1"}, {"ps", "c1"}} {
				if r := b.do(args...); r.code == 0 || !strings.Contains(r.err, "state of container c1 (") || !strings.Contains(r.err, way) {
					t.Errorf("%v: %+v", args, r)
				}
			}
			if r := b.do("list", "-q"); r.code != 0 || r.out != "c2\n" || !strings.Contains(r.err, "load container c1: ") || !strings.Contains(r.err, way) {
				t.Errorf("list: %+v", r)
			}
			if r := b.do("create", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "container with given ID already exists") {
				t.Errorf("create: %+v", r)
			}
			b.ok("delete", "--force", "c1")
			if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != unix.ESRCH {
				if fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}; poll(fds) != 1 {
					t.Errorf("its process lives: %v", err)
				}
			}
		})
	}
	b.t = t
	if err := os.Mkdir(filepath.Join(b.root, "c1"), 0o700); err != nil { // nothing is left but a torn record
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.root, "c1", stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := b.do("delete", "--force", "c1"); r.code != 0 || !strings.Contains(r.err, "its configuration cannot be read either") {
		t.Errorf("%+v", r)
	}
	if s := b.status("c2"); s != statusRunning {
		t.Errorf("the other container is %s", s)
	}
}

func poll(fds []unix.PollFd) int {
	n, _ := unix.Poll(fds, 20000)
	return n
}

// TestAlone: a container is told of and deleted when everything else of it has gone.
func TestAlone(t *testing.T) {
	b := newBench(t)
	for name, lose := range map[string]func(s shown, dir string) error{
		"its process":       func(s shown, _ string) error { return unix.Kill(s.Pid, unix.SIGKILL) },
		"its configuration": func(_ shown, dir string) error { return os.Remove(filepath.Join(dir, "config.json")) },
		"its bundle":        func(s shown, _ string) error { return os.Rename(s.Bundle+"/rootfs", s.Bundle+"/gone") },
		"all but the record": func(s shown, dir string) error {
			list, err := os.ReadDir(dir)
			for _, e := range list {
				if e.Name() != stateFile {
					os.RemoveAll(filepath.Join(dir, e.Name()))
				}
			}
			unix.Kill(s.Pid, unix.SIGKILL)
			return err
		},
	} {
		for _, verb := range []string{"create", "run"} {
			b.config("c1", func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/none"}}} }, "sleep", "1000")
			args := []string{verb, "--bundle", b.bundle, "c1"}
			if verb == "run" {
				args = []string{verb, "-d", "--bundle", b.bundle, "c1"}
			}
			b.ok(args...)
			var s shown
			if err := json.Unmarshal([]byte(b.ok("state", "c1")), &s); err != nil {
				t.Fatal(err)
			}
			if err := lose(s, filepath.Join(b.root, "c1")); err != nil {
				t.Fatal(err)
			}
			if st := b.status("c1"); st == statusCreating {
				t.Errorf("%s without %s: %s", verb, name, st)
			}
			if out := b.ok("list", "-q"); out != "c1\n" {
				t.Errorf("%s without %s: list: %s", verb, name, out)
			}
			b.ok("delete", "--force", "c1")
			b.leftovers()
			os.Rename(s.Bundle+"/gone", s.Bundle+"/rootfs")
		}
	}
}
