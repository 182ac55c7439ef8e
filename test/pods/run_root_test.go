//go:build root

package pods

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
)

// TestRunTerminal is an operator at a shell: the prompt is there before anything is typed, what is typed is
// answered, and the exit code is the shell's.
func TestRunTerminal(t *testing.T) {
	n := newNode(t)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testroot.Skip(t, "no terminals: "+err.Error())
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave := os.NewFile(fd, "slave")
	cmd := exec.Command("../../bin/cri-server", "--socket", n.path("cri-server.sock"), "run", "-it", busybox, "sh", "-c", "echo welcome; exec sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var mu sync.Mutex
	var seen []byte
	go func() {
		buf := make([]byte, 4096)
		for {
			k, err := master.Read(buf)
			mu.Lock()
			seen = append(seen, buf[:k]...)
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	expect := func(what string) {
		t.Helper()
		for end := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			i := bytes.Index(seen, []byte(what))
			if i >= 0 {
				seen = seen[i+len(what):]
				mu.Unlock()
				return
			}
			all := string(seen)
			mu.Unlock()
			if time.Now().After(end) {
				_ = cmd.Process.Kill()
				t.Fatalf("there is no %q in %q", what, all)
			}
		}
	}
	typed := func(line string) {
		if _, err := master.WriteString(line + "\r"); err != nil {
			t.Fatal(err)
		}
	}
	expect("welcome")
	expect("# ")
	typed("echo $((6 * 7))")
	expect("\n42")
	expect("# ")
	typed("exit 5")
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("%v, want exit code 5; it said %q", err, seen)
	}
}

// TestRunTerminalBriefly: of a container that has ended before anybody could come to its terminal everything is shown.
func TestRunTerminalBriefly(t *testing.T) {
	n := newNode(t)
	for range 5 {
		cmd := exec.Command("../../bin/cri-server", "--socket", n.path("cri-server.sock"), "run", "-it", busybox, "sh", "-c", "echo brief; exit 3")
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 || strings.TrimRight(out.String(), "\r\n") != "brief" {
			t.Errorf("%v, %q, %q", err, out.String(), errOut.String())
		}
	}
}
