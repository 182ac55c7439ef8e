package seccomp

import (
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

// span is a run of system call numbers from first up to the next span, with one verdict but for the number
// in except.
type span struct {
	first  uint32
	ret    uint32
	rules  []rule // conditional ones, tried in order before ret
	except *span
}

func (s *span) constant() bool { return len(s.rules) == 0 && s.except == nil }

// program is the whole filter for the given ABIs, the native one first.
func (p *policy) program(abis []abi) []unix.SockFilter {
	var b builder
	other := b.ret(unix.SECCOMP_RET_KILL_PROCESS)
	for _, a := range slices.Backward(abis) {
		if a == abiX32 {
			continue // shares amd64's audit architecture, and its tree
		}
		if entry := b.tree(fold(p.spans(a, slices.Contains(abis, abiX32)))); b.skip(entry) > 0 {
			b.emit(unix.SockFilter{Code: opJA, K: uint32(b.skip(entry))}) // a tree of one verdict, written before
		}
		section := b.emit(unix.SockFilter{Code: opLoad, K: offNr})
		other = b.branch(opJEQ, audit[a], section, other)
	}
	b.emit(unix.SockFilter{Code: opLoad, K: offArch})
	slices.Reverse(b.reversed)
	return b.reversed
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

// placed is a rule at a number.
type placed struct {
	nr   uint32
	rule *rule
}

// slots is how many numbers an ABI has, with room for those to come: its calls lie close together, but for ARM's private
// ones, which come last here. A test holds the table to it.
const (
	slots        = 1024
	privateSlots = 16
)

// slot is the place of a number of an ABI among all of them.
func slot(b abi, base, nr uint32) uint32 {
	if b == abiARM && nr >= armPrivate {
		return slots - privateSlots + nr - armPrivate
	}
	return nr - base
}

// place finds the numbers that the profile's rules have in an ABI, in order of number, then of the
// profile, and the highest number that any rule names (base where none does). Rules that give the default
// verdict say nothing, as in libseccomp, but count as naming. What it returns is valid until its next call.
func (p *policy) place(b abi, base uint32) (out []placed, last uint32) {
	last = base
	all := p.unsorted[:0]
	var ends [slots + 1]uint32
	add := func(nr uint32, r *rule) {
		all = append(all, placed{nr, r})
		ends[slot(b, base, nr)+1]++
	}
	for i := range p.rules {
		n := &p.rules[i]
		if nr := n.call.nr[b]; nr >= 0 {
			if b != abiARM || nr < armPrivate {
				last = max(last, uint32(nr))
			}
			if n.rule.ret != p.deny {
				add(uint32(nr), &n.rule)
			}
		}
		// A rule about arguments cannot be put to the multiplexer, which has them in memory.
		if b == abi386 && len(n.rule.conds) == 0 && n.rule.ret != p.deny {
			if via, arg := n.call.mux(); via != nil {
				add(uint32(via.nr[abi386]), &rule{n.rule.ret, []cond{{op: specs.OpEqualTo, value: arg}}})
			}
		}
	}
	for i := range slots {
		ends[i+1] += ends[i]
	}
	p.unsorted = all
	out = slices.Grow(p.sorted[:0], len(all))[:len(all)]
	p.sorted = out
	for _, r := range all { // ends[s] is where the next of slot s goes
		at := &ends[slot(b, base, r.nr)]
		out[*at] = r
		*at++
	}
	return out, last
}

// numbered partitions the numbers base to top of one ABI.
func (p *policy) numbered(b abi, base, top uint32) []span {
	rules, last := p.place(b, base)
	out := append(make([]span, 0, 128), span{first: base, ret: p.deny})
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
		s.rules = append(s.rules, *r.rule)
	}
	return s
}

// fold takes numbers that stand alone between two spans of one verdict for exceptions of it: a filter has
// mostly such holes, and testing for one costs half of what searching three spans does.
func fold(spans []span) []span {
	out := make([]span, 0, len(spans)/2+1)
	for i := 0; i < len(spans); i++ {
		s := spans[i]
		if i+2 < len(spans) && s.constant() && spans[i+2].constant() && spans[i+2].ret == s.ret && spans[i+2].first == spans[i+1].first+1 {
			s.except = &spans[i+1]
			i += 2
		}
		out = append(out, s)
	}
	return out
}

// builder writes a program from its end to its start, so that every jump, which BPF only has forwards, goes
// to what is written already. A label is an index of reversed.
type builder struct {
	reversed []unix.SockFilter
	returns  []label // the last return of each verdict
}

type label int

// reach is how far a conditional jump goes.
const reach = 255

func (b *builder) emit(in unix.SockFilter) label {
	b.reversed = append(b.reversed, in)
	return label(len(b.reversed) - 1)
}

// skip is how many instructions lie between the next one to be written and l.
func (b *builder) skip(l label) int { return len(b.reversed) - int(l) - 1 }

// ret finds or makes a return of the verdict that later tests can jump to.
func (b *builder) ret(verdict uint32) label {
	i := slices.IndexFunc(b.returns, func(l label) bool { return b.reversed[l].K == verdict })
	if i < 0 {
		b.returns = append(b.returns, 0)
		i = len(b.returns) - 1
	} else if b.skip(b.returns[i]) < reach/2 {
		return b.returns[i]
	}
	b.returns[i] = b.emit(unix.SockFilter{Code: opRet, K: verdict})
	return b.returns[i]
}

// branch tests A against k and goes to yes or no, by way of long jumps where they are far.
func (b *builder) branch(op uint16, k uint32, yes, no label) label {
	for _, l := range []*label{&yes, &no} {
		if b.skip(*l) >= reach { // one less than the reach: the other may need a long jump too
			*l = b.emit(unix.SockFilter{Code: opJA, K: uint32(b.skip(*l))})
		}
	}
	return b.emit(unix.SockFilter{Code: op, Jt: uint8(b.skip(yes)), Jf: uint8(b.skip(no)), K: k})
}

// tree searches the spans with the number in A, and returns their verdict on every path. What it writes
// last is its entry.
func (b *builder) tree(spans []span) label {
	if len(spans) == 1 {
		return b.leaf(&spans[0])
	}
	mid := len(spans) / 2
	upper := b.tree(spans[mid:])
	lower := b.tree(spans[:mid])
	return b.branch(opJGE, spans[mid].first, upper, lower)
}

// leaf gives the verdict of one span. Its conditional rules are tried one after the other; they overwrite A.
func (b *builder) leaf(s *span) label {
	if s.except != nil {
		hole := b.leaf(s.except)
		return b.branch(opJEQ, s.except.first, hole, b.ret(s.ret))
	}
	if len(s.rules) == 0 {
		return b.ret(s.ret)
	}
	entry := b.emit(unix.SockFilter{Code: opRet, K: s.ret})
	for _, r := range slices.Backward(s.rules) {
		for _, in := range slices.Backward(r.code()) {
			entry = b.emit(in)
		}
	}
	return entry
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
func (r rule) code() []unix.SockFilter {
	var tests []test
	var ends []int // where the tests of each condition end
	for _, c := range r.conds {
		tests = append(tests, c.tests()...)
		ends = append(ends, len(tests))
	}
	out := make([]unix.SockFilter, 0, len(tests)+1)
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
