//go:build root

package testroot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestInside(t *testing.T) {
	NeedRoot(t)
	if os.Getppid() != 1 {
		t.Errorf("the parent is process %d, want 1 of a namespace of our own", os.Getppid())
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, Cgroup(t)) {
			t.Errorf("outside of our cgroup: %s", line)
		}
	}
	root := Rootfs(t, t.TempDir())
	if _, err := os.Stat(filepath.Join(root, "bin/sh")); err != nil {
		t.Error(err)
	}
	if n := netdevs(t); n != 1 {
		t.Errorf("%d network devices, want lo alone", n)
	}
}

// TestAgain holds that a test may run the test binary again, as one of its own processes.
func TestAgain(t *testing.T) {
	NeedRoot(t)
	out, err := exec.Command("/proc/self/exe", "-test.v", "-test.run=^TestInside$").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "want 1 of a namespace of our own") || strings.Contains(string(out), "testroot:") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestOrphansAreReaped holds that process 1 is an init.
func TestOrphansAreReaped(t *testing.T) {
	NeedRoot(t)
	out, err := exec.Command("sh", "-c", "true & echo $!").Output() // an orphan, or reaped by its parent
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat("/proc/" + strings.TrimSpace(string(out))); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a zombie stays")
		}
	}
}

func netdevs(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), ":")
}
