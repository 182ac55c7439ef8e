package sys

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const calmEnv = "TEST_CALM_MONITOR"

func init() {
	if os.Getenv(calmEnv) == "" {
		return
	}
	if err := calmed(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// calmed prints the slack of the monitor, and of a process that a thread with the monitor's slack makes.
func calmed() error {
	CalmMonitor()
	its, err := os.ReadFile("/proc/" + monitor() + "/timerslack_ns")
	if err != nil {
		return err
	}
	return OnThread(func() error {
		late, err := strconv.Atoi(monitorSlack)
		if err == nil {
			err = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(late), 0, 0, 0)
		}
		if err != nil {
			return err
		}
		cmd := exec.Command("cat", "/proc/self/timerslack_ns")
		var out strings.Builder
		cmd.Stdout = &out
		if err := Spawn(cmd.Start); err != nil {
			return err
		}
		err = cmd.Wait()
		fmt.Print(string(its), out.String())
		return err
	})
}

func TestCalmMonitor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the slack of another thread takes CAP_SYS_NICE")
	}
	// The caller's slack is not the kernel's default, so that what is inherited can be told from it.
	const own = 70000
	var out []byte
	err := OnThread(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, own, 0, 0, 0); err != nil {
			return err
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), calmEnv+"=1")
		var err error
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := strings.Fields(string(out))
	if len(f) != 2 {
		t.Fatalf("said %q", out)
	}
	if f[1] != strconv.Itoa(own) {
		t.Errorf("a process begins with a slack of %s ns, want its grandparent's %d", f[1], own)
	}
	if f[0] != monitorSlack {
		t.Errorf("the monitor's slack is %s ns, want %s", f[0], monitorSlack)
	}
}
