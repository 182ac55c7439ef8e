package wire

import (
	"encoding/binary"
	"errors"
	"time"
)

// errShort says that a body ends inside a field.
var errShort = errors.New("message ends inside a field")

// Codec writes or reads the fields of a message, one after the other. One method of a message lists its
// fields for both directions, so that they cannot differ. A field is appended to a message and never
// removed or moved: a reader that knows fewer fields ignores the rest, and one that knows more finds
// zero values.
type Codec struct {
	buf     []byte
	reading bool
	err     error
}

// Message is what a frame's body holds.
type Message interface{ Fields(c *Codec) }

// Marshal encodes m.
func Marshal(m Message) []byte {
	if m == nil {
		return nil
	}
	var c Codec
	m.Fields(&c)
	return c.buf
}

// Unmarshal decodes body into m, which should be zero. Unknown trailing bytes are ignored, absent trailing
// fields stay as they are; a body that ends inside a field is an error.
func Unmarshal(body []byte, m Message) error {
	c := Codec{buf: body, reading: true}
	m.Fields(&c)
	return c.err
}

// Uint codes an unsigned number of up to 64 bits.
func (c *Codec) Uint(p *uint64) {
	if !c.reading {
		c.buf = binary.AppendUvarint(c.buf, *p)
		return
	}
	if c.err != nil || len(c.buf) == 0 {
		return
	}
	v, n := binary.Uvarint(c.buf)
	if n <= 0 {
		c.err, c.buf = errShort, nil
		return
	}
	*p, c.buf = v, c.buf[n:]
}

// Int codes a signed number.
func (c *Codec) Int(p *int64) {
	u := uint64(*p)<<1 ^ uint64(*p>>63) // zigzag: small negative numbers stay short
	c.Uint(&u)
	if c.reading {
		*p = int64(u>>1) ^ -int64(u&1)
	}
}

// Int32 codes a number that fits 32 bits: pids, exit codes, signals. A larger one is an error.
func (c *Codec) Int32(p *int) {
	v := int64(*p)
	c.Int(&v)
	if c.reading {
		if v != int64(int32(v)) && c.err == nil {
			c.err = errors.New("number does not fit 32 bits")
			return
		}
		*p = int(v)
	}
}

// Bool codes a truth value.
func (c *Codec) Bool(p *bool) {
	var u uint64
	if *p {
		u = 1
	}
	c.Uint(&u)
	if c.reading {
		*p = u != 0
	}
}

// Bytes codes a byte string. What is read shares memory with the body.
func (c *Codec) Bytes(p *[]byte) {
	n := uint64(len(*p))
	if !c.reading {
		c.Uint(&n)
		c.buf = append(c.buf, *p...)
		return
	}
	if len(c.buf) == 0 {
		return
	}
	n = 0
	c.Uint(&n)
	if c.err != nil {
		return
	}
	if n > uint64(len(c.buf)) {
		c.err, c.buf = errShort, nil
		return
	}
	*p, c.buf = c.buf[:n:n], c.buf[n:]
}

// String codes a string.
func (c *Codec) String(p *string) {
	if !c.reading {
		n := uint64(len(*p))
		c.Uint(&n)
		c.buf = append(c.buf, *p...)
		return
	}
	var b []byte
	c.Bytes(&b)
	if b != nil {
		*p = string(b)
	}
}

// Time codes a wall clock time in nanoseconds since 1970; the zero Time stays zero.
func (c *Codec) Time(p *time.Time) {
	var ns int64
	if !p.IsZero() {
		ns = p.UnixNano()
	}
	c.Int(&ns)
	if c.reading && ns != 0 {
		*p = time.Unix(0, ns)
	}
}

// Len codes the length of a list and returns it. When reading, a length that the rest of the body cannot
// hold (an element takes a byte at least) is an error and 0.
func (c *Codec) Len(n int) int {
	u := uint64(n)
	c.Uint(&u)
	if c.reading && u > uint64(len(c.buf)) {
		if c.err == nil {
			c.err = errShort
		}
		return 0
	}
	return int(u)
}
