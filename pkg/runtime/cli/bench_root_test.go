//go:build root

package cli

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
)

// bench is a bundle and a root of its own.
type bench struct {
	t            *testing.T
	root, bundle string
	cgroup       string // of containers, below the test's
	made         int
	user         *testroot.User // nil: root
	caller       *os.File       // v2 cgroup of the commands, nil for the test's
}

func newBench(t *testing.T) *bench {
	t.Helper()
	testroot.NeedRoot(t)
	b := &bench{t: t, root: t.TempDir(), bundle: t.TempDir(), cgroup: testroot.Cgroup(t) + "/cli"}
	testroot.Rootfs(t, b.bundle)
	t.Cleanup(b.leftovers)
	t.Cleanup(b.failed)
	return b
}

// failed deletes the containers of a test that stopped before it did: what follows has the same cgroup.
func (b *bench) failed() {
	if !b.t.Failed() {
		return
	}
	list, _ := os.ReadDir(b.root)
	for _, e := range list {
		if r := b.do("delete", "--force", e.Name()); r.code != 0 {
			b.t.Logf("delete %s: %+v", e.Name(), r)
		}
	}
}

// leftovers fails the test when a container has left anything.
func (b *bench) leftovers() {
	if list, err := os.ReadDir(b.root); err == nil && len(list) > 0 {
		b.t.Errorf("left below the root: %v", list)
	}
	err := filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasSuffix(p, b.cgroup) {
			b.t.Errorf("left: %s", p)
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		b.t.Error(err)
	}
}

// config writes the bundle's configuration: the example without a terminal, as change makes it.
func (b *bench) config(id string, change func(*specs.Spec), args ...string) {
	b.t.Helper()
	s := example()
	s.Process.Terminal = false
	s.Process.Args = args
	s.Linux.CgroupsPath = b.cgroup + "/" + id
	if change != nil {
		change(s)
	}
	data, err := json.Marshal(s)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) cmd(args ...string) *exec.Cmd {
	cmd := call(b.root, args...)
	if b.user != nil {
		cmd.Env = []string{commandEnv + "=1"}
		b.user.Become(cmd)
	}
	if b.caller != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(b.caller.Fd())
	}
	return cmd
}

// ok runs a command that has to succeed and returns what it printed. Its files are not ours: a container
// that stays keeps them open.
func (b *bench) ok(args ...string) string {
	b.t.Helper()
	r := b.do(args...)
	if r.code != 0 {
		b.t.Fatalf("%v: %+v", args, r)
	}
	return r.out
}

func (b *bench) do(args ...string) result {
	b.t.Helper()
	b.made++
	dir := b.t.TempDir()
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer out.Close()
	errs, err := os.Create(filepath.Join(dir, "err"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer errs.Close()
	cmd := b.cmd(args...)
	cmd.Stdout, cmd.Stderr = out, errs
	_ = cmd.Run()
	o, _ := os.ReadFile(out.Name())
	e, _ := os.ReadFile(errs.Name())
	return result{cmd.ProcessState.ExitCode(), string(o), string(e)}
}

func (b *bench) status(id string) string {
	b.t.Helper()
	var s shown
	if err := json.Unmarshal([]byte(b.ok("state", id)), &s); err != nil {
		b.t.Fatal(err)
	}
	if (s.Pid == 0) != (s.Status == statusStopped) {
		b.t.Errorf("a %s container has pid %d", s.Status, s.Pid)
	}
	return s.Status
}

// wait waits for a status that comes of itself.
func (b *bench) wait(id, status string) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); b.status(id) != status; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("container %s is %s, want %s", id, b.status(id), status)
		}
	}
}
