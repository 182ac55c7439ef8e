package launch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// wireVersion is the first byte of a marshalled Request. A launcher refuses what it does not know.
const wireVersion = 1

// Limits of a marshalled request: the kernel takes 340 lines of a map, and 253 descriptors in a message.
const (
	maxMaps    = 340
	maxFiles   = 253
	maxRlimits = 64
	maxName    = 255
	maxMessage = 64 << 10
	maxSched   = 1 << 10
)

// Bits of the flags word.
const (
	flagSetgroups = 1 << iota
	flagNested
	flagGate
	flagTerminal
	flagOOM
	flagOwner
	flagStop
	flagNotify
	flagScheduler
	flagHeld
	flagsAll = 1<<iota - 1
)

var errWire = errors.New("launch request: malformed")

// MarshalBinary encodes r for a launcher in another process. It fails for what no launcher would take.
func (r *Request) MarshalBinary() ([]byte, error) {
	if len(r.UIDMaps) > maxMaps || len(r.GIDMaps) > maxMaps || len(r.Files) > maxFiles || len(r.Enter) > maxFiles ||
		len(r.Rlimits) > maxRlimits || len(r.Name) > maxName {
		return nil, fmt.Errorf("launch request: too long: %d and %d id maps, %d files, %d limits", len(r.UIDMaps), len(r.GIDMaps), len(r.Files), len(r.Rlimits))
	}
	var flags uint64
	for i, on := range []bool{r.Setgroups, r.Nested, r.Gate, r.Terminal, r.OOMScoreAdj != nil, r.StdioOwner != nil, r.Stop, r.Notify != nil, r.Scheduler != nil, r.Held} {
		if on {
			flags |= 1 << i
		}
	}
	b := append(make([]byte, 0, 256), wireVersion)
	b = binary.AppendUvarint(b, flags)
	b = binary.AppendUvarint(b, uint64(r.Cloneflags))
	b = binary.AppendUvarint(b, uint64(len(r.Name)))
	b = append(b, r.Name...)
	b = appendMaps(b, r.UIDMaps)
	b = appendMaps(b, r.GIDMaps)
	b = binary.AppendUvarint(b, uint64(len(r.Enter)))
	for _, e := range r.Enter {
		b = binary.AppendVarint(b, int64(e.File))
		b = binary.AppendUvarint(b, uint64(e.Type))
	}
	b = binary.AppendVarint(b, int64(r.Program))
	b = binary.AppendVarint(b, int64(r.Cgroup))
	b = binary.AppendUvarint(b, uint64(len(r.Files)))
	for _, f := range r.Files {
		b = binary.AppendVarint(b, int64(f))
	}
	b = binary.AppendUvarint(b, uint64(len(r.Rlimits)))
	for _, l := range r.Rlimits {
		b = binary.AppendVarint(b, int64(l.Resource))
		b = binary.AppendUvarint(b, l.Soft)
		b = binary.AppendUvarint(b, l.Hard)
	}
	if r.OOMScoreAdj != nil {
		b = binary.AppendVarint(b, int64(*r.OOMScoreAdj))
	}
	if r.StdioOwner != nil {
		b = binary.AppendUvarint(b, uint64(r.StdioOwner.UID))
		b = binary.AppendUvarint(b, uint64(r.StdioOwner.GID))
	}
	if n := r.Notify; n != nil {
		b = binary.AppendVarint(b, int64(n.Socket))
		b = binary.AppendUvarint(b, uint64(len(n.Message)))
		for _, part := range n.Message {
			b = binary.AppendUvarint(b, uint64(len(part)))
			b = append(b, part...)
		}
	}
	if r.Scheduler != nil {
		b = binary.AppendUvarint(b, uint64(len(r.Scheduler)))
		b = append(b, r.Scheduler...)
	}
	return b, nil
}

func appendMaps(b []byte, maps []IDMap) []byte {
	b = binary.AppendUvarint(b, uint64(len(maps)))
	for _, m := range maps {
		b = binary.AppendUvarint(b, uint64(m.ContainerID))
		b = binary.AppendUvarint(b, uint64(m.HostID))
		b = binary.AppendUvarint(b, uint64(m.Size))
	}
	return b
}

// UnmarshalBinary decodes what MarshalBinary wrote, and nothing else: another version, a field out of
// range, missing and surplus bytes are errors, and r is then not to be used. Indexes are checked by Start.
func (r *Request) UnmarshalBinary(data []byte) error {
	d := decoder{b: data}
	if v := d.byte(); v != wireVersion {
		return fmt.Errorf("launch request: version %d is not known, this launcher speaks %d", v, wireVersion)
	}
	flags := d.uint(flagsAll)
	*r = Request{
		Setgroups: flags&flagSetgroups != 0, Nested: flags&flagNested != 0,
		Gate: flags&flagGate != 0, Terminal: flags&flagTerminal != 0, Stop: flags&flagStop != 0, Held: flags&flagHeld != 0,
	}
	r.Cloneflags = uintptr(d.uint(1<<40 - 1))
	r.Name = string(d.bytes(d.count(maxName)))
	r.UIDMaps = d.maps()
	r.GIDMaps = d.maps()
	for n := d.count(maxFiles); n > 0 && !d.bad; n-- {
		r.Enter = append(r.Enter, Enter{File: d.int(), Type: uint32(d.uint(1<<32 - 1))})
	}
	r.Program, r.Cgroup = d.int(), d.int()
	for n := d.count(maxFiles); n > 0 && !d.bad; n-- {
		r.Files = append(r.Files, d.int())
	}
	for n := d.count(maxRlimits); n > 0 && !d.bad; n-- {
		r.Rlimits = append(r.Rlimits, Rlimit{Resource: d.int(), Soft: d.uint(1<<64 - 1), Hard: d.uint(1<<64 - 1)})
	}
	if flags&flagOOM != 0 {
		v := d.int()
		r.OOMScoreAdj = &v
	}
	if flags&flagOwner != 0 {
		r.StdioOwner = &Owner{UID: uint32(d.uint(1<<32 - 1)), GID: uint32(d.uint(1<<32 - 1))}
	}
	if flags&flagNotify != 0 {
		r.Notify = &Notify{Socket: d.int()}
		for n := d.count(maxFiles); n > 0 && !d.bad; n-- {
			r.Notify.Message = append(r.Notify.Message, string(d.bytes(d.count(maxMessage))))
		}
	}
	if flags&flagScheduler != 0 {
		r.Scheduler = append([]byte{}, d.bytes(d.count(maxSched))...)
	}
	if d.bad || len(d.b) != 0 {
		return errWire
	}
	// One encoding per request: a number written longer than needed is refused as well.
	if again, err := r.MarshalBinary(); err != nil || !bytes.Equal(again, data) {
		return errWire
	}
	return nil
}

// decoder reads a message and remembers that something was wrong; what it then returns is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (d *decoder) bytes(n int) []byte {
	if d.bad || n > len(d.b) {
		d.bad = true
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if d.bad || n <= 0 || v > limit {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) count(limit int) int { return int(d.uint(uint64(limit))) }

func (d *decoder) int() int {
	v, n := binary.Varint(d.b)
	if d.bad || n <= 0 || v != int64(int32(v)) {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return int(v)
}

func (d *decoder) maps() []IDMap {
	var maps []IDMap
	for n := d.count(maxMaps); n > 0 && !d.bad; n-- {
		maps = append(maps, IDMap{uint32(d.uint(1<<32 - 1)), uint32(d.uint(1<<32 - 1)), uint32(d.uint(1<<32 - 1))})
	}
	return maps
}
