package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Registers of the device program. R1 holds the context on entry.
const (
	r0 = iota // the answer
	r1        // the context, then scratch
	r2        // the kind of device
	r3        // the kinds of access that no rule has allowed yet
	r4        // major
	r5        // minor
)

const (
	opLoad    = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W // dst = *(u32 *)(src + off)
	opMove    = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	opSet     = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	opAnd     = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opShift   = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	opIfEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opIfNot   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	opExit    = unix.BPF_JMP | unix.BPF_EXIT
)

// insn is an eBPF instruction (struct bpf_insn).
type insn struct {
	op       uint8
	dst, src uint8
	off      int16
	imm      int32
}

func (i insn) bytes() []byte {
	b := []byte{i.op, i.dst | i.src<<4}
	b = binary.NativeEndian.AppendUint16(b, uint16(i.off))
	return binary.NativeEndian.AppendUint32(b, uint32(i.imm))
}

// compileDevices makes the program that answers for a device whether the rules let it be used as asked: 1
// or 0. The last rule about a device and a kind of access decides; what no rule names is denied. The
// context is struct bpf_cgroup_dev_ctx: access<<16|kind, major, minor.
func compileDevices(rules []rule) []insn {
	out := []insn{
		{opLoad, r2, r1, 0, 0}, {opLoad, r3, r1, 0, 0}, {opAnd, r2, 0, 0, 0xffff}, {opShift, r3, 0, 0, 16},
		{opLoad, r4, r1, 4, 0}, {opLoad, r5, r1, 8, 0},
	}
	for _, r := range slices.Backward(rules) {
		out = append(out, r.compile()...)
		if r.kind == 'a' && r.access == mayAll {
			return out // the verifier refuses what nothing reaches
		}
	}
	return append(out, insn{op: opSet, dst: r0, imm: 0}, insn{op: opExit})
}

// compile tests one rule, from its last: a rule that does not answer goes on behind its code.
func (r rule) compile() []insn {
	var body []insn
	answer := func(v int32) []insn { return []insn{{op: opSet, dst: r0, imm: v}, {op: opExit}} }
	switch {
	case r.access == mayAll && r.allow:
		body = answer(1)
	case r.access == mayAll:
		body = answer(0)
	case r.allow: // what it allows is settled
		body = append([]insn{{op: opAnd, dst: r3, imm: int32(mayAll &^ r.access)}, {op: opIfNot, dst: r3, off: 2}}, answer(1)...)
	default:
		body = append([]insn{{op: opMove, dst: r1, src: r3}, {op: opAnd, dst: r1, imm: int32(r.access)}, {op: opIfEqual, dst: r1, off: 2}}, answer(0)...)
	}
	var tests []insn
	if r.kind != 'a' {
		kind := int32(unix.BPF_DEVCG_DEV_BLOCK)
		if r.kind == 'c' {
			kind = unix.BPF_DEVCG_DEV_CHAR
		}
		tests = append(tests, insn{op: opIfNot, dst: r2, imm: kind})
	}
	if r.major >= 0 {
		tests = append(tests, insn{op: opIfNot, dst: r4, imm: int32(r.major)})
	}
	if r.minor >= 0 {
		tests = append(tests, insn{op: opIfNot, dst: r5, imm: int32(r.minor)})
	}
	for i := range tests {
		tests[i].off = int16(len(tests) - i - 1 + len(body))
	}
	return append(tests, body...)
}

// bpf makes a bpf(2) call with attr, whose pointers stay alive by keep.
func bpf[T any](cmd int, attr *T, keep ...any) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
		runtime.KeepAlive(keep)
		switch {
		case errno == unix.EINTR, errno == unix.EAGAIN:
			continue // EAGAIN: the verifier was interrupted by a signal
		case errno != 0:
			return -1, os.NewSyscallError("bpf", errno)
		}
		return int(n), nil
	}
}

// loadAttr begins union bpf_attr of BPF_PROG_LOAD.
type loadAttr struct {
	kind, count    uint32
	insns, license uint64
	_              uint32 // logLevel
	_              uint32 // logSize
	_              uint64 // logBuf
	_              uint32 // kernVersion
	_              uint32 // flags
	name           [16]byte
}

