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
	nr   [5]int32
}

// abi is a way into the kernel with its own numbers: a column of the table.
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

// find is the row of a system call's name, -1 for a name that no table has.
func find(name string) int {
	i := sort.Search(len(calls), func(i int) bool { return calls[i].name >= name })
	if i < len(calls) && calls[i].name == name {
		return i
	}
	return -1
}

// lookup returns the row of a system call's name, nil for a name that no table has.
func lookup(name string) *call {
	if i := find(name); i >= 0 {
		return &calls[i]
	}
	return nil
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
