// Package program makes the init of a container as data: a list of system calls with their strings,
// laid out behind a register-only interpreter of some 300 bytes as a static ELF of a few pages.
//
// A Program is built operation by operation (Call, Load, and the options of Op), printed for people and
// tests by Text, and rendered for the kernel by Image and Seal. Nothing of Go or C runs in the process
// that executes it: it has no heap, no stack and no memory but its own three pages.
//
// An operation is a system call with up to six arguments, each a constant, an address in the program's
// data, or the value of a Slot that an earlier operation saved. It may name the result it wants, errnos
// it accepts, and another operation to go on with. Whatever is not wanted or accepted ends the process:
// the interpreter writes the operation's index and the errno to the report pipe and exits with ExitFailed.
package program

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// ExitFailed is the exit status of a process whose program failed.
const ExitFailed = 125

// The kinds of an argument.
const (
	argInt         = iota
	argSlot        // value of a slot: data offset, loaded when the operation runs
	argAddr        // address of a slot or buffer in the data
	argStr         // NUL-terminated string in the data
	argStrs        // argv or envp in the data
	argHow         // struct open_how in the data
	argAttr        // struct mount_attr in the data
	argFilter      // struct sock_fprog in the data
	argWords       // bytes in the data, after a word that says how many
	argScratch     // address of the scratch area
	argScratchWord // value of its first word
)

// Arg is an argument of an operation.
type Arg struct {
	kind uint8
	val  uint64
}

// Int is a constant argument.
func Int[T ~int | ~uint | ~uintptr | ~uint32 | ~uint64 | ~int32 | ~int64](v T) Arg {
	return Arg{argInt, uint64(v)}
}

// Slot is a 64-bit variable of the program.
type Slot uint32

// Label is a place in the program to go on at.
type Label int32

// Flags of an operation, as the interpreters test them. The low six bits say which arguments are slots.
const (
	opLoad      = 1 << 6  // no system call: the result is argument 0 AND argument 1
	opStore     = 1 << 7  // save the result
	opWant      = 1 << 8  // the result must be want
	opJumpOther = 1 << 9  // if it is not, go to target
	opJumpOK    = 1 << 10 // go to target
	opAcceptAny = 1 << 11 // any errno is as good as success
	opJumpErr   = 1 << 12 // after an accepted errno go to target
)

// Op is one operation. The pointer that Call returns is valid until the next operation is added.
type Op struct {
	what   string
	nr     uint64
	args   [6]uint64
	want   uint64
	flags  uint32
	target Label
	store  Slot
	accept [3]uint16
	other  uint16
	kinds  [6]uint8 // of args
	nargs  uint8
}

func (o *Op) arg(i int) Arg { return Arg{o.kinds[i], o.args[i]} }

// Save keeps the result in s.
func (o *Op) Save(s Slot) *Op { o.store, o.flags = s, o.flags|opStore; return o }

// Want requires the result v; another one is errno.
func (o *Op) Want(v uint64, errno syscall.Errno) *Op {
	o.want, o.other, o.flags = v, uint16(errno), o.flags|opWant
	return o
}

// Else goes on at l when the result is not v. An operation has one label only.
func (o *Op) Else(v uint64, l Label) *Op {
	o.want, o.target, o.flags = v, l, o.flags|opWant|opJumpOther
	return o
}

// Then goes on at l after success.
func (o *Op) Then(l Label) *Op { o.target, o.flags = l, o.flags|opJumpOK; return o }

// Accept goes on with the next operation after any of up to three errnos; no errno means any.
func (o *Op) Accept(errnos ...syscall.Errno) *Op {
	if len(errnos) == 0 {
		o.flags |= opAcceptAny
	}
	for i, e := range errnos {
		o.accept[i] = uint16(e)
	}
	return o
}

// Catch goes on at l after any of up to three errnos; no errno means any.
func (o *Op) Catch(l Label, errnos ...syscall.Errno) *Op {
	o.target, o.flags = l, o.flags|opJumpErr
	return o.Accept(errnos...)
}

// Program is a program being built. The zero value is not usable; New makes one.
type Program struct {
	ops     []Op
	labels  []int32  // operation index of a label, -1 while unbound
	data    []byte   // everything that arguments point to
	relocs  []uint32 // offsets of words in data that are offsets in data
	what    string   // subject of the operations being added
	strs    map[string]uint32
	consts  map[[4]uint64]uint32 // of How and Attr
	slots   []slotName
	report  uint64
	scratch int // bytes behind data
}

