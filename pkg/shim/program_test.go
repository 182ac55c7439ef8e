package shim

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// The test binary is also what containers run, told what to do by its argv[0], since a launched program has
// neither arguments nor environment. Root tests run it as a daemon, too.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "daemon":
		daemonMain(os.Args[2:])
		os.Exit(0)
	case strings.HasPrefix(os.Args[0], scriptMark):
		runScript(strings.TrimPrefix(os.Args[0], scriptMark))
	}
	testroot.Main(m)
}

// daemonMain is what the test binary does as a daemon; the root tests set it.
var daemonMain = func([]string) { os.Exit(2) }

const scriptMark = "script "

// script makes a launch request that runs steps, separated by ";", in the test binary.
func script(t testing.TB, steps string) (*launch.Request, []*os.File) {
	t.Helper()
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exe.Close() })
	req := &launch.Request{Name: scriptMark + steps, Program: 0, Cgroup: -1}
	for _, s := range strings.Split(steps, ";") {
		switch s {
		case "gate":
			req.Gate = true
		case "tty":
			req.Terminal = true
		}
	}
	return req, []*os.File{exe}
}

func report(kind, value uint64) {
	b := binary.NativeEndian.AppendUint64(nil, kind)
	b = binary.NativeEndian.AppendUint64(b, value)
	_, _ = unix.Write(launch.ReportFD, b)
}

// runScript does the steps. "gate", "tty", "fail" and "die" come before READY, which is reported ahead of the
// first other step.
func runScript(steps string) {
	ready := false
	for _, step := range strings.Split(steps, ";") {
		name, arg, _ := strings.Cut(step, ":")
		switch name {
		case "gate":
			report(launch.RecordGate, 0)
			var b [1]byte
			if n, _ := unix.Read(launch.GateFD, b[:]); n != 1 || b[0] != launch.GateToken {
				os.Exit(111)
			}
			continue
		case "fail":
			report(7, uint64(unix.EPERM))
			os.Exit(1)
		case "die":
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		case "tty":
			openTerminal()
			continue
		case "cgroup": // n task files stand first among the descriptors
			n, _ := strconv.Atoi(arg)
			for i := range n {
				moveThread(launch.FirstFD + i)
			}
			continue
		}
		if !ready {
			ready = true
			report(launch.RecordReady, 0)
			unix.Close(launch.ReportFD)
		}
		runStep(name, arg)
	}
	os.Exit(0)
}

func runStep(name, arg string) {
	n, _ := strconv.Atoi(arg)
	switch name {
	case "out":
		fmt.Fprintln(os.Stdout, arg)
	case "printf":
		fmt.Fprint(os.Stdout, arg)
	case "err":
		fmt.Fprintln(os.Stderr, arg)
	case "exit":
		os.Exit(n)
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.Signal(n))
		select {}
	case "wait":
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGTERM)
		<-c
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "count": // numbered lines as fast as they go
		w := bufio.NewWriterSize(os.Stdout, 1<<16)
		for i := range n {
			fmt.Fprintf(w, "line %d\n", i)
		}
		w.Flush()
	case "tick": // n lines, ten every millisecond
		for i := 0; i < n; i += 10 {
			var b bytes.Buffer
			for j := i; j < min(i+10, n); j++ {
				fmt.Fprintf(&b, "line %d\n", j)
			}
			os.Stdout.Write(b.Bytes())
			time.Sleep(time.Millisecond)
		}
	case "background": // a process that holds stdio for n seconds; its parent goes on
		respawn("wait-seconds:"+arg, os.Stdout)
	case "child": // a process that does one step; its parent waits for it and goes on
		if pid := respawn(arg, os.Stdout); pid > 0 {
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	case "flood": // n MiB in lines of 100 bytes
		line := append(bytes.Repeat([]byte("x"), 99), '\n')
		buf := bytes.Repeat(line, 655)
		for left := n << 20; left > 0; left -= len(buf) {
			os.Stdout.Write(buf)
		}
	case "orphans": // n processes whose parent is gone and that end at once
		for range n {
			respawn("parent", nil)
		}
	case "parent":
		respawn("exit:0", nil)
	case "wait-seconds":
		time.Sleep(time.Duration(n) * time.Second)
	case "eat": // n MiB of memory
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
	case "size":
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			os.Exit(9)
		}
		fmt.Printf("size %dx%d\n", ws.Col, ws.Row)
	case "look":
		look(arg)
	}
}

// moveThread moves the process, all its threads, into the cgroup of an open v1 tasks file. The programs
// of containers have one thread and write "0".
func moveThread(fd int) {
	threads, _ := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		_, _ = unix.Write(fd, []byte(t.Name()))
	}
}

// look prints what a program sees of where it is.
func look(arg string) {
	switch arg {
	case "mounts":
		b, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(b)) {
			fmt.Println(strings.Fields(line)[4])
		}
	case "shm":
		var st unix.Statfs_t
		_ = unix.Statfs("/dev/shm", &st)
		fmt.Println(int64(st.Blocks) * st.Bsize)
	case "fds":
		dir, _ := os.ReadDir("/proc/self/fd")
		for _, d := range dir {
			to, _ := os.Readlink("/proc/self/fd/" + d.Name())
			fmt.Println(d.Name(), to)
		}
	}
}

func respawn(steps string, stdout *os.File) (pid int) {
	files := []uintptr{0, 1, 2}
	if stdout == nil {
		null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
		files = []uintptr{null.Fd(), null.Fd(), null.Fd()}
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{scriptMark + steps}, &syscall.ProcAttr{Files: files})
	if err != nil {
		fmt.Println(err)
		os.Exit(99)
	}
	return pid
}

// openTerminal opens a pty, makes it stdio and hands its master over, as a program with Terminal does.
func openTerminal() {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		// The base has no /dev/ptmx: mount a devpts of our own, as a container has.
		_ = unix.Unshare(unix.CLONE_NEWNS)
		if err := unix.Mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666"); err != nil {
			os.Exit(98)
		}
		if master, err = unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
			os.Exit(97)
		}
	}
	_ = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, uintptr(unix.O_RDWR|unix.O_NOCTTY))
	if errno != 0 {
		os.Exit(96)
	}
	for fd := range 3 {
		_ = unix.Dup3(int(slave), fd, 0)
	}
	const console = launch.FirstFD // no files of the request's
	if err := unix.Sendmsg(console, []byte{0}, unix.UnixRights(master), nil, 0); err != nil {
		os.Exit(95)
	}
	unix.Close(master)
	unix.Close(int(slave))
}
