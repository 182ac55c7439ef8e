package serve

import (
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReaperTakesWhatNobodyWaitsFor(t *testing.T) {
	path, err := exec.LookPath("true")
	if err != nil {
		t.Skip("there is no true")
	}
	pid, err := syscall.ForkExec(path, []string{"true"}, &syscall.ProcAttr{Env: os.Environ()})
	if err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	var r reaper
	r.sweep()
	if !slices.Contains(zombies(), pid) {
		t.Fatal("a child that had just ended was taken from whoever waits for it")
	}
	r.sweep()
	if slices.Contains(zombies(), pid) {
		t.Error("a child that nobody waits for is still there")
	}
}
