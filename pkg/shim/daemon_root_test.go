//go:build root

package shim

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cri-server/cri-server/internal/testroot"
)

func init() {
	daemonMain = daemon
}

// daemon is a daemon that a test kills: it spawns a shim in args[0], starts the script args[1] in a
// container whose box is args[2], prints a line and stays. args[3] is cri-runtime.
func daemon(args []string) {
	check := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	if args[0] == "dial" {
		_, err := Dial(ctx, args[1])
		_, merr := os.Open("/proc/" + args[2] + "/fd")
		if err != nil && merr != nil {
			fmt.Println("refused:", err, merr)
		}
		return
	}
	c, err := Spawn(ctx, SpawnConfig{PodID: "p", Exe: args[3], Dir: args[0]})
	check(err)
	t := &testing.T{}
	req, files := script(t, args[1])
	log, err := os.OpenFile(filepath.Join(args[2], "0.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(err)
	dir, err := os.Open(args[2])
	check(err)
	pid, err := c.Start(ctx, StartRequest{ID: "c1", Launch: req, Files: files, Log: log, ExitDir: dir})
	check(err)
	fmt.Println("started", c.Info().Pid, pid)
	select {}
}

// runDaemon runs daemon until it has started the container and returns a function that kills it.
func runDaemon(t *testing.T, dir, steps, box string) (kill func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "daemon", dir, steps, box, testroot.Runtime(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, _ := out.Read(line)
	if !bytes.HasPrefix(line[:n], []byte("started")) {
		t.Fatalf("the daemon says %q", line[:n])
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func TestKilledDaemonLosesNoLine(t *testing.T) {
	cfg := spawnConfig(t)
	const lines = 20000 // two seconds at 10,000 a second
	box := &box{id: "c1", dir: t.TempDir()}
	kill := runDaemon(t, cfg.Dir, fmt.Sprintf("tick:%d;exit:3", lines), box.dir)
	kill()
	c := dial(t, cfg.Dir)
	t.Cleanup(func() { endShim(t, cfg.Dir) })
	states, err := c.States(testContext(t))
	if err != nil || len(states) != 1 || states[0].Exited {
		t.Fatalf("after the daemon's death: %+v, %v", states, err)
	}
	if st := waitExit(t, c, "c1"); st.ExitCode != 3 {
		t.Errorf("state %+v", st)
	}
	checkLines(t, box.log(t, "0.log"), lines)
}

func TestExitWhileNoDaemon(t *testing.T) {
	cfg := spawnConfig(t)
	box := &box{id: "c1", dir: t.TempDir()}
	runDaemon(t, cfg.Dir, "out:alone;wait-seconds:1;exit:9", box.dir)()
	t.Cleanup(func() { endShim(t, cfg.Dir) })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if r, err := ReadExit(box.dir); err == nil {
			if r.ExitCode != 9 {
				t.Errorf("record %+v", r)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no exit record")
		}
	}
	c := dial(t, cfg.Dir)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		states, err := c.States(testContext(t))
		if err != nil || len(states) != 1 {
			t.Fatalf("states %+v, %v", states, err)
		}
		if st := states[0]; st.Exited { // soon after the record
			if st.ExitCode != 9 {
				t.Errorf("state %+v", st)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the exit is not told")
		}
	}
	if got := box.log(t, "0.log"); got != "stdout F alone\n" {
		t.Errorf("log %q", got)
	}
}
