package program

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Text renders the program for people and golden tests, a line per operation:
//
//	3 mount /proc: openat2(rootfs, "proc", {O_PATH|O_CLOEXEC, in-root}, 24) -> dir; ENOENT: next
//
// Machine-dependent numbers (system calls, addresses) do not appear in it.
func (p *Program) Text() string {
	var b strings.Builder
	for i := range p.ops {
		o := &p.ops[i]
		fmt.Fprintf(&b, "%3d %s: ", i, o.what)
		p.callText(&b, o)
		p.effects(&b, o)
		b.WriteByte('\n')
	}
	return b.String()
}

func (p *Program) callText(b *strings.Builder, o *Op) {
	if o.flags&opLoad != 0 {
		fmt.Fprintf(b, "%s & %#x", p.argText(o.arg(0), 'x'), o.args[1])
		return
	}
	c := lookup(o.nr)
	b.WriteString(c.name)
	b.WriteByte('(')
	for i := range int(o.nargs) {
		if i > 0 {
			b.WriteString(", ")
		}
		form := byte('x')
		if i < len(c.args) {
			form = c.args[i]
		}
		b.WriteString(p.argText(o.arg(i), form))
	}
	b.WriteByte(')')
}

func (p *Program) effects(b *strings.Builder, o *Op) {
	if o.flags&opStore != 0 {
		fmt.Fprintf(b, " -> %s", p.slotText(uint64(o.store)))
	}
	if o.flags&opWant != 0 {
		fmt.Fprintf(b, "; want %d else ", int64(o.want))
		if o.flags&opJumpOther != 0 {
			fmt.Fprintf(b, "@%d", p.labels[o.target])
		} else {
			b.WriteString(errnoName(o.other))
		}
	}
	if o.flags&opJumpOK != 0 {
		fmt.Fprintf(b, "; then @%d", p.labels[o.target])
	}
	var names []string
	if o.flags&opAcceptAny != 0 {
		names = append(names, "any error")
	}
	for _, e := range o.accept {
		if e != 0 {
			names = append(names, errnoName(e))
		}
	}
	if len(names) > 0 {
		to := "next"
		if o.flags&opJumpErr != 0 {
			to = fmt.Sprintf("@%d", p.labels[o.target])
		}
		fmt.Fprintf(b, "; %s: %s", strings.Join(names, ", "), to)
	}
}

func errnoName(e uint16) string {
	if n := unix.ErrnoName(syscall.Errno(e)); n != "" {
		return n
	}
	return strconv.Itoa(int(e))
}

func (p *Program) slotText(off uint64) string {
	if off == uint64(reportSlot) {
		return "report"
	}
	for _, s := range p.slots {
		if uint64(s.off) == off {
			return s.name
		}
	}
	// The slot nearest below is the buffer that holds it.
	for i := len(p.slots) - 1; i >= 0; i-- {
		if s := p.slots[i]; uint64(s.off) < off {
			return fmt.Sprintf("%s+%d", s.name, off-uint64(s.off))
		}
	}
	return "word"
}

func (p *Program) word(off uint64) uint64 { return binary.LittleEndian.Uint64(p.data[off:]) }

func (p *Program) cstr(off uint64) string {
	n := bytes.IndexByte(p.data[off:], 0)
	return strconv.Quote(string(p.data[off : off+uint64(n)]))
}

func (p *Program) argText(a Arg, form byte) string {
	switch a.kind {
	case argInt:
		return intText(a.val, form)
	case argSlot:
		return p.slotText(a.val)
	case argAddr:
		return "&" + p.slotText(a.val)
	case argScratch:
		return "&scratch"
	case argScratchWord:
		return "scratch"
	case argStr:
		return p.cstr(a.val)
	case argStrs:
		var list []string
		for off := a.val; p.word(off) != 0; off += 8 {
			list = append(list, p.cstr(p.word(off)))
		}
		return "[" + strings.Join(list, " ") + "]"
	case argHow:
		return p.howText(a.val)
	case argAttr:
		return fmt.Sprintf("{set %s clr %s propagation %s}", flagText(p.word(a.val), attrFlags),
			flagText(p.word(a.val+8), attrFlags), flagText(p.word(a.val+16), mountFlags))
	case argFilter:
		n, code := p.word(a.val)&0xffff, p.word(a.val+8)
		h := fnv.New32a()
		h.Write(p.data[code : code+n*8])
		return fmt.Sprintf("{%d instructions %08x}", n, h.Sum32())
	default:
		n := p.word(a.val - 8)
		if b := p.data[a.val : a.val+n]; n > 64 && bytes.Count(b, b[:1]) == len(b) {
			return fmt.Sprintf("<%d times %02x>", n, b[0])
		}
		return fmt.Sprintf("<% x>", p.data[a.val:a.val+n])
	}
}

func (p *Program) howText(off uint64) string {
	s := "{" + flagText(p.word(off), openFlags)
	if mode := p.word(off + 8); mode != 0 {
		s += fmt.Sprintf(" %#o", mode)
	}
	if r := p.word(off + 16); r != 0 {
		s += " " + flagText(r, resolveFlags)
	}
	return s + "}"
}
