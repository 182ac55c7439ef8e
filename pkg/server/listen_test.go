package server

import (
	"net"
	"os"
	"path/filepath"
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