// program loads the device program for the rules, or finds it loaded: containers mostly have the same few
// filters, and verifying one costs more than attaching it. The descriptor is the host's, which is locked.
func (h *Host) program(rules []rule) (int, error) {
	var code []byte
	list := compileDevices(rules)
	for _, i := range list {
		code = append(code, i.bytes()...)
	}
	if fd, ok := h.programs[string(code)]; ok {
		return fd, nil
	}
	license := []byte("Apache-2.0\x00")
	attr := loadAttr{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(list)),
		insns: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	copy(attr.name[:], "cri_devices")
	fd, err := bpf(unix.BPF_PROG_LOAD, &attr, &code, &license)
	if err != nil {
		return -1, fmt.Errorf("load the device program (%d instructions): %w", len(list), err)
	}
	if len(h.programs) >= 64 { // an odd filter for every container must not pile up
		for k, old := range h.programs {
			unix.Close(old)
			delete(h.programs, k)
			break
		}
	}
	h.programs[string(code)] = fd
	return fd, nil
}

// attachAttr is union bpf_attr of BPF_PROG_ATTACH and BPF_PROG_DETACH.
type attachAttr struct{ target, prog, kind, flags, replace uint32 }

// queryAttr is union bpf_attr of BPF_PROG_QUERY.
type queryAttr struct {
	target, kind, _, _ uint32
	ids                uint64
	count, _           uint32
}

// attached opens the device programs attached to the group itself.
func attached(cgroup int) ([]int, error) {
	ids := make([]uint32, 64) // BPF_CGROUP_MAX_PROGS
	q := queryAttr{target: uint32(cgroup), kind: unix.BPF_CGROUP_DEVICE, ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: uint32(len(ids))}
	if _, err := bpf(unix.BPF_PROG_QUERY, &q, &ids); err != nil {
		return nil, fmt.Errorf("list device programs: %w", err)
	}
	var fds []int
	for _, id := range ids[:q.count] {
		attr := struct{ id, next, flags uint32 }{id: id}
		fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, &attr)
		if errors.Is(err, unix.ENOENT) {
			continue // detached meanwhile
		}
		if err != nil {
			closeFDs(fds)
			return nil, fmt.Errorf("open device program %d: %w", id, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// setDevices2 puts a device program on a v2 group in place of those it has. A filter that lets everything
// through is none.
func setDevices2(t *txn, d dir, rules []rule) error {
	group, err := openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.name(""), Err: err}
	}
	t.fds = append(t.fds, group)
	old, err := attached(group)
	if err != nil {
		return err
	}
	t.fds = append(t.fds, old...)
	if t.update {
		t.undo = append(t.undo, func() error { return swap(group, old) })
	}
	if opens(rules) {
		return swap(group, nil)
	}
	d.host.mu.Lock() // a program that is dropped from the cache is closed
	defer d.host.mu.Unlock()
	prog, err := d.host.program(rules)
	if err != nil {
		return err
	}
	return swap(group, []int{prog})
}

// swap makes progs the group's device programs. One is replaced by one at a stroke; otherwise the new ones
// are there before the old ones go, so that the group never is without a filter it had or is to have.
func swap(group int, progs []int) error {
	old, err := attached(group)
	if err != nil {
		return err
	}
	defer closeFDs(old)
	for _, prog := range progs {
		a := attachAttr{target: uint32(group), prog: uint32(prog), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
		if len(old) == 1 && len(progs) == 1 {
			a.flags |= unix.BPF_F_REPLACE
			a.replace = uint32(old[0])
		}
		if _, err := bpf(unix.BPF_PROG_ATTACH, &a); err != nil && !same(prog, old) {
			return fmt.Errorf("attach the device program: %w", err)
		}
	}
	if len(old) == 1 && len(progs) == 1 {
		return nil
	}
	for _, fd := range old {
		if same(fd, progs) {
			continue
		}
		a := attachAttr{target: uint32(group), prog: uint32(fd), kind: unix.BPF_CGROUP_DEVICE}
		if _, err := bpf(unix.BPF_PROG_DETACH, &a); err != nil {
			return fmt.Errorf("detach the former device program: %w", err)
		}
	}
	return nil
}

// same reports whether prog is one of the programs list has descriptors of. Attaching what is attached is
// EINVAL.
func same(prog int, list []int) bool {
	id := programID(prog)
	return id != 0 && slices.ContainsFunc(list, func(fd int) bool { return programID(fd) == id })
}

// programID is the kernel's number of a program, 0 when it cannot be had.
func programID(fd int) uint32 {
	info := [64]uint32{} // struct bpf_prog_info begins with type and id
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(fd), uint32(unsafe.Sizeof(info)), uint64(uintptr(unsafe.Pointer(&info[0])))}
	if _, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, &attr, &info); err != nil {
		return 0
	}
	return info[1]
}