type slotName struct {
	off  uint32
	name string
}

// New returns an empty program, which reports on launch.ReportFD.
func New() *Program {
	return &Program{
		ops:    make([]Op, 0, 400),
		data:   make([]byte, 0, 6144),
		strs:   make(map[string]uint32, 96),
		consts: make(map[[4]uint64]uint32, 16),
		report: launch.ReportFD,
	}
}

// Subject names what the following operations do, for errors and the text form: "mount /proc".
func (p *Program) Subject(what string) { p.what = what }

// Len is the number of operations.
func (p *Program) Len() int { return len(p.ops) }

// What returns the subject and the system call of operation i, "" and "" when there is none.
func (p *Program) What(i int) (subject, call string) {
	if i < 0 || i >= len(p.ops) {
		return "", ""
	}
	return p.ops[i].what, callName(p.ops[i].nr)
}

// Call adds a system call.
func (p *Program) Call(nr uintptr, args ...Arg) *Op {
	p.ops = append(p.ops, Op{what: p.what, nr: uint64(nr), nargs: uint8(len(args)), target: -1})
	o := &p.ops[len(p.ops)-1]
	for i, a := range args {
		o.kinds[i], o.args[i] = a.kind, a.val
	}
	return o
}

// Load adds an operation whose result is the 64-bit word at a (a slot, or Word of a buffer) AND mask.
func (p *Program) Load(a Arg, mask uint64) *Op {
	o := p.Call(0, a, Int(mask))
	o.flags |= opLoad
	return o
}

// Label returns a label to be bound later.
func (p *Program) Label() Label {
	p.labels = append(p.labels, -1)
	return Label(len(p.labels) - 1)
}

// Bind puts the label before the next operation to be added.
func (p *Program) Bind(l Label) { p.labels[l] = int32(len(p.ops)) }

func (p *Program) align() uint32 {
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
	return uint32(len(p.data))
}

// Slot returns a new variable, zero at the start; name is for the text form.
func (p *Program) Slot(name string) Slot {
	off := p.align()
	p.data = append(p.data, 0, 0, 0, 0, 0, 0, 0, 0)
	p.slots = append(p.slots, slotName{off, name})
	return Slot(off)
}

// Val is the value of the slot when the operation runs.
func (s Slot) Val() Arg { return Arg{argSlot, uint64(s)} }

// Addr is the address of the slot.
func (s Slot) Addr() Arg { return Arg{argAddr, uint64(s)} }

// Buf is memory of the program that operations write to.
type Buf uint32

// Buf returns n zero bytes; name is for the text form.
func (p *Program) Buf(name string, n int) Buf {
	off := p.align()
	p.data = append(p.data, make([]byte, n)...)
	p.slots = append(p.slots, slotName{off, name})
	return Buf(off)
}

// Addr is the address of byte i.
func (b Buf) Addr(i int) Arg { return Arg{argAddr, uint64(b) + uint64(i)} }

// Word is the value of the 64-bit word at byte i when the operation runs.
func (b Buf) Word(i int) Arg { return Arg{argSlot, uint64(b) + uint64(i)} }

// Slot is the slot that lies at byte i, for results to be saved inside a buffer.
func (b Buf) Slot(i int) Slot { return Slot(uint32(b) + uint32(i)) }

func (p *Program) str(s string) uint32 {
	if off, ok := p.strs[s]; ok {
		return off
	}
	off := uint32(len(p.data))
	p.data = append(append(p.data, s...), 0)
	p.strs[s] = off
	return off
}

// Str is the address of a NUL-terminated string. It must not hold a NUL: the caller has checked.
func (p *Program) Str(s string) Arg { return Arg{argStr, uint64(p.str(s))} }

// words appends 64-bit words; those in ptrs (a bit mask) are offsets in the data.
func (p *Program) words(ptrs uint64, words ...uint64) uint32 {
	off := p.align()
	for i, w := range words {
		if ptrs>>i&1 != 0 {
			p.relocs = append(p.relocs, uint32(len(p.data)))
		}
		p.data = binary.LittleEndian.AppendUint64(p.data, w)
	}
	return off
}

// Strs is the address of a NULL-terminated array of strings.
func (p *Program) Strs(list []string) Arg {
	offs := make([]uint32, len(list))
	for i, s := range list {
		offs[i] = p.str(s)
	}
	off := p.align()
	for _, o := range offs {
		p.relocs = append(p.relocs, uint32(len(p.data)))
		p.data = binary.LittleEndian.AppendUint64(p.data, uint64(o))
	}
	p.data = binary.LittleEndian.AppendUint64(p.data, 0)
	return Arg{argStrs, uint64(off)}
}

