//go:build root

package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/sys"
)

func TestMain(m *testing.M) { testroot.Main(m) }

func newNamespace(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	if err := sys.OnThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func inode(path string) string {
	s, err := os.Readlink(path)
	if err != nil {
		return err.Error()
	}
	return s
}

// Visits land where they are to, and leave every thread at home.
func TestPool(t *testing.T) {
	testroot.NeedRoot(t)
	home := inode("/proc/self/ns/net")
	var p Pool
	spaces := []*os.File{newNamespace(t), newNamespace(t)}
	var wg sync.WaitGroup
	boom := errors.New("boom")
	for i := range 200 {
		wg.Go(func() {
			ns := spaces[i%2]
			err := p.Do(ns, func() error {
				if got, want := inode("/proc/thread-self/ns/net"), inode(fmt.Sprintf("/proc/self/fd/%d", ns.Fd())); got != want {
					t.Errorf("in %s, want %s", got, want)
				}
				if unix.Gettid() == unix.Getpid() {
					t.Error("on the main thread")
				}
				if i%7 == 0 {
					return boom
				}
				return nil
			})
			if (i%7 == 0) != errors.Is(err, boom) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(p.idle) > poolSize {
		t.Errorf("%d threads wait", len(p.idle))
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		if got := inode(task); got != home {
			if _, err := os.Stat(task); err == nil {
				t.Errorf("%s is in %s", task, got)
			}
		}
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := p.Do(null, func() error { t.Error("ran"); return nil }); err == nil {
		t.Error("entered /dev/null")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	ran := false
	if err := p.Do(spaces[0], func() error { ran = true; return nil }); err != nil || !ran {
		t.Error("after Close:", err, ran)
	}
}

func TestOpen(t *testing.T) {
	if f, err := Open("/proc/self/ns/net"); err != nil || f == nil {
		t.Error(f, err)
	} else {
		f.Close()
	}
	for _, path := range []string{"/nonexistent", "/proc/2147483647/ns/net"} {
		if f, err := Open(path); err != nil || f != nil {
			t.Errorf("%s: %v, %v", path, f, err)
		}
	}
	for _, path := range []string{"/dev/null", "/proc/self/ns/mnt", "/proc/self/status", "/tmp"} {
		if f, err := Open(path); err == nil {
			t.Errorf("%s: %v", path, f)
		}
	}
}
