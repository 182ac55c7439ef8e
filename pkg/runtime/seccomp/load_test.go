package seccomp

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/seccomp/profile"
)

// childEnv makes the test executable the process that a filter is loaded into.
const (
	childEnv  = "SECCOMP_TEST_CHILD"
	compatEnv = "SECCOMP_TEST_COMPAT" // the child of TestCompat: what to exec
	listedEnv = "SECCOMP_TEST_LISTED"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(compatEnv); path != "" {
		compatChild(path)
	}
	if os.Getenv(childEnv) != "" {
		child()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child loads the default profile into its thread and says what some calls answer then. No test would
// survive it, and nobody needs to be root for it.
func child() {
	runtime.LockOSThread()
	p, err := profile.Default(nil)
	if err != nil {
		panic(err)
	}
	f, err := Compile(p, runtime.GOARCH)
	if err != nil {
		panic(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	prog := unix.SockFprog{Len: uint16(len(f.Insns)), Filter: &f.Insns[0]}
	start := time.Now()
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&prog)))
	took := time.Since(start)
	if errno != 0 {
		panic(errno)
	}
	var out strings.Builder
	for _, c := range []struct {
		name       string
		nr, a0, a1 uintptr
	}{
		{"getppid", unix.SYS_GETPPID, 0, 0},
		{"unshare", unix.SYS_UNSHARE, unix.CLONE_NEWUTS, 0},
		{"keyctl", unix.SYS_KEYCTL, 0, 0},
		{"clone3", unix.SYS_CLONE3, 0, 0},
		{"socket(VSOCK)", unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM},
		{"new", 1000, 0, 0},
	} {
		_, _, errno := unix.RawSyscall(c.nr, c.a0, c.a1, 0)
		fmt.Fprintf(&out, "%s: %d\n", c.name, int(errno))
	}
	fmt.Print(out.String())
	fmt.Fprintf(os.Stderr, "loading %d instructions took %v\n", len(f.Insns), took)
}

// TestLoad has the kernel verify, take and run the default profile.
func TestLoad(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, errs.String())
	}
	t.Log(errs.String())
	want := fmt.Sprintf("getppid: 0\nunshare: %d\nkeyctl: %d\nclone3: %d\nsocket(VSOCK): %d\nnew: %d\n",
		unix.EPERM, unix.EPERM, unix.ENOSYS, unix.EPERM, unix.ENOSYS)
	if string(out) != want {
		t.Errorf("under the default profile the calls answered\n%swant\n%s", out, want)
	}
}
