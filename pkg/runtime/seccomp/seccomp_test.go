package seccomp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/seccomp/profile"
)

// data is struct seccomp_data without the instruction pointer.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

// packet lays data out for the VM, which loads big-endian words: each word is turned, their order kept.
func (d data) packet() []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[0:], d.nr)
	binary.BigEndian.PutUint32(b[4:], d.arch)
	for i, a := range d.args {
		binary.BigEndian.PutUint32(b[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[20+8*i:], uint32(a>>32))
	}
	return b
}

type vm struct{ vm *bpf.VM }

func newVM(t testing.TB, f Filter) vm {
	t.Helper()
	var prog []bpf.Instruction
	for _, in := range f.Insns {
		prog = append(prog, bpf.RawInstruction{Op: in.Code, Jt: in.Jt, Jf: in.Jf, K: in.K}.Disassemble())
	}
	m, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatalf("the program is not valid: %v", err)
	}
	return vm{m}
}

func (m vm) run(t testing.TB, d data) uint32 {
	t.Helper()
	got, err := m.vm.Run(d.packet())
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

// evaluate says what the profile means for one call, straight from its text: slow and obvious.
func evaluate(p *specs.LinuxSeccomp, goarch string, d data) uint32 {
	deny, _ := verdict(p.DefaultAction, p.DefaultErrnoRet)
	listed := func(a specs.Arch) bool { return slices.Contains(p.Architectures, a) }
	var b abi
	switch {
	case d.arch == unix.AUDIT_ARCH_X86_64 && goarch == "amd64" && d.nr < x32Bit:
		b = abiAMD64
	case d.arch == unix.AUDIT_ARCH_X86_64 && goarch == "amd64" && listed(specs.ArchX32):
		b = abiX32
	case d.arch == unix.AUDIT_ARCH_X86_64 && goarch == "amd64" && d.nr == 0xffffffff:
		return deny
	case d.arch == unix.AUDIT_ARCH_I386 && goarch == "amd64" && listed(specs.ArchX86):
		b = abi386
	case d.arch == unix.AUDIT_ARCH_AARCH64 && goarch == "arm64":
		b = abiARM64
	case d.arch == unix.AUDIT_ARCH_ARM && goarch == "arm64" && listed(specs.ArchARM):
		b = abiARM
	default:
		return unix.SECCOMP_RET_KILL_PROCESS
	}
	last := int64(-1)
	var first, conditional *uint32
	for _, s := range p.Syscalls {
		ret, _ := verdict(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			c := lookup(name)
			if c == nil {
				continue
			}
			nr := c.nr[b]
			if nr >= 0 && (b != abiARM || nr < armPrivate) {
				last = max(last, int64(nr))
			}
			if ret == deny {
				continue
			}
			match := nr >= 0 && uint32(nr) == d.nr
			if match && len(s.Args) == 0 && first == nil {
				first = &ret
			}
			if match && len(s.Args) > 0 && conditional == nil && holds(s.Args, d.args) {
				conditional = &ret
			}
			if via, arg := c.mux(); b == abi386 && via != nil && len(s.Args) == 0 && uint32(via.nr[abi386]) == d.nr && d.args[0] == arg && conditional == nil {
				conditional = &ret
			}
		}
	}
	beyond := last >= 0 && last != int64(base(b)) && int64(d.nr) > last && (b != abiARM || d.nr < armPrivate)
	switch {
	case first != nil:
		return *first
	case conditional != nil:
		return *conditional
	case beyond && !slices.Contains([]specs.LinuxSeccompAction{specs.ActAllow, specs.ActLog, specs.ActTrace}, p.DefaultAction):
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return deny
}

func base(b abi) uint32 {
	if b == abiX32 {
		return x32Bit
	}
	return 0
}

func holds(conds []specs.LinuxSeccompArg, args [6]uint64) bool {
	count := map[uint]int{}
	all, any := true, false
	for _, c := range conds {
		count[c.Index]++
		ok := compare(c, args[c.Index])
		all, any = all && ok, any || ok
	}
	for _, n := range count {
		if n > 1 {
			return any
		}
	}
	return all
}

func compare(c specs.LinuxSeccompArg, a uint64) bool {
	switch c.Op {
	case specs.OpEqualTo:
		return a == c.Value
	case specs.OpNotEqual:
		return a != c.Value
	case specs.OpLessThan:
		return a < c.Value
	case specs.OpLessEqual:
		return a <= c.Value
	case specs.OpGreaterEqual:
		return a >= c.Value
	case specs.OpGreaterThan:
		return a > c.Value
	}
	return a&c.Value == c.ValueTwo&c.Value
}

var words = []uint64{0, 1, 2, 7, 8, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 32, 1<<32 | 1, 2 << 32, 2<<32 | 8, 1 << 63, ^uint64(0), ^uint64(0) - 1, 0x7e020000}

func word(r *rand.Rand) uint64 {
	if r.IntN(4) == 0 {
		return r.Uint64()
	}
	return words[r.IntN(len(words))]
}

// random makes a profile, and calls that are likely to meet its rules.
func random(r *rand.Rand) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: Actions()[r.IntN(len(Actions()))], ListenerPath: "/agent"}
	if p.DefaultAction == specs.ActNotify {
		p.DefaultAction = specs.ActErrno
	}
	for _, a := range Archs() {
		if r.IntN(2) == 0 {
			p.Architectures = append(p.Architectures, a)
		}
	}
	for range r.IntN(40) {
		s := specs.LinuxSyscall{Action: Actions()[r.IntN(len(Actions()))]}
		if s.Action == specs.ActErrno && r.IntN(2) == 0 {
			e := uint(r.IntN(4096))
			s.ErrnoRet = &e
		}
		for range 1 + r.IntN(12) {
			if name := calls[r.IntN(len(calls))].name; name != "write" {
				s.Names = append(s.Names, name)
			}
		}
		s.Names = append(s.Names, "no_such_call", []string{"socket", "connect", "socketcall", "ipc", "shmat", "clone"}[r.IntN(6)])
		for range max(0, r.IntN(6)-2) {
			s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Op: Operators()[r.IntN(7)], Value: word(r), ValueTwo: word(r)})
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

// check compares the compiled filter with the evaluator, at every number of every ABI with random arguments.
func check(t *testing.T, p *specs.LinuxSeccomp, goarch string, r *rand.Rand) Filter {
	t.Helper()
	f, err := Compile(p, goarch)
	if err != nil {
		t.Fatal(err)
	}
	m := newVM(t, f)
	numbers := []uint32{0xffffffff, 0xfffffffe, x32Bit - 1, 1 << 31, 1000, armPrivate - 1}
	for n := range uint32(600) {
		numbers = append(numbers, n, x32Bit+n)
	}
	for n := range uint32(9) {
		numbers = append(numbers, armPrivate+n)
	}
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, 0} {
		for _, nr := range numbers {
			d := data{nr: nr, arch: arch}
			for i := range d.args {
				d.args[i] = word(r)
			}
			if r.IntN(2) == 0 {
				d.args[0] = uint64(r.IntN(26))
			}
			if got, want := m.run(t, d), evaluate(p, goarch, d); got != want {
				t.Fatalf("%s, %+v: the filter returns %#x, the profile means %#x", goarch, d, got, want)
			}
		}
	}
	return f
}

