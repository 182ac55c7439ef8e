// Package testroot gives tests that need root a corner of the machine of their own.
//
// A package's TestMain calls Main, which re-executes the test binary in private mount, network, PID, IPC
// and UTS namespaces and in a child cgroup of every hierarchy, so that nothing a test makes can outlive it:
// when the binary ends, its PID namespace takes every process along, and what it mounted goes with the
// mount namespace. Process 1 of that namespace is an init that reaps what is orphaned, as on a host. Main
// removes the cgroups last and fails the run when one cannot be removed.
package testroot

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stageEnv  = "CRI_TESTROOT_STAGE"
	cgroupEnv = "CRI_TESTROOT_CGROUP"
	allEnv    = "CRI_TEST_ALL"
)

// The stages, after the outermost process, which has none.
const (
	entering = "entering" // in the new namespaces, nothing mounted yet
	settled  = "settled"  // the tests run
)

// Main runs the tests of a package in namespaces and cgroups of their own and exits with their status.
// TestMain calls it with what it would otherwise pass to os.Exit. Without root it runs the tests as they
// are; NeedRoot then skips those that need it.
func Main(m *testing.M) {
	switch {
	case os.Getenv(stageEnv) == entering:
		err := inside()
		code := 1
		if err == nil {
			code, err = runAndReap()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "testroot:", err)
		}
		os.Exit(code)
	case os.Getenv(stageEnv) == settled: // the tests, or the test binary that a test runs again
		os.Exit(m.Run())
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	os.Exit(outside())
}

// NeedRoot skips the test when it does not run as root inside Main's namespaces.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(stageEnv) != settled {
		Skip(t, "needs root")
	}
}

// Skip skips the test with its reason, or fails it when CRI_TEST_ALL=1 says that nothing may be skipped.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv(allEnv) == "1" {
		t.Fatalf("would be skipped, and %s=1 forbids it: %s", allEnv, reason)
	}
	t.Skip(reason)
}

// NeedProgram skips the test when the program is not on PATH, and returns its path otherwise.
func NeedProgram(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		Skip(t, name+" is not on PATH")
	}
	return p
}

// Cgroup returns the path of the test run's own cgroup, the same below every hierarchy's mount point
// ("/testroot-123"). Tests make their cgroups below it and need not remove them.
func Cgroup(t testing.TB) string {
	t.Helper()
	NeedRoot(t)
	return os.Getenv(cgroupEnv)
}

// Busybox returns the path of a static busybox, or skips the test.
func Busybox(t testing.TB) string {
	t.Helper()
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	Skip(t, "no busybox (Debian: busybox-static)")
	return ""
}

// Rootfs makes a small root filesystem of busybox below dir and returns its path.
func Rootfs(t testing.TB, dir string) string {
	t.Helper()
	bb := Busybox(t)
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "root", "var", "usr"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(bb)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bb, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet == "busybox" {
			continue
		}
		if err := os.Link(filepath.Join(root, "bin/busybox"), filepath.Join(root, "bin", applet)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":  "root:x:0:\nnobody:x:65534:\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func outside() int {
	path := fmt.Sprintf("/testroot-%s-%d", filepath.Base(strings.TrimSuffix(os.Args[0], ".test")), os.Getpid())
	dirs, err := makeCgroups(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testroot:", err)
		removeCgroups(dirs)
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"="+entering, cgroupEnv+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	err = cmd.Run()
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if code = exit.ExitCode(); code < 0 {
			fmt.Fprintln(os.Stderr, "testroot:", err)
			code = 1
		}
	case err != nil:
		fmt.Fprintln(os.Stderr, "testroot:", err)
		code = 1
	}
	if left := removeCgroups(dirs); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "testroot: the tests left cgroups that cannot be removed:", left)
		return 1
	}
	return code
}

// runAndReap is process 1: it runs the tests as its child, reaps what is orphaned, and returns their exit code.
func runAndReap() (int, error) {
	if err := os.Setenv(stageEnv, settled); err != nil {
		return 1, err
	}
	tests, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 1, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR || err == nil && pid != tests.Pid:
		case err != nil:
			return 1, fmt.Errorf("wait for the tests: %w", err)
		case ws.Signaled():
			return 1, fmt.Errorf("the tests died: %v", ws.Signal())
		default:
			return ws.ExitStatus(), nil
		}
	}
}

// inside prepares the namespaces that Main made.
func inside() error {
	if err := enterCgroups(os.Getenv(cgroupEnv)); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	// A fresh procfs, for the new PID namespace; fully visible, since user namespaces made by tests need one to mount their own.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := scratch(); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set lo up: %w: %s", err, out)
	}
	return nil
}

// scratch points TMPDIR at a tmpfs of the test run's own where temporary files would lie on overlayfs (a
// machine that is itself a container): that can be no upper layer of a container's root filesystem.
func scratch() error {
	overlay := false
	dirs := []string{"/tmp", "/var/tmp"} // some tests take the one, some the other
	if d := os.Getenv("TMPDIR"); d != "" {
		dirs = []string{d}
	}
	for _, d := range dirs {
		var st unix.Statfs_t
		if err := unix.Statfs(d, &st); err != nil {
			return fmt.Errorf("directory for temporary files %s: %w", d, err)
		}
		overlay = overlay || st.Type == unix.OVERLAYFS_SUPER_MAGIC
	}
	if !overlay {
		return nil
	}
	const dir = "/run/tmp"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=1777"); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return os.Setenv("TMPDIR", dir)
}

// hierarchies returns the mount point of every cgroup hierarchy that has one.
func hierarchies() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dirs []string
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup") {
			dirs = append(dirs, fields[4])
		}
	}
	return dirs, nil
}

func makeCgroups(path string) (made []string, err error) {
	mps, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, mp := range mps {
		dir := filepath.Join(mp, path)
		if err := os.Mkdir(dir, 0o755); err != nil {
			if errors.Is(err, unix.EROFS) {
				continue
			}
			return made, err
		}
		made = append(made, dir)
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} { // v1: empty until written
			if b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name)); err == nil && strings.TrimSpace(string(b)) != "" {
				if _, v2 := os.Stat(filepath.Join(dir, "cgroup.controllers")); v2 != nil {
					if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
						return made, err
					}
				}
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.clone_children")); err == nil && strings.Contains(dir, "cpuset") {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0o644); err != nil {
				return made, err
			}
		}
	}
	return made, nil
}

// enterCgroups moves this process below path: into path itself on v1, and into path/runner on v2, where a
// group with processes of its own may not hand controllers down.
func enterCgroups(path string) error {
	mps, err := hierarchies()
	if err != nil {
		return err
	}
	for _, mp := range mps {
		dir := filepath.Join(mp, path)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			dir = filepath.Join(dir, "runner")
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("enter %s: %w", dir, err)
		}
	}
	return nil
}

// removeCgroups removes the trees bottom up and returns what stays. Processes of the ended PID namespace
// may still be exiting, so it waits up to ten seconds for them.
func removeCgroups(dirs []string) (left []string) {
	deadline := time.Now().Add(10 * time.Second)
	for _, dir := range dirs {
		for !removeTree(dir) {
			if time.Now().After(deadline) {
				left = append(left, dir)
				break
			}
			time.Sleep(20 * time.Millisecond) // no event tells that a cgroup of a v1 hierarchy is empty
		}
	}
	return left
}

func removeTree(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	for _, e := range entries {
		if e.IsDir() {
			removeTree(filepath.Join(dir, e.Name()))
		}
	}
	return unix.Rmdir(dir) == nil
}
