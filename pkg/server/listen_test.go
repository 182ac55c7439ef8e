package server

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestListenLongPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("long/", 60), "cri.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st, err)
	}
	if st, err = os.Stat(filepath.Dir(path)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", st, err)
	}
	accepted := make(chan net.Conn)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	c, err := Dial(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	(<-accepted).Close()
}

func TestListenReplacesOnlyTheDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); !errs.Is(err, errs.Conflict) {
		t.Errorf("second listener: %v, want a conflict", err)
	}
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("closing the listener removed the file: %v", err)
	}
	if l, err = Listen(path); err != nil {
		t.Fatalf("dead socket in the way: %v", err)
	}
	l.Close()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); !errs.Is(err, errs.Conflict) {
		t.Errorf("file in the way: %v, want a conflict", err)
	}
}

// TestActivated hands a listener to a process of this test, as a service manager does, and connects to it.
func TestActivated(t *testing.T) {
	if os.Getenv("ACTIVATED_HELPER") != "" {
		t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		ls, err := Activated()
		if err != nil || len(ls) != 1 {
			t.Fatalf("got %v, %v", ls, err)
		}
		c, err := ls[0].Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("served")); err != nil {
			t.Fatal(err)
		}
		return
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close() // the process has it now
	cmd := exec.Command(os.Args[0], "-test.run=^TestActivated$")
	cmd.Env = append(os.Environ(), "ACTIVATED_HELPER=1", "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	c, err := Dial(t.Context(), path) // connects before the process is up, and waits for it
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "served" {
		t.Errorf("got %q, %v", b, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestActivatedIgnoresOthers(t *testing.T) {
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_PID", "1")
	ls, err := Activated()
	if err != nil || len(ls) != 0 {
		t.Errorf("got %v, %v", ls, err)
	}
	if os.Getenv("LISTEN_FDS") != "" {
		t.Error("LISTEN_FDS stayed in the environment")
	}
}
