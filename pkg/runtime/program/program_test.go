package program_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/program"
	"github.com/cri-server/cri-server/pkg/sys"
)

// run starts the program with a pipe as its stdout, and returns what it wrote.
func run(t *testing.T, p *program.Program, req launch.Request, files ...*os.File) (string, launch.WaitStatus, error) {
	t.Helper()
	f, err := p.Seal("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	req.Cgroup = -1
	req.Program = len(files)
	proc, err := launch.Start(&req, append(files, f), [3]*os.File{nil, w, nil})
	w.Close()
	if err != nil {
		return "", 0, err
	}
	defer proc.Close()
	if err := proc.Release(); err != nil { // without a gate of the caller's there is nothing to do
		return "", 0, err
	}
	out, _ := io.ReadAll(r)
	ws, err := proc.Wait()
	return string(out), ws, err
}

// settle adds what a program does at its end: ready, and no report pipe any more.
func settle(p *program.Program) {
	p.Report(program.Int(launch.ReportFD), launch.RecordReady)
	p.Call(unix.SYS_CLOSE_RANGE, program.Int(launch.ReportFD), program.Int(1<<32-1), program.Int(0))
}

func say(p *program.Program, s string) {
	p.Call(unix.SYS_WRITE, program.Int(1), p.Str(s), program.Int(len(s)))
}

func TestRun(t *testing.T) {
	p := program.New()
	p.Subject("say")
	settle(p)
	say(p, "hello")
	p.Exit(7)
	out, ws, err := run(t, p, launch.Request{})
	if err != nil || out != "hello" || ws.ExitStatus() != 7 {
		t.Errorf("got %q, status %v, %v", out, ws, err)
	}
}

func TestFailureNamesOperation(t *testing.T) {
	p := program.New()
	p.Subject("close nothing")
	say(p, "x")
	p.Call(unix.SYS_CLOSE, program.Int(77))
	_, _, err := run(t, p, launch.Request{})
	var op *launch.OpError
	if !errors.As(err, &op) || op.Index != 1 || op.Errno != unix.EBADF {
		t.Fatalf("got %v", err)
	}
	if what, call := p.What(op.Index); what != "close nothing" || call != "close" {
		t.Errorf("What(%d) = %q, %q", op.Index, what, call)
	}
}

func TestDeathWithoutAWord(t *testing.T) {
	p := program.New()
	p.Call(unix.SYS_GETPID)
	pid := p.Slot("pid")
	p.Call(unix.SYS_GETPID).Save(pid)
	p.Call(unix.SYS_KILL, pid.Val(), program.Int(syscall.SIGKILL))
	_, _, err := run(t, p, launch.Request{})
	var died *launch.DiedError
	if !errors.As(err, &died) || died.Status.Signal() != unix.SIGKILL {
		t.Errorf("got %v", err)
	}
	p = program.New() // runs off its end
	p.Call(unix.SYS_GETPID)
	_, _, err = run(t, p, launch.Request{})
	if !errors.As(err, &died) || died.Status.ExitStatus() != program.ExitFailed {
		t.Errorf("got %v", err)
	}
}

func TestJumps(t *testing.T) {
	p := program.New()
	bad, ok, other, end := p.Label(), p.Label(), p.Label(), p.Label()
	p.Call(unix.SYS_CLOSE, program.Int(77)).Catch(bad, unix.ENOENT, unix.EBADF)
	say(p, "not caught")
	p.Bind(bad)
	p.Call(unix.SYS_CLOSE, program.Int(77)).Accept(unix.EBADF)
	p.Call(unix.SYS_CLOSE, program.Int(77)).Accept()
	p.Call(unix.SYS_GETPID).Then(ok)
	say(p, "not taken")
	p.Bind(ok)
	p.Call(unix.SYS_GETPID).Else(0, other)
	say(p, "not other")
	p.Bind(other)
	s := p.Slot("s")
	p.Call(unix.SYS_UMASK, program.Int(0o123))
	p.Call(unix.SYS_UMASK, program.Int(0)).Save(s)
	p.Load(s.Val(), 0xff).Want(0o123, unix.EILSEQ)
	p.Load(s.Val(), 0x3).Else(1, end)
	p.Bind(end)
	p.Call(unix.SYS_UMASK, s.Val())
	p.Call(unix.SYS_UMASK, program.Int(0)).Want(0o123, unix.EILSEQ)
	settle(p)
	say(p, "end")
	p.Exit(0)
	out, _, err := run(t, p, launch.Request{})
	if out != "end" || err != nil {
		t.Errorf("got %q, %v\n%s", out, err, p.Text())
	}
}

func TestWantFails(t *testing.T) {
	p := program.New()
	p.Call(unix.SYS_UMASK, program.Int(0)).Want(0o7777, unix.EILSEQ)
	_, _, err := run(t, p, launch.Request{})
	if !errors.Is(err, unix.EILSEQ) {
		t.Errorf("got %v", err)
	}
}

func TestUnboundLabel(t *testing.T) {
	p := program.New()
	p.Call(unix.SYS_GETPID).Then(p.Label())
	if _, err := p.Image(); err == nil {
		t.Error("an unbound label is no error")
	}
}

// gated stops at its gate and then says go.
func gated() *program.Program {
	p := program.New()
	p.Subject("gate")
	p.Gate(program.Int(launch.ReportFD), program.Int(launch.GateFD))
	settle(p)
	say(p, "go")
	p.Exit(0)
	return p
}

func TestGate(t *testing.T) {
	out, _, err := run(t, gated(), launch.Request{Gate: true})
	if out != "go" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	adj := 900
	out, _, err = run(t, gated(), launch.Request{OOMScoreAdj: &adj, Rlimits: []launch.Rlimit{{Resource: unix.RLIMIT_CORE, Soft: 0, Hard: 0}}})
	if out != "go" || err != nil {
		t.Errorf("set from outside: got %q, %v", out, err)
	}
}

// start starts a gated program and returns it at its gate.
func start(t *testing.T, dir *os.File) *launch.Process {
	t.Helper()
	f, err := gated().Seal("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	req := &launch.Request{Gate: true, Cgroup: -1}
	var proc *launch.Process
	if dir != nil {
		proc, err = launch.StartDetached(dir, req, []*os.File{f}, [3]*os.File{})
	} else {
		proc, err = launch.Start(req, []*os.File{f}, [3]*os.File{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return proc
}

// TestEndOn: a signal ends what waits at its gate, the first process of a PID namespace too, which ignores
// signals that it has no handler for.
func TestEndOn(t *testing.T) {
	namespaces := []uintptr{0}
	if os.Geteuid() == 0 {
		namespaces = append(namespaces, unix.CLONE_NEWPID)
	}
	for _, flags := range namespaces {
		p := program.New()
		p.EndOn(unix.SIGTERM)
		p.Gate(program.Int(launch.ReportFD), program.Int(launch.GateFD))
		settle(p)
		p.Exit(0)
		f, err := p.Seal("test")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		proc, err := launch.Start(&launch.Request{Cloneflags: flags, Cgroup: -1, Gate: true}, []*os.File{f}, [3]*os.File{})
		if errors.Is(err, unix.EPERM) {
			continue // no root of ours
		}
		if err != nil {
			t.Fatal(err)
		}
		defer proc.Close()
		if err := proc.Kill(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if ws, err := proc.Wait(); err != nil || ws.ExitStatus() != 128+15 {
			t.Errorf("namespaces %#x: status %v, %v", flags, ws, err)
		}
	}
}

func TestGateFailsClosed(t *testing.T) {
	proc := start(t, nil)
	if proc.Exited() {
		t.Fatal("it did not stop at its gate")
	}
	pidfd := proc.Pidfd.Fd()
	keep, err := unix.Dup(int(pidfd))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(keep)
	proc.Close() // as when the launcher dies
	unix.Poll([]unix.PollFd{{Fd: int32(keep), Events: unix.POLLIN}}, -1)
	ws, err := proc.Wait()
	_ = ws
	if err == nil {
		t.Error("Wait works on a closed process")
	}
}

func TestReleaseReportsDeath(t *testing.T) {
	proc := start(t, nil)
	if err := proc.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := proc.Release()
	var died *launch.DiedError
	if !errors.As(err, &died) || died.Status.Signal() != unix.SIGKILL {
		t.Errorf("got %v", err)
	}
}

func TestDetachedGate(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	proc := start(t, dir)
	defer proc.Close()
	fd, err := unix.PidfdOpen(proc.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	other, err := launch.Attach(dir, proc.Pid, os.NewFile(uintptr(fd), "pidfd"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Release(); err != nil {
		t.Fatal(err)
	}
	if ws, err := proc.Wait(); err != nil || ws.ExitStatus() != 0 {
		t.Errorf("status %v, %v", ws, err)
	}
	if _, err := other.Wait(); !errors.Is(err, unix.ECHILD) {
		t.Errorf("Wait of an attached process: %v", err)
	}
}

// TestDetachedDeath has a program end before its gate: nobody else may hold its report open.
func TestDetachedDeath(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	p := program.New()
	p.Subject("die")
	p.Exit(3)
	f, err := p.Seal("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = launch.StartDetached(dir, &launch.Request{Gate: true, Cgroup: -1}, []*os.File{f}, [3]*os.File{})
	var died *launch.DiedError
	if !errors.As(err, &died) || died.Status.ExitStatus() != 3 {
		t.Errorf("got %v", err)
	}
}

// nested clones a child beside itself, which says "child".
func nested(gate bool) *program.Program {
	p := program.New()
	p.Subject("clone")
	p.Nest(program.Int(launch.ReportFD), func() {
		p.Subject("child")
		if gate {
			p.Gate(program.Int(launch.ReportFD), program.Int(launch.GateFD))
		}
		settle(p)
		say(p, "child")
		p.Exit(3)
	})
	return p
}

func TestNested(t *testing.T) {
	for _, gate := range []bool{false, true} {
		out, ws, err := run(t, nested(gate), launch.Request{Nested: true, Gate: gate})
		if out != "child" || err != nil || ws.ExitStatus() != 3 {
			t.Errorf("gate %v: got %q, %v, %v", gate, out, ws, err)
		}
	}
	if n := launch.Reap(); n != 0 {
		t.Errorf("%d children left", n)
	}
}

func TestSendFD(t *testing.T) {
	p := program.New()
	slot, send := p.SendFD()
	p.Call(unix.SYS_OPENAT2, program.Int(unix.AT_FDCWD), p.Str("/dev/zero"), p.How(unix.O_RDONLY, 0, 0), program.Int(unix.SizeofOpenHow)).Save(slot)
	send(program.Int(launch.FirstFD))
	settle(p)
	p.Exit(0)
	f, err := p.Seal("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	proc, err := launch.Start(&launch.Request{Terminal: true, Cgroup: -1}, []*os.File{f}, [3]*os.File{})
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	defer proc.Console.Close()
	proc.Wait()
	b := []byte{1}
	if n, err := proc.Console.Read(b); n != 1 || err != nil || b[0] != 0 {
		t.Errorf("read %d, %v, %v from what was sent", n, b, err)
	}
}

func TestSealed(t *testing.T) {
	if !sys.Has(sys.ExecMemfd) {
		t.Skip("this kernel does not execute memfds")
	}
	f, err := gated().Seal("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0}, 0); err == nil {
		t.Error("a sealed program can be written")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("a sealed program can be truncated")
	}
}

// TestParallel starts many programs at once, some of which fail, and leaves neither children nor
// descriptors.
func TestParallel(t *testing.T) {
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	once := func(i int) error {
		var p *program.Program
		req := &launch.Request{Cgroup: -1}
		switch i % 4 {
		case 0:
			p, req.Nested, req.Gate = nested(true), true, true
		case 1:
			p, req.Nested = nested(false), true
		case 2:
			p = program.New()
			p.Call(unix.SYS_CLOSE, program.Int(77))
		default:
			p, req.Gate = gated(), true
		}
		f, err := p.Seal("test")
		if err != nil {
			return err
		}
		defer f.Close()
		proc, err := launch.Start(req, []*os.File{f}, [3]*os.File{})
		if i%4 == 2 {
			if !errors.Is(err, unix.EBADF) {
				return fmt.Errorf("a failure was told as %w", err)
			}
			return nil
		}
		if err != nil {
			return err
		}
		defer proc.Close()
		if i%8 >= 4 {
			_ = proc.Kill(unix.SIGKILL)
			_ = proc.Release()
		} else if err := proc.Release(); err != nil {
			return err
		}
		_, err = proc.Wait()
		return err
	}
	if err := once(0); err != nil { // so that the poller has its descriptors
		t.Fatal(err)
	}
	before := count()
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if err := once(i); err != nil {
				t.Error(i, err)
			}
		})
	}
	stop := make(chan struct{})
	reaped := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				reaped <- n + launch.Reap()
				return
			default:
				n += launch.Reap()
			}
		}
	}()
	wg.Wait()
	close(stop)
	if n := <-reaped; n != 0 {
		t.Errorf("%d children were nobody's", n)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestStdioOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving a pipe away needs root")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	file, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p := program.New()
	settle(p)
	p.Exit(0)
	f, err := p.Seal("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	proc, err := launch.Start(&launch.Request{Cgroup: -1, StdioOwner: &launch.Owner{UID: 12, GID: 34}}, []*os.File{f}, [3]*os.File{nil, w, file})
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if _, err := proc.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f        *os.File
		uid, gid uint32
	}{{w, 12, 34}, {file, 0, 0}} {
		var st unix.Stat_t
		if err := unix.Fstat(int(c.f.Fd()), &st); err != nil || st.Uid != c.uid || st.Gid != c.gid {
			t.Errorf("%s is %d:%d's, want %d:%d", c.f.Name(), st.Uid, st.Gid, c.uid, c.gid)
		}
	}
	if st, err := os.Stat("/dev/null"); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("/dev/null changed hands")
	}
}

func TestSealWithoutMemfd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a tmpfs of one's own needs root")
	}
	t.Setenv(sys.KernelEnv, "execmemfd")
	sys.Reprobe()
	defer func() { os.Unsetenv(sys.KernelEnv); sys.Reprobe() }()
	out, _, err := run(t, gated(), launch.Request{Gate: true})
	if out != "go" || err != nil {
		t.Fatalf("got %q, %v", out, err)
	}
	f, err := gated().Seal("test")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0); err == nil {
		w.Close()
		t.Error("a program on a tmpfs can be written")
	}
}
