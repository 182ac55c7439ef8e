package runexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// The test binary is the program: MODE says how it behaves.
func TestMain(m *testing.M) {
	switch os.Getenv("MODE") {
	case "":
		os.Exit(m.Run())
	case "echo":
		in, _ := io.ReadAll(os.Stdin)
		os.Stdout.Write(in)
		os.Exit(0)
	case "deaf": // reads nothing
		fmt.Print("fine")
		os.Exit(0)
	case "fail":
		fmt.Print(`{"code":11,"msg":"no"}`)
		fmt.Fprint(os.Stderr, "complaint")
		os.Exit(3)
	case "hang": // with a child in its group, which must die too
		alive, _ := os.OpenFile(os.Getenv("ALIVE"), os.O_WRONLY, 0)
		child := exec.Command("/proc/self/exe")
		child.Env, child.ExtraFiles = []string{"MODE=sleep"}, []*os.File{alive}
		child.Start()
		fmt.Fprint(alive, "begun")
		time.Sleep(time.Hour)
	case "flood":
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 1024 {
			if _, err := os.Stdout.Write(chunk); err != nil {
				os.Exit(1)
			}
		}
		os.Exit(0)
	case "flood stderr":
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 64 {
			os.Stderr.Write(chunk)
		}
		fmt.Print("fine")
		os.Exit(0)
	case "detach": // leaves a child that holds its output open
		child := exec.Command("/proc/self/exe")
		child.Env = []string{"MODE=sleep"}
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		child.Start()
		os.WriteFile(os.Getenv("PIDFILE"), []byte(strconv.Itoa(child.Process.Pid)), 0o600)
		fmt.Print("fine")
		os.Exit(0)
	case "sleep":
		time.Sleep(time.Minute)
		os.Exit(0)
	}
}

func run(t *testing.T, ctx context.Context, mode string, timeout time.Duration, stdin []byte) (Result, string, error) {
	t.Helper()
	pidfile := t.TempDir() + "/pid"
	res, err := Run(ctx, Program{Path: "/proc/self/exe", Env: []string{"MODE=" + mode, "PIDFILE=" + pidfile}, Stdin: stdin, Timeout: timeout})
	return res, pidfile, err
}

func TestOutput(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789"), 200_000) // more than pipes hold
	for _, c := range []struct {
		mode   string
		stdin  []byte
		stdout string
		code   int
	}{
		{"echo", []byte("hello"), "hello", 0},
		{"echo", nil, "", 0},
		{"echo", big, string(big), 0},
		{"deaf", big, "fine", 0},
		{"fail", nil, `{"code":11,"msg":"no"}`, 3},
		{"flood stderr", nil, "fine", 0},
	} {
		res, _, err := run(t, context.Background(), c.mode, time.Minute, c.stdin)
		if err != nil {
			t.Errorf("%s: %v", c.mode, err)
			continue
		}
		if string(res.Stdout) != c.stdout || res.State.ExitCode() != c.code {
			t.Errorf("%s: %d bytes %.40q, exit code %d; want %d bytes %.40q, %d", c.mode, len(res.Stdout), res.Stdout, res.State.ExitCode(), len(c.stdout), c.stdout, c.code)
		}
		if len(res.Stderr) > maxStderr {
			t.Errorf("%s: %d bytes of stderr kept", c.mode, len(res.Stderr))
		}
	}
}

// TestHang kills a program and its child, which hold a FIFO open as long as they live. A timeout may strike before there is
// a child; the cancellation comes after.
func TestHang(t *testing.T) {
	for _, how := range []string{"timeout", "cancel"} {
		alive := t.TempDir() + "/alive"
		if err := unix.Mkfifo(alive, 0o600); err != nil {
			t.Fatal(err)
		}
		reader, err := os.OpenFile(alive, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		ctx, cancel := context.WithCancel(context.Background())
		timeout, want := 300*time.Millisecond, errs.Timeout
		if how == "cancel" {
			timeout, want = time.Minute, errs.Canceled
			go func() {
				defer cancel()
				begun, err := os.Open(alive) // once the program opens it too
				if err != nil {
					return
				}
				defer begun.Close()
				_, _ = io.ReadFull(begun, make([]byte, len("begun")))
			}()
		}
		res, err := Run(ctx, Program{Path: "/proc/self/exe", Env: []string{"MODE=hang", "ALIVE=" + alive}, Timeout: timeout})
		cancel()
		if !errs.Is(err, want) || res.State != nil {
			t.Errorf("%s: %v, %v", how, res.State, err)
		}
		_ = reader.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, reader); err != nil {
			t.Errorf("%s: the program's child lives on: %v", how, err)
		}
	}
}

func TestFlood(t *testing.T) {
	res, _, err := run(t, context.Background(), "flood", time.Minute, nil)
	if !errs.Is(err, errs.Exhausted) || res.State != nil {
		t.Errorf("%v, %v", res.State, err)
	}
	if len(res.Stdout) > maxStdout {
		t.Errorf("%d bytes kept", len(res.Stdout))
	}
}

func TestDetachedChildHoldsOutput(t *testing.T) {
	res, pidfile, err := run(t, context.Background(), "detach", time.Minute, nil)
	if err != nil || string(res.Stdout) != "fine" || !res.State.Success() {
		t.Errorf("%q, %v, %v", res.Stdout, res.State, err)
	}
	pid := readPid(t, pidfile)
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("a child in a session of its own was killed: %v", err)
	}
	unix.Kill(pid, unix.SIGKILL)
}

func TestNoProgram(t *testing.T) {
	_, err := Run(context.Background(), Program{Path: "/nonexistent/plugin"})
	if !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err = Run(ctx, Program{Path: "/proc/self/exe", Env: []string{"MODE=sleep"}}); !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
}

func readPid(t *testing.T, file string) int {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