// How is the address of a struct open_how; pass Int(unix.SizeofOpenHow) after it.
func (p *Program) How(flags int, mode uint32, resolve uint64) Arg {
	return Arg{argHow, p.constant([4]uint64{uint64(flags | unix.O_CLOEXEC | unix.O_LARGEFILE), uint64(mode), resolve})}
}

// Attr is the address of a struct mount_attr; pass its size, 32, after it.
func (p *Program) Attr(set, clr, propagation uint64) Arg {
	return Arg{argAttr, p.constant([4]uint64{set, clr, propagation})}
}

// constant keeps one copy of each struct.
func (p *Program) constant(w [4]uint64) uint64 {
	off, ok := p.consts[w]
	if !ok {
		off = p.words(0, w[:]...)
		p.consts[w] = off
	}
	return uint64(off)
}

// Words is the address of constant 64-bit words.
func (p *Program) Words(words ...uint64) Arg {
	all := append([]uint64{uint64(len(words)) * 8}, words...)
	return Arg{argWords, uint64(p.words(0, all...)) + 8}
}

// Bytes is the address of constant bytes, aligned to 8.
func (p *Program) Bytes(b []byte) Arg {
	off := p.align()
	p.data = binary.LittleEndian.AppendUint64(p.data, uint64(len(b)))
	p.data = append(p.data, b...)
	return Arg{argWords, uint64(off) + 8}
}

// Filter is the address of a struct sock_fprog for seccomp instructions of 8 bytes each.
func (p *Program) Filter(insns []byte) Arg {
	code := p.align()
	p.data = append(p.data, insns...)
	return Arg{argFilter, uint64(p.words(2, uint64(len(insns)/8), uint64(code)))}
}

// Scratch returns n bytes behind the program's data that the image does not hold: zero at the start, for
// answers of the kernel. A program has one such area.
func (p *Program) Scratch(n int) Arg {
	p.scratch = max(p.scratch, n)
	return Arg{argScratch, 0}
}

// ScratchWord is the value of the first 64-bit word of the scratch area when the operation runs.
func (p *Program) ScratchWord() Arg {
	p.scratch = max(p.scratch, 8)
	return Arg{argScratchWord, 0}
}

// recordNames are the records' names in the text form, from launch.RecordReady on.
var recordNames = [...]string{"READY", "PID", "GATE", "STOP", "LISTENER", "MAKER-LISTENER"}

// ReportFrom makes the interpreter write failures to the descriptor in a slot, from the operation on that
// saves it there: for a report pipe that has to make room for the container's own descriptors.
func (p *Program) ReportFrom() Slot { return reportSlot }

// Report adds the operation that writes one record with the value 0; fd is the report pipe.
func (p *Program) Report(fd Arg, kind uint64) {
	_, write := p.ReportValue(kind)
	write(fd)
}

// ReportValue returns the slot that holds a record's value, and the function that adds the operation that
// writes the record.
func (p *Program) ReportValue(kind uint64) (Slot, func(fd Arg)) {
	rec := p.words(0, kind, 0)
	p.slots = append(p.slots, slotName{rec, recordNames[kind-launch.RecordReady]}, slotName{rec + 8, "value"})
	return Slot(rec + 8), func(fd Arg) {
		p.Call(unix.SYS_WRITE, fd, Arg{argAddr, uint64(rec)}, Int(launch.RecordSize)).Want(launch.RecordSize, unix.EPIPE)
	}
}

// Failure returns the slot that holds the value of a record that says that operation i failed, and the
// function that adds the operation that writes the record: for failures that are no errno.
func (p *Program) Failure(i int) (Slot, func(fd Arg)) {
	rec := p.words(0, uint64(i), 0)
	p.slots = append(p.slots, slotName{rec, fmt.Sprintf("FAILED %d", i)}, slotName{rec + 8, "value"})
	return Slot(rec + 8), func(fd Arg) {
		p.Call(unix.SYS_WRITE, fd, Arg{argAddr, uint64(rec)}, Int(launch.RecordSize)).Want(launch.RecordSize, unix.EPIPE)
	}
}

// Gate adds the operations that report the gate and read it: anything but the token ends the program.
func (p *Program) Gate(report, fd Arg) {
	p.Report(report, launch.RecordGate)
	p.Token(fd)
}