func TestDifferential(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			p := random(r)
			check(t, p, "amd64", r)
			check(t, p, "arm64", r)
		})
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 2))
		p := random(r)
		check(t, p, "amd64", r)
		check(t, p, "arm64", r)
	})
}

func TestDefaultProfile(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF"}} {
		p, err := profile.Default(caps)
		if err != nil {
			t.Fatal(err)
		}
		f := check(t, p, "amd64", rand.New(rand.NewPCG(1, 1)))
		t.Logf("%d capabilities: %d instructions", len(caps), len(f.Insns))
		for _, s := range p.Syscalls {
			for _, name := range s.Names {
				if lookup(name) == nil && !strings.HasPrefix(name, "s390_") && !strings.HasPrefix(name, "riscv_") && name != "swapcontext" {
					t.Errorf("the default profile names %s, which no table has", name)
				}
			}
		}
	}
}

// TestDepth holds the length of the longest path: the kernel walks it for every call.
func TestDepth(t *testing.T) {
	p, err := profile.Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(p, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	deepest := 0
	for nr := range uint32(500) {
		steps, at := 0, 0
		for f.Insns[at].Code != opRet {
			in := f.Insns[at]
			a := nr
			if f.Insns[0].K == offArch && at < 2 {
				a = unix.AUDIT_ARCH_X86_64
			}
			steps++
			at++
			switch in.Code {
			case opJEQ, opJGE, opJGT:
				taken := in.Code == opJEQ && a == in.K || in.Code == opJGE && a >= in.K || in.Code == opJGT && a > in.K
				if taken {
					at += int(in.Jt)
				} else {
					at += int(in.Jf)
				}
			case opJA:
				at += int(in.K)
			}
		}
		deepest = max(deepest, steps)
	}
	if deepest > 24 {
		t.Errorf("the longest path has %d instructions", deepest)
	}
}

func TestErrors(t *testing.T) {
	errno := func(n uint) *uint { return &n }
	read := []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}
	for name, c := range map[string]struct {
		p    specs.LinuxSeccomp
		want string
	}{
		"action":      {specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_NO"}, `default action: action "SCMP_ACT_NO" is not known`},
		"no default":  {specs.LinuxSeccomp{Syscalls: read}, `action "" is not known`},
		"notify":      {specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, "cannot be used as default action"},
		"arch":        {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{"SCMP_ARCH_Z80"}}, `architecture "SCMP_ARCH_Z80" is not known`},
		"flag":        {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{"F"}}, `flag "F" is not known`},
		"errno":       {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: errno(4096)}, "errnoRet 4096 of SCMP_ACT_ERRNO is out of range"},
		"errno allow": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: errno(1)}, "takes no errnoRet"},
		"names":       {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Action: specs.ActAllow}}}, "without names"},
		"empty name":  {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{""}, Action: specs.ActAllow}}}, "empty string"},
		"write":       {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, ListenerPath: "/a", Syscalls: []specs.LinuxSyscall{{Names: []string{"write"}, Action: specs.ActNotify}}}, "cannot be used for the write"},
		"listener":    {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}, "needs a listenerPath"},
		"index":       {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}}, "argument index 6"},
		"operator":    {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: "=="}}}}}, `operator "==" is not known`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Compile(&c.p, "amd64"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
	if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, "mips"); err == nil {
		t.Error("a filter for a machine without a table")
	}
	tooLong := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range 900 {
		tooLong.Syscalls = append(tooLong.Syscalls, specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo, Value: uint64(i)}}})
	}
	if _, err := Compile(tooLong, "amd64"); err == nil || !strings.Contains(err.Error(), "the kernel takes 4096") {
		t.Errorf("a filter of 900 rules: %v", err)
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		list   []specs.LinuxSeccompFlag
		notify bool
		want   uint
	}{
		{nil, false, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{}, false, 0},
		{[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog}, false, unix.SECCOMP_FILTER_FLAG_LOG},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}, false, 0},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}, true, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV},
	} {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: c.list, ListenerPath: "/agent", ListenerMetadata: "m"}
		if c.notify {
			p.Syscalls = []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}
		}
		f, err := Compile(p, "arm64")
		if err != nil || f.Flags != c.want || f.Notify != c.notify || (f.ListenerPath == "/agent") != c.notify {
			t.Errorf("%v notify=%v: %#x %v %v", c.list, c.notify, f.Flags, f.Notify, err)
		}
	}
}

