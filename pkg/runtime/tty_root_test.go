//go:build root

package runtime_test

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// terminal starts p and returns everything its terminal showed.
func terminal(t *testing.T, p *runtime.Prepared, input string) string {
	t.Helper()
	defer p.Close()
	proc, err := launch.Start(&p.Request, p.Files, [3]*os.File{})
	if err != nil {
		t.Fatal(p.Explain(err))
	}
	defer proc.Close()
	defer proc.Console.Close()
	if p.Request.Gate {
		if err := proc.Release(); err != nil {
			t.Fatal(p.Explain(err))
		}
	}
	io.WriteString(proc.Console, input)
	out, _ := io.ReadAll(proc.Console) // ends with EIO when the last slave closes
	proc.Wait()
	return strings.ReplaceAll(string(out), "\r\n", "\n")
}

const ttyScript = `tty; stty size; stat -c '%F %t:%T %U' /dev/console; stat -c %U $(tty); ps -o tty,args | grep -c pts; echo >/dev/tty control; ls /proc/self/fd | wc -l; read x; echo got $x`

func TestTerminal(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	canary := t.TempDir() + "/canary"
	os.WriteFile(canary, []byte("untouched"), 0o644)
	s := spec(root, ttyScript)
	s.Process.Terminal = true
	s.Process.ConsoleSize = &specs.Box{Height: 33, Width: 77}
	s.Process.User.UID = 65534
	for _, gate := range []bool{false, true} {
		p, err := runtime.Prepare(context.Background(), runtime.Options{ID: "test", Spec: s, Clamp: true, Gate: gate})
		if err != nil {
			t.Fatal(err)
		}
		out := terminal(t, p, "input\n")
		has(t, out, "/dev/pts/0", "33 77", "character special file 88:0 nobody", "nobody", "control", "4", "got input")
	}
}

func TestTerminalExec(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	s := sleeper(root)
	c := begin(t, runtime.Options{Spec: s})
	proc := *s.Process
	proc.Args = []string{"sh", "-c", ttyScript}
	proc.Terminal = true
	proc.ConsoleSize = &specs.Box{Height: 9, Width: 99}
	p, err := runtime.PrepareExec(context.Background(), runtime.ExecOptions{ID: "test", Spec: s, Process: &proc, Pid: c.Pid, Clamp: true})
	if err != nil {
		t.Fatal(err)
	}
	out := terminal(t, p, "input\n")
	has(t, out, "/dev/pts/0", "9 99", "control", "4", "got input")
}

// TestConsoleLink has an image that wants the terminal bound elsewhere.
func TestConsoleLink(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	os.Mkdir(root+"/dev", 0o755)
	os.Symlink("/etc/passwd", root+"/dev/console")
	s := spec(root, "cat /etc/passwd; grep -c passwd /proc/mounts")
	s.Process.Terminal = true
	kept := s.Mounts[:0]
	for _, m := range s.Mounts {
		if m.Destination != "/dev" { // so that the image's own /dev is used
			kept = append(kept, m)
		}
	}
	s.Mounts = kept
	p, err := runtime.Prepare(context.Background(), runtime.Options{ID: "test", Spec: s, Clamp: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = launch.Start(&p.Request, p.Files, [3]*os.File{})
	if err = p.Explain(err); err == nil || !strings.Contains(err.Error(), "/dev/console") {
		t.Errorf("got %v", err)
	}
}