// Token adds the operations that read a token from the gate: anything else ends the program.
func (p *Program) Token(fd Arg) {
	buf := p.Slot("token")
	p.Call(unix.SYS_READ, fd, buf.Addr(), Int(1)).Want(1, unix.ECANCELED)
	p.Load(buf.Val(), 0xff).Want(launch.GateToken, unix.ECANCELED)
}

// SendFD adds the operation that sends the descriptor in the returned slot over the socket at fd.
func (p *Program) SendFD() (Slot, func(sock Arg)) {
	payload := p.words(0, 0)
	iov := p.words(1, uint64(payload), 1)
	cmsg := p.words(0, unix.SizeofCmsghdr+4, uint64(unix.SOL_SOCKET)|unix.SCM_RIGHTS<<32, 0)
	msg := p.words(1<<2|1<<4, 0, 0, uint64(iov), 1, uint64(cmsg), 24, 0)
	return Slot(cmsg + 16), func(sock Arg) {
		p.Call(unix.SYS_SENDMSG, sock, Arg{argAddr, uint64(msg)}, Int(unix.MSG_NOSIGNAL)).Want(1, unix.EPIPE)
	}
}

// RecvFD returns the slot that a descriptor is received in, and the function that adds the operations that
// receive it from the socket at sock: one message with one descriptor, or they fail with EPIPE.
func (p *Program) RecvFD() (Slot, func(sock Arg)) {
	payload := p.words(0, 0)
	iov := p.words(1, uint64(payload), 1)
	cmsg := p.words(0, 0, 0, 0)
	msg := p.words(1<<2|1<<4, 0, 0, uint64(iov), 1, uint64(cmsg), 24, 0)
	return Slot(cmsg + 16), func(sock Arg) {
		p.Call(unix.SYS_RECVMSG, sock, Arg{argAddr, uint64(msg)}, Int(unix.MSG_CMSG_CLOEXEC)).Want(1, unix.EPIPE)
		p.Load(Arg{argSlot, uint64(cmsg) + 8}, 1<<64-1).Want(unix.SOL_SOCKET|unix.SCM_RIGHTS<<32, unix.EPIPE)
	}
}

// Exit adds the end of the process.
func (p *Program) Exit(status int) { p.Call(unix.SYS_EXIT_GROUP, Int(status)) }

// check reports what the builder's user got wrong.
func (p *Program) check() error {
	for i := range p.ops {
		o := &p.ops[i]
		if o.flags&(opJumpOther|opJumpOK|opJumpErr) == 0 {
			continue
		}
		if o.target < 0 || p.labels[o.target] < 0 || int(p.labels[o.target]) >= len(p.ops) {
			return fmt.Errorf("program: operation %d (%s) goes to a label that is not bound", i, o.what)
		}
	}
	return nil
}

// Nest adds a clone(CLONE_PARENT) and body as what the child does. The child is the process from then on:
// its pid is reported on fd, and its parent exits. The child has the values of all slots. The body must end the
// child (Exit, an execve, Pause).
func (p *Program) Nest(fd Arg, body func()) {
	parent, what := p.Label(), p.what
	pid, report := p.ReportValue(launch.RecordPid)
	p.Call(unix.SYS_CLONE, Int(unix.CLONE_PARENT|uint64(unix.SIGCHLD)), Int(0), Int(0), Int(0), Int(0)).Save(pid).Else(0, parent)
	body()
	p.what = what
	p.Bind(parent)
	report(fd)
	p.Exit(0)
}

// EndOn adds the operations that make a signal end the process with the status that shells give it, 128 and
// the signal's number. The first process of a PID namespace ignores what it has no handler for. Handlers go
// with the execve.
func (p *Program) EndOn(signals ...syscall.Signal) {
	const restorer = 0x04000000 // SA_RESTORER, without which amd64 kills by SIGSEGV instead
	action := p.Words(textAddr+catchOff, restorer, textAddr+catchOff, 0)
	for _, sig := range signals {
		p.Call(unix.SYS_RT_SIGACTION, Int(sig), action, Int(0), Int(8))
	}
}

// Pause adds waiting for ever. Only a signal that kills ends it.
func (p *Program) Pause() {
	again := p.Label()
	p.Bind(again)
	p.Call(unix.SYS_PPOLL, Int(0), Int(0), Int(0), Int(0)).Then(again).Catch(again)
}
