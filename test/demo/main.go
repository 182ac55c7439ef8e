// Command demo runs the main job from nothing to nothing: in namespaces of its own it serves an image
// from a loopback registry, starts cri-server on a scratch root, pulls, runs a pod of two containers,
// stops everything, audits and prints where the time went. Any failure, and anything left behind, makes
// its status non-zero.
//
// It runs from the repository's root, after `make build`, with the path of the compiled app as argument.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo APP")
		os.Exit(2)
	}
	var err error
	switch os.Getenv(stageEnv) {
	case "":
		err = outside()
	case "init":
		err = initProcess()
	default:
		err = inside(os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo failed:", err)
		os.Exit(1)
	}
}

// stageEnv says which of the three processes of the demo this is.
const stageEnv = "CRI_DEMO_STAGE"

// initProcess is PID 1 of the namespace: it runs the demo as its child and reaps what is orphaned, as an
// init does.
func initProcess() error {
	if err := os.Setenv(stageEnv, "demo"); err != nil {
		return err
	}
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case pid == child.Pid && ws.ExitStatus() != 0:
			os.Exit(1)
		case pid == child.Pid:
			return nil
		}
	}
}

// outside runs the demo again in namespaces of its own.
func outside() error {
	if os.Geteuid() != 0 {
		return errors.New("namespaces, mounts and cgroups need root")
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"=init")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	return cmd.Run()
}

func inside(app string) (err error) {
	if err := prepare(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(cmp.Or(os.Getenv("TMPDIR"), "/var/tmp"), "cri-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		// A machine that is itself a container: overlayfs can be no upper layer of one.
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	}
	before, err := survey(dir)
	if err != nil {
		return err
	}
	d := &demo{dir: serverDir(dir)}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // an emulated machine is slow
	defer cancel()
	err = d.run(ctx, app)
	d.report(os.Stdout)
	if err != nil {
		d.showServerLog()
		_ = exec.Command("hack/down", d.dir).Run()
		return err
	}
	return nothingLeft(before, dir)
}

// prepare makes the namespaces usable: private mounts, a procfs of the new PID namespace, loopback up.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// serverDir is where the server keeps its files.
func serverDir(dir string) string { return filepath.Join(dir, "server") }

// survey lists what a leak would add to: mounts, links, cgroups and names in /run/netns. Other servers of the
// machine have cgroups too, which come and go meanwhile: ours ends in a hash of the root directory.
func survey(dir string) (map[string]bool, error) {
	found := map[string]bool{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		found["mount "+strings.Fields(line)[4]] = true
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		found["link "+l.Attrs().Name] = true
	}
	hash := sha256.Sum256([]byte(serverDir(dir) + "/lib"))
	group := fmt.Sprintf("cri-server-%x", hash[:4])
	for _, pattern := range []string{"/sys/fs/cgroup/" + group + "*", "/sys/fs/cgroup/*/" + group + "*", "/run/netns/cri-*", "/run/cri-server*", "/var/lib/cri-server*"} {
		names, _ := filepath.Glob(pattern)
		for _, n := range names {
			if st, err := os.Stat(n); err == nil && (st.IsDir() || !strings.HasPrefix(n, "/sys")) {
				found["path "+n] = true
			}
		}
	}
	return found, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// nothingLeft compares the machine with what it was before, and looks for processes: the PID namespace
// holds ours alone.
func nothingLeft(before map[string]bool, dir string) error {
	after, err := survey(dir)
	if err != nil {
		return err
	}
	var left []string
	for name := range after {
		if !before[name] {
			left = append(left, name)
		}
	}
	self := fmt.Sprintf("/proc/%d", os.Getpid())
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if cmd, err := os.ReadFile(p + "/comm"); err == nil && p != "/proc/1" && p != self {
			left = append(left, "process "+filepath.Base(p)+" "+strings.TrimSpace(string(cmd)))
		}
	}
	if dir := serverDir(dir); exists(dir) {
		left = append(left, "directory "+dir)
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	fmt.Println("nothing is left: no process, mount, link, cgroup, namespace or file")
	return nil
}
