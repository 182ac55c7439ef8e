package program

import (
	"encoding/binary"
	"errors"

	"github.com/cri-server/cri-server/pkg/runtime/program/internal/interp"
)

// Layout of the image. Both segments start where page offset and address agree modulo 64 KiB, the largest
// page of arm64. The data segment begins with the header that the interpreters know.
const (
	segAlign = 64 << 10
	textAddr = 0x400000
	dataOff  = 0x1000
	dataAddr = 0x410000 + dataOff
	catchOff = 0x180 // of caught in the text segment
	codeOff  = 0x200 // of the interpreter there

	headSize = 64 // record kind, record value, report descriptor
	opSize   = 96
)

// reportSlot is the header's report descriptor: as an offset in the data it lies before its start, so it
// is translated by addr.
const reportSlot = Slot(1<<32 - 1)

// addr is the address of an offset in the data.
func (p *Program) addr(off uint64) uint64 {
	if off == uint64(reportSlot) {
		return dataAddr + 16
	}
	return dataAddr + headSize + uint64(len(p.ops)+1)*opSize + off
}

// Image renders the program as a static executable for this machine's architecture. It is a pure function
// of the program.
func (p *Program) Image() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	text := interp.Code()
	if text == nil || len(text) > dataOff-codeOff {
		return nil, errors.New("program: the interpreter has no end mark")
	}
	ops := headSize + (len(p.ops)+1)*opSize
	size := ops + len(p.data)
	img := make([]byte, dataOff+size)
	elfHeader(img, uint64(size), uint64(size+p.scratch))
	copy(img[catchOff:codeOff], caught)
	copy(img[codeOff:], text)
	d := img[dataOff:]
	le := binary.LittleEndian
	le.PutUint64(d[16:], p.report)
	for i := range p.ops {
		p.putOp(d[headSize+i*opSize:], i)
	}
	end := Op{nr: uint64(sysExitGroup), args: [6]uint64{ExitFailed}}
	putRaw(d[headSize+len(p.ops)*opSize:], &end, len(p.ops))
	data := d[ops:]
	copy(data, p.data)
	for _, off := range p.relocs {
		le.PutUint64(data[off:], p.addr(le.Uint64(data[off:])))
	}
	return img, nil
}

func (p *Program) putOp(b []byte, i int) {
	o := p.ops[i]
	for j, kind := range o.kinds {
		switch a := &o.args[j]; kind {
		case argInt:
		case argScratch:
			*a = p.addr(uint64(len(p.data)))
		case argScratchWord:
			o.flags |= 1 << j
			*a = p.addr(uint64(len(p.data)))
		case argSlot:
			o.flags |= 1 << j
			*a = p.addr(*a)
		default:
			*a = p.addr(*a)
		}
	}
	putRaw(b, &o, i)
	le := binary.LittleEndian
	if o.flags&(opJumpOther|opJumpOK|opJumpErr) != 0 {
		le.PutUint64(b[64:], dataAddr+headSize+uint64(p.labels[o.target])*opSize)
	}
	if o.flags&opStore != 0 {
		le.PutUint64(b[72:], p.addr(uint64(o.store)))
	}
}

func putRaw(b []byte, o *Op, index int) {
	le := binary.LittleEndian
	le.PutUint64(b, o.nr)
	for j, a := range o.args {
		le.PutUint64(b[8+8*j:], a)
	}
	le.PutUint32(b[56:], o.flags)
	le.PutUint32(b[60:], uint32(index))
	le.PutUint64(b[80:], o.want)
	for j, e := range o.accept {
		le.PutUint16(b[88+2*j:], e)
	}
	le.PutUint16(b[94:], o.other)
}

// elfHeader writes the ELF header and three program headers: text, data, and a stack that is not
// executable.
func elfHeader(img []byte, size, memory uint64) {
	le := binary.LittleEndian
	copy(img, "\x7fELF\x02\x01\x01")
	le.PutUint16(img[16:], 2) // ET_EXEC
	le.PutUint16(img[18:], elfMachine)
	le.PutUint32(img[20:], 1)
	le.PutUint64(img[24:], textAddr+codeOff)
	le.PutUint64(img[32:], 64) // program headers
	le.PutUint16(img[52:], 64)
	le.PutUint16(img[54:], 56)
	le.PutUint16(img[56:], 3)
	segment := func(i int, typ, flags uint32, off, addr, n, mem uint64) {
		h := img[64+56*i:]
		le.PutUint32(h, typ)
		le.PutUint32(h[4:], flags)
		le.PutUint64(h[8:], off)
		le.PutUint64(h[16:], addr)
		le.PutUint64(h[24:], addr)
		le.PutUint64(h[32:], n)
		le.PutUint64(h[40:], mem)
		le.PutUint64(h[48:], segAlign)
	}
	const load, stack = 1, 0x6474e551
	segment(0, load, 5, 0, textAddr, dataOff, dataOff)
	segment(1, load, 6, dataOff, dataAddr, size, memory)
	segment(2, stack, 6, 0, 0, 0, 0)
}
