package shim

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/shim/internal/base"
	"github.com/cri-server/cri-server/pkg/shim/internal/server"
)

// The descriptors that Spawn hands over.
const (
	listenFD = 3
	dirFD    = 4
	firstFD  = 5 // and from here on there must be none
)

// adjust is how little the kernel likes to kill a shim for want of memory: less than anything of a pod.
const adjust = "-998"

// Main is the shim process, `cri-runtime shim`; args are what follows the word "shim". Only Spawn makes
// them. It returns the process's exit code once the pod's last thing is gone and it was told to shut
// down.
func Main(args []string) int {
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, "shim: "+err.Error())
		return 1
	}
	return 0
}

func run(args []string) error {
	pod, shm, err := parse(args)
	if err != nil {
		return err
	}
	if err := fault.FromEnv(); err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	if shm > 0 {
		if err := base.MountShm(shm); err != nil {
			return fmt.Errorf("mount the pod's /dev/shm: %w", err)
		}
	}
	if err := unix.SetNonblock(listenFD, true); err != nil {
		return fmt.Errorf("descriptor %d is no listening socket: %w", listenFD, err)
	}
	unix.CloseOnExec(listenFD)
	unix.CloseOnExec(dirFD)
	return server.Run(server.Config{Pod: pod, Listener: os.NewFile(listenFD, server.Socket), Dir: os.NewFile(dirFD, "state")})
}

// parse reads the two options by hand: the flag package is more than a process that only Spawn starts needs.
func parse(args []string) (pod string, shm int64, err error) {
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		switch name {
		case "--pod":
			pod = value
		case "--shm":
			if shm, err = strconv.ParseInt(value, 10, 64); err != nil || shm < 0 {
				return "", 0, fmt.Errorf("%q: want a size in bytes", a)
			}
		default:
			return "", 0, fmt.Errorf("unknown argument %q. The shim is started by cri-server, not by hand", a)
		}
	}
	if pod == "" {
		return "", 0, fmt.Errorf("no --pod=ID. The shim is started by cri-server, not by hand")
	}
	return pod, shm, nil
}

// harden makes the process what a shim must be before it serves: closed to others, parent of orphans, and
// small.
func harden() error {
	os.Clearenv() // it was for the Go runtime, which has read it; programs must not get it
	if err := closeInherited(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_CHILD_SUBREAPER: %w", err)
	}
	unix.Umask(0o022) // what programs inherit
	// Without CAP_SYS_RESOURCE a score can be lowered only to where it once was set with it.
	if os.WriteFile("/proc/self/oom_score_adj", []byte(adjust), 0) != nil {
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	}
	return nil
}

// closeInherited closes what the spawner's other descriptors left open across exec. The Go runtime's own,
// its poller and eventfd, exist by now and are told by their kind.
func closeInherited() error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil || n < firstFD || n == int(dir.Fd()) {
			continue
		}
		if to, err := os.Readlink("/proc/self/fd/" + name); err == nil && !strings.HasPrefix(to, "anon_inode:") {
			unix.Close(n)
		}
	}
	if err := unix.CloseRange(firstFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	return nil
}
