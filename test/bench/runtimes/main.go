// Command runtimes measures OCI runtimes against each other, as programs that are started for every command.
//
//	runtimes [-n 200] [-clients 8] [-seccomp default|none|FILE] [-only run,exec,…] cri-runtime=bin/cri-runtime crun runc
//
// A runtime is a program on PATH, or NAME=FILE; one that is not there is left out and said so. All get the
// same bundle, which the first runtime's "spec" begins, busybox fills and the default seccomp profile, which engines give
// to every container, confines, and take turns in one run, so that a machine
// that is slow for a while is slow for all. The first is compared with the others, by medians, and the lives
// of containers and execs that a shim launches, without a process start of ours, by least times too.
//
// Everything happens in a mount namespace of its own, without the unified hierarchy of a hybrid cgroup tree,
// which some runtimes refuse, and below one cgroup, which is removed at the end.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageEnv is set in the process that has the mount namespace.
const stageEnv = "CRI_BENCH_STAGE"

type options struct {
	n, clients int
	seccomp    string
	only       string
	runtimes   []contender
}

// contender is one runtime: a program, or a pod that launches without one.
type contender struct {
	name, file string
	pod        *pod
}

func main() {
	code := 0
	err := run(&code)
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtimes:", err)
		code = 1
	}
	os.Exit(code)
}

func run(code *int) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("containers with namespaces and cgroups need root")
	}
	if os.Getenv(stageEnv) == "" {
		*code, err = again()
		return err
	}
	if err := settle(); err != nil {
		return err
	}
	return measure(o)
}

func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("runtimes", flag.ExitOnError)
	fs.IntVar(&o.n, "n", 200, "turns of each runtime")
	fs.IntVar(&o.clients, "clients", 0, "also as many at the same time")
	fs.StringVar(&o.seccomp, "seccomp", "default", "the filter that containers have: default, which is the one that engines give, none, or a `file` with the linux.seccomp section of a configuration")
	fs.StringVar(&o.only, "only", "", "`names` of rows to measure, with commas (default: all)")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	words := fs.Args()
	if len(words) == 0 {
		words = []string{"cri-runtime=bin/cri-runtime", "crun", "runc"}
	}
	for i, w := range words {
		name, file, given := strings.Cut(w, "=")
		if !given {
			file = name
		}
		found, err := exec.LookPath(file)
		if err == nil {
			found, err = filepath.Abs(found)
		}
		switch {
		case err != nil && i == 0:
			return nil, err
		case err != nil:
			if os.Getenv(stageEnv) == "" {
				fmt.Printf("%s is left out: %v\n", name, err)
			}
			continue
		}
		o.runtimes = append(o.runtimes, contender{name: name, file: found})
	}
	return o, nil
}

// again runs this program in a mount namespace of its own.
func again() (int, error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageEnv+"=inside")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// settle makes the namespace private, hides the unified hierarchy where v1's stand beside it, and takes
// orphans in: the processes of containers whose "create" has ended.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	const unified = "/sys/fs/cgroup/unified"
	switch err := unix.Unmount(unified, 0); err {
	case nil: // some make directories there whatever it is: not in the host's
		if err := unix.Mount("tmpfs", unified, "tmpfs", 0, "size=1m,mode=755"); err != nil {
			return os.NewSyscallError("mount", err)
		}
	case unix.EINVAL, unix.ENOENT:
	default:
		return os.NewSyscallError("umount", err)
	}
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}
