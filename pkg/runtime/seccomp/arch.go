package seccomp

import (
	"fmt"
	"slices"
	"sort"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// call is a row of the table: a name and its number in each column.
type call struct {
	name string
	nr   [4]int32
}

// abi is a way into the kernel with its own numbers. The first four are the columns of the table.
type abi int

const (
	abiAMD64 abi = iota
	abi386
	abiARM64
	abiARM
	abiX32 // numbers of amd64 with a bit set, under the same audit architecture
)

const (
	x32Bit = 0x40000000
	// armPrivate is where the private calls of 32-bit ARM begin (__ARM_NR_BASE).
	armPrivate = 0x0f0000
)

// machine is an architecture of the project with the ABIs its kernels offer, the native one first.
type machine struct{ abis []abi }

func machineOf(goarch string) (m machine, ok bool) {
	switch goarch {
	case "amd64":
		return machine{[]abi{abiAMD64, abi386, abiX32}}, true
	case "arm64":
		return machine{[]abi{abiARM64, abiARM}}, true
	}
	return machine{}, false
}

var audit = [...]uint32{
	abiAMD64: unix.AUDIT_ARCH_X86_64, abi386: unix.AUDIT_ARCH_I386, abiARM64: unix.AUDIT_ARCH_AARCH64,
	abiARM: unix.AUDIT_ARCH_ARM, abiX32: unix.AUDIT_ARCH_X86_64,
}

// archABI is the ABI of a name in a profile, or -1 for an architecture that the machines of this project
// cannot be asked through.
func archABI(a specs.Arch) (abi, bool) {
	switch a {
	case specs.ArchX86_64:
		return abiAMD64, true
	case specs.ArchX86:
		return abi386, true
	case specs.ArchX32:
		return abiX32, true
	case specs.ArchAARCH64:
		return abiARM64, true
	case specs.ArchARM:
		return abiARM, true
	case specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64,
		specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390,
		specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64,
		specs.ArchM68K, specs.ArchSH, specs.ArchSHEB:
		return -1, true
	}
	return -1, false
}

// Archs are the names of architectures that a profile may list, for "features".
func Archs() []specs.Arch {
	return []specs.Arch{specs.ArchAARCH64, specs.ArchARM, specs.ArchX32, specs.ArchX86, specs.ArchX86_64}
}

// listed returns the machine's native ABI and those of its others that the profile lists.
func (m machine) listed(archs []specs.Arch) ([]abi, error) {
	want := map[abi]bool{m.abis[0]: true}
	for _, a := range archs {
		b, known := archABI(a)
		if !known {
			return nil, fmt.Errorf("architecture %q is not known", a)
		}
		want[b] = true
	}
	var out []abi
	for _, b := range m.abis {
		if want[b] {
			out = append(out, b)
		}
	}
	return out, nil
}

// lookup returns the row of a system call's name, nil for a name that no table has.
func lookup(name string) *call {
	i := sort.Search(len(calls), func(i int) bool { return calls[i].name >= name })
	if i < len(calls) && calls[i].name == name {
		return &calls[i]
	}
	return nil
}

// number returns the call's number through an ABI, -1 where it has none.
func (c *call) number(b abi) int32 {
	if b != abiX32 {
		return c.nr[b]
	}
	if i := sort.SearchStrings(x32Names, c.name); i < len(x32Names) && x32Names[i] == c.name {
		return x32Bit | x32Numbers[i]
	}
	n := c.nr[abiAMD64]
	switch n {
	case -1, 134, 156, 174, 177, 178, 180, 205, 211, 214, 215, 236: // "64" in the kernel's syscall_64.tbl
		return -1
	}
	return x32Bit | n
}

// The calls that x32 has under numbers of its own (512 up in syscall_64.tbl), sorted by name.
var x32Names = []string{
	"execve", "execveat", "get_robust_list", "getsockopt", "io_setup", "io_submit", "ioctl", "kexec_load",
	"move_pages", "mq_notify", "preadv", "preadv2", "process_vm_readv", "process_vm_writev", "ptrace",
	"pwritev", "pwritev2", "readv", "recvfrom", "recvmmsg", "recvmsg", "rt_sigaction", "rt_sigpending",
	"rt_sigqueueinfo", "rt_sigreturn", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sendmmsg", "sendmsg",
	"set_robust_list", "setsockopt", "sigaltstack", "timer_create", "vmsplice", "waitid", "writev",
}

var x32Numbers = []int32{
	520, 545, 531, 542, 543, 544, 514, 528,
	533, 527, 534, 546, 539, 540, 521,
	535, 547, 515, 517, 537, 519, 512, 522,
	524, 513, 523, 536, 538, 518,
	530, 541, 525, 526, 532, 529, 516,
}

// mux returns, for a call that 386 programs may also make through a multiplexer, the multiplexer and the
// value of its first argument.
func (c *call) mux() (via *call, arg uint64) {
	if n := c.nr[abi386]; n >= 0 && n < 359 || n > 402 || n > 373 && n < 393 {
		return nil, 0 // 386 got most of the multiplexed calls directly too, in two runs of numbers
	}
	if i := slices.Index(muxSocket, c.name); i >= 0 {
		return lookup("socketcall"), uint64(i) + 1
	}
	if i := slices.Index(muxIPC, c.name); i >= 0 {
		return lookup("ipc"), muxIPCNumbers[i]
	}
	return nil, 0
}

var muxSocket = []string{
	"socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
	"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg",
}

var (
	muxIPC        = []string{"semop", "semget", "semctl", "semtimedop", "msgsnd", "msgrcv", "msgget", "msgctl", "shmat", "shmdt", "shmget", "shmctl"}
	muxIPCNumbers = []uint64{1, 2, 3, 4, 11, 12, 13, 14, 21, 22, 23, 24}
)