func TestOff(t *testing.T) {
	for _, p := range []*specs.LinuxSeccomp{nil, {}} {
		if f, err := Compile(p, "amd64"); err != nil || !f.Off() || len(f.Bytes()) != 0 {
			t.Errorf("Compile(%v) = %v, %v", p, f, err)
		}
	}
}

func TestTables(t *testing.T) {
	if !slices.IsSortedFunc(calls[:], func(a, b call) int { return strings.Compare(a.name, b.name) }) {
		t.Error("the table is not sorted")
	}
	for i := range calls {
		for b, nr := range calls[i].nr {
			if nr < 0 {
				continue
			}
			from := uint32(0)
			if abi(b) == abiX32 {
				from = x32Bit
			}
			if at := slot(abi(b), from, uint32(nr)); at >= slots || at >= slots-privateSlots && nr < armPrivate {
				t.Errorf("%s has number %#x through ABI %d: there are more than %d slots", calls[i].name, nr, b, slots)
			}
		}
	}
	for name, want := range map[string][5]int32{
		"read":       {0, 3, 63, 3, x32Bit},
		"execve":     {59, 11, 221, 11, x32Bit + 520},
		"newfstatat": {262, -1, 79, -1, x32Bit + 262},
		"uselib":     {134, 86, -1, 86, -1},
		"openat2":    {437, 437, 437, 437, x32Bit + 437},
		"set_tls":    {-1, -1, -1, 0x0f0005, -1},
	} {
		for b, nr := range want {
			if got := lookup(name).nr[b]; got != nr {
				t.Errorf("%s through ABI %d is %d, want %d", name, b, got, nr)
			}
		}
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	p, err := profile.Default(nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Compile(p, "amd64"); err != nil {
			b.Fatal(err)
		}
	}
}
