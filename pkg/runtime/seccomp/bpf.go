package seccomp

import (
	"cmp"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Where struct seccomp_data has its fields, on a little-endian machine.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

const (
	opLoad = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opRet  = unix.BPF_RET | unix.BPF_K
	opAnd  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opJA   = unix.BPF_JMP | unix.BPF_JA
	opJEQ  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opJGT  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	opJGE  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
)

// code is a block of instructions that is entered at its start, and whose every path either returns or
// falls off its end: blocks may be put one after the other.
type code = []unix.SockFilter

// span is a run of system call numbers from first up to the next span, with one verdict.
type span struct {
	first uint32
	ret   uint32
	rules []rule // conditional ones, tried in order before ret
}

// program is the whole filter for the given ABIs, the native one first.
func (p *policy) program(m machine, abis []abi) code {
	out := code{{Code: opLoad, K: offArch}}
	for _, b := range abis {
		if b == abiX32 {
			continue // shares amd64's audit architecture, and its tree
		}
		section := append(code{{Code: opLoad, K: offNr}}, tree(p.spans(b, slices.Contains(abis, abiX32)))...)
		out = append(out, jump(opJEQ, audit[b], true, section)...)
	}
	return append(out, unix.SockFilter{Code: opRet, K: unix.SECCOMP_RET_KILL_PROCESS})
}

// spans partitions all numbers of an audit architecture.
func (p *policy) spans(b abi, x32 bool) []span {
	if b != abiAMD64 {
		return p.numbered(b, 0, 0xffffffff)
	}
	out := p.numbered(b, 0, x32Bit-1)
	if x32 {
		return append(out, p.numbered(abiX32, x32Bit, 0xffffffff)...)
	}
	// The numbers of an ABI that the profile does not list, but for -1: that is what a tracer sets to
	// skip a call.
	return append(out, span{first: x32Bit, ret: unix.SECCOMP_RET_KILL_PROCESS}, span{first: 0xffffffff, ret: p.deny})
}

// placed is a rule at a number, with its place in the profile.
type placed struct {
	nr    uint32
	index int
	rule  rule
}

// place finds the numbers that the profile's rules have in an ABI, in order of number, then of the
// profile, and the highest number that any rule names (base where none does). Rules that give the default
// verdict say nothing, as in libseccomp, but count as naming.
func (p *policy) place(b abi, base uint32) (out []placed, last uint32) {
	last = base
	for i, n := range p.rules {
		if nr := n.call.number(b); nr >= 0 {
			if b != abiARM || nr < armPrivate {
				last = max(last, uint32(nr))
			}
			if n.rule.ret != p.deny {
				out = append(out, placed{uint32(nr), i, n.rule})
			}
		}
		// A rule about arguments cannot be put to the multiplexer, which has them in memory.
		if b == abi386 && len(n.rule.conds) == 0 && n.rule.ret != p.deny {
			if via, arg := n.call.mux(); via != nil {
				only := rule{n.rule.ret, []cond{{op: specs.OpEqualTo, value: arg}}}
				out = append(out, placed{uint32(via.nr[abi386]), i, only})
			}
		}
	}
	slices.SortFunc(out, func(x, y placed) int {
		if x.nr != y.nr {
			return cmp.Compare(x.nr, y.nr)
		}
		return x.index - y.index
	})
	return out, last
}

// numbered partitions the numbers base to top of one ABI.
func (p *policy) numbered(b abi, base, top uint32) []span {
	rules, last := p.place(b, base)
	out := []span{{first: base, ret: p.deny}}
	put := func(s span) { // over an empty span, and not where it only repeats the one before
		if out[len(out)-1].first == s.first {
			out = out[:len(out)-1]
		}
		if n := len(out); n > 0 && out[n-1].ret == s.ret && len(out[n-1].rules) == 0 && len(s.rules) == 0 {
			return
		}
		out = append(out, s)
	}
	beyond := func() {
		if p.enosys && last > base && last < top {
			put(span{first: last + 1, ret: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
			last = top
			if b == abiARM {
				put(span{first: armPrivate, ret: p.deny})
			}
		}
	}
	for len(rules) > 0 {
		n := 1
		for n < len(rules) && rules[n].nr == rules[0].nr {
			n++
		}
		nr := rules[0].nr
		if nr > last {
			beyond()
		}
		put(p.decide(rules[:n]))
		if nr != top {
			put(span{first: nr + 1, ret: p.deny})
		}
		rules = rules[n:]
	}
	beyond()
	return out
}

// decide makes the span of one number from its rules: the first without conditions decides alone.
func (p *policy) decide(rules []placed) span {
	s := span{first: rules[0].nr, ret: p.deny}
	for _, r := range rules {
		if len(r.rule.conds) == 0 {
			return span{first: r.nr, ret: r.rule.ret}
		}
		s.rules = append(s.rules, r.rule)
	}
	return s
}

// tree searches the spans, with the number in A, and returns their verdict on every path.
func tree(spans []span) code {
	if len(spans) == 1 {
		return leaf(&spans[0])
	}
	mid := len(spans) / 2
	upper := jump(opJGE, spans[mid].first, true, tree(spans[mid:]))
	return append(upper, tree(spans[:mid])...)
}

// leaf tries the rules of a span one after the other. It overwrites A.
func leaf(s *span) code {
	var out code
	for _, r := range s.rules {
		out = append(out, r.code()...)
	}
	return append(out, unix.SockFilter{Code: opRet, K: s.ret})
}

// jump tests A against k and runs then where the test gives when, else goes on behind it.
func jump(op uint16, k uint32, when bool, then code) code {
	var in unix.SockFilter
	switch n := len(then); {
	case when && n <= 255:
		in = unix.SockFilter{Code: op, Jf: uint8(n), K: k}
	case n <= 255:
		in = unix.SockFilter{Code: op, Jt: uint8(n), K: k}
	case when:
		return append(code{{Code: op, Jt: 1, K: k}, {Code: opJA, K: uint32(n)}}, then...)
	default:
		return append(code{{Code: op, Jf: 1, K: k}, {Code: opJA, K: uint32(n)}}, then...)
	}
	return append(code{in}, then...)
}

// target is where a test of a condition goes.
type target uint8

const (
	next target = iota // the instruction behind
	pass               // the condition holds
	fail               // the rule does not apply
)

// test is an instruction whose jumps are not placed yet.
type test struct {
	op      uint16
	k       uint32
	yes, no target
}

// code returns the rule's verdict where all conditions hold, and falls off its end otherwise.
func (r rule) code() code {
	var tests []test
	var ends []int // where the tests of each condition end
	for _, c := range r.conds {
		tests = append(tests, c.tests()...)
		ends = append(ends, len(tests))
	}
	out := make(code, 0, len(tests)+1)
	for i, t := range tests {
		for ends[0] <= i {
			ends = ends[1:]
		}
		to := func(t target) uint8 { // a rule has six conditions of seven instructions at most
			switch t {
			case pass:
				return uint8(ends[0] - i - 1)
			case fail:
				return uint8(len(tests) + 1 - i - 1)
			}
			return 0
		}
		out = append(out, unix.SockFilter{Code: t.op, Jt: to(t.yes), Jf: to(t.no), K: t.k})
	}
	return append(out, unix.SockFilter{Code: opRet, K: r.ret})
}

// tests compares the argument half by half, the high one first: BPF has 32 bits.
func (c cond) tests() []test {
	low := uint32(offArgs + 8*c.index)
	loadHigh, loadLow := test{op: opLoad, k: low + 4}, test{op: opLoad, k: low}
	hi, lo := uint32(c.value>>32), uint32(c.value)
	switch c.op {
	case specs.OpEqualTo:
		return []test{loadHigh, {opJEQ, hi, next, fail}, loadLow, {opJEQ, lo, pass, fail}}
	case specs.OpNotEqual:
		return []test{loadHigh, {opJEQ, hi, next, pass}, loadLow, {opJEQ, lo, fail, pass}}
	case specs.OpGreaterThan:
		return []test{loadHigh, {opJGT, hi, pass, next}, {opJEQ, hi, next, fail}, loadLow, {opJGT, lo, pass, fail}}
	case specs.OpGreaterEqual:
		return []test{loadHigh, {opJGT, hi, pass, next}, {opJEQ, hi, next, fail}, loadLow, {opJGE, lo, pass, fail}}
	case specs.OpLessThan:
		return []test{loadHigh, {opJGT, hi, fail, next}, {opJEQ, hi, next, pass}, loadLow, {opJGE, lo, fail, pass}}
	case specs.OpLessEqual:
		return []test{loadHigh, {opJGT, hi, fail, next}, {opJEQ, hi, next, pass}, loadLow, {opJGT, lo, fail, pass}}
	}
	return c.masked(loadHigh, loadLow) // read() let no other operator through
}

// masked compares the bits of the mask, halves of the mask without bits not at all.
func (c cond) masked(loadHigh, loadLow test) []test {
	var out []test
	if hi := uint32(c.value >> 32); hi != 0 {
		out = append(out, loadHigh, test{op: opAnd, k: hi}, test{opJEQ, uint32(c.two >> 32), next, fail})
	}
	if lo := uint32(c.value); lo != 0 {
		out = append(out, loadLow, test{op: opAnd, k: lo}, test{opJEQ, uint32(c.two), next, fail})
	}
	return out
}
