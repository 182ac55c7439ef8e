package seccomp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// compat are the 32-bit programs that the machines' kernels run too. Each asks for its parent's pid, system call
// 64 in both (semget on amd64, write on arm64), and exits with the errno.
var compat = map[string]struct {
	arch    specs.Arch
	machine uint16
	flags   uint32
	code    []byte
}{
	"amd64": {specs.ArchX86, 3, 0, []byte{
		0xb8, 64, 0, 0, 0, 0xcd, 0x80, // mov $64, eax; int $0x80
		0xf7, 0xd8, 0x89, 0xc3, // neg eax; mov eax, ebx
		0xb8, 1, 0, 0, 0, 0xcd, 0x80, // mov $1, eax; int $0x80
	}},
	"arm64": {specs.ArchARM, 40, 0x05000000, []byte{
		64, 0x70, 0xa0, 0xe3, 0, 0, 0, 0xef, // mov r7, #64; svc 0
		0, 0, 0x60, 0xe2, // rsb r0, r0, #0
		1, 0x70, 0xa0, 0xe3, 0, 0, 0, 0xef, // mov r7, #1; svc 0
	}},
}

// elf32 wraps code as a static executable of one segment.
func elf32(machine uint16, flags uint32, code []byte) []byte {
	const base, head = 0x10000, 52 + 32
	size := uint32(head + len(code))
	var b bytes.Buffer
	b.WriteString("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range []any{
		uint16(2), machine, uint32(1), uint32(base + head), uint32(52), uint32(0), flags, uint16(52), uint16(32), uint16(1), uint16(40), uint16(0), uint16(0),
		uint32(1), uint32(0), uint32(base), uint32(base), size, size, uint32(5), uint32(0x1000), code,
	} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	return b.Bytes()
}

// compatChild loads a filter that refuses getppid through the ABIs listed, and becomes the program.
func compatChild(path string) {
	runtime.LockOSThread()
	no := uint(77)
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"getppid"}, Action: specs.ActErrno, ErrnoRet: &no}}}
	if os.Getenv(listedEnv) != "" {
		s.Architectures = []specs.Arch{compat[runtime.GOARCH].arch}
	}
	f, err := Compile(s, runtime.GOARCH)
	if err != nil {
		panic(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	prog := unix.SockFprog{Len: uint16(len(f.Insns)), Filter: &f.Insns[0]}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&prog))); errno != 0 {
		panic(errno)
	}
	panic(unix.Exec(path, []string{path}, nil))
}

// TestCompat has the kernel run a filter for a 32-bit program: by that ABI's numbers where the profile lists
// it, and to its death where not.
func TestCompat(t *testing.T) {
	c, ok := compat[runtime.GOARCH]
	if !ok {
		t.Skip("no 32-bit program for " + runtime.GOARCH)
	}
	path := filepath.Join(t.TempDir(), "compat")
	if err := os.WriteFile(path, elf32(c.machine, c.flags, c.code), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); errors.Is(err, unix.ENOEXEC) {
		t.Skip("this kernel or processor runs no 32-bit programs")
	}
	for _, listed := range []string{"", "1"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), compatEnv+"="+path, listedEnv+"="+listed)
		out, _ := cmd.CombinedOutput()
		ws, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if listed == "" && ws.Signal() != unix.SIGSYS || listed != "" && ws.ExitStatus() != 77 {
			t.Errorf("listed %q: exit status %d, %v: %s", listed, ws.ExitStatus(), ws.Signal(), out)
		}
	}
}
