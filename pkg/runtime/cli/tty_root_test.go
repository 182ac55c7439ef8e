//go:build root

package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
)

// pty opens a terminal and returns its two ends.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testroot.Skip(t, "no terminals: "+err.Error())
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave = os.NewFile(fd, "slave")
	t.Cleanup(func() { master.Close(); slave.Close() })
	return master, slave
}

// TestOthersSpecs runs the configurations that Debian 12's runc and crun write, unchanged, on a terminal.
func TestOthersSpecs(t *testing.T) {
	for _, name := range []string{"runc-1.1.5", "crun-1.8.1"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			data, err := os.ReadFile("testdata/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			out, code := b.interact("stty rows 11; test -t 1 && tty && hostname && exit 3\n", "run", "--bundle", b.bundle, "others-"+name)
			if code != 3 || !strings.Contains(out, "/dev/pts/0\r\n"+name[:4]+"\r\n") {
				t.Errorf("exit %d: %q", code, out)
			}
		})
	}
}

// interact runs a command on a terminal, types and returns what it shows.
func (b *bench) interact(typed string, args ...string) (string, int) {
	b.t.Helper()
	master, slave := pty(b.t)
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 99}); err != nil {
		b.t.Fatal(err)
	}
	cmd := b.cmd(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	slave.Close()
	shown := make(chan string, 1)
	go func() {
		var all bytes.Buffer
		_, _ = all.ReadFrom(master)
		shown <- all.String()
	}()
	if _, err := master.WriteString(typed); err != nil {
		b.t.Fatal(err)
	}
	_ = cmd.Wait()
	select {
	case s := <-shown:
		return s, cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		b.t.Fatal("the terminal is still open")
		return "", 0
	}
}

// TestTerminalSize: the container's terminal has the size of the caller's, and exec gets one of its own.
func TestTerminalSize(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) { s.Process.Terminal = true }, "sh", "-c", "while [ \"$(stty size)\" != '33 99' ]; do sleep 0.01; done; echo sized")
	if out, code := b.interact("", "run", "--bundle", b.bundle, "c1"); code != 0 || !strings.Contains(out, "sized\r\n") {
		t.Errorf("exit %d: %q", code, out)
	}
	b.config("c1", nil, "sleep", "1000")
	b.ok("run", "-d", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "-f", "c1")
	if out, code := b.interact("", "exec", "--tty", "c1", "sh", "-c", "tty; exit 5"); code != 5 || !strings.Contains(out, "/dev/pts/0\r\n") {
		t.Errorf("exit %d: %q", code, out)
	}
}

// TestConsoleSocket receives the master of a detached container's terminal, by a path too long for an
// address.
func TestConsoleSocket(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/s", d.Fd())}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		t.Fatal(err)
	}
	b.config("c1", func(s *specs.Spec) { s.Process.Terminal = true }, "sh", "-c", "read line; echo got $line; sleep 1000")
	if r := b.do("create", "--bundle", b.bundle, "c1"); r.code != 1 || !strings.Contains(r.err, "cannot allocate tty if runc will detach without setting console socket") {
		t.Errorf("%+v", r)
	}
	b.ok("create", "--bundle", b.bundle, "--console-socket", dir+"/s", "c1")
	defer b.ok("delete", "-f", "c1")
	conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(conn)
	buf, oob := make([]byte, 64), make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%v, %v", msgs, err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%v, %v", fds, err)
	}
	master := os.NewFile(uintptr(fds[0]), "master")
	defer master.Close()
	b.ok("start", "c1")
	if _, err := master.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	var all string
	for !strings.Contains(all, "got hello") {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatalf("%q, %v", all, err)
		}
		all += string(buf[:n])
	}
}
