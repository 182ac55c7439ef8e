package systemd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// decoder reads values.
type decoder struct {
	b     []byte
	pos   int
	order binary.ByteOrder
}

func (d *decoder) take(n, align int) ([]byte, error) {
	for d.pos%align != 0 {
		d.pos++
	}
	if n < 0 || d.pos > len(d.b) || n > len(d.b)-d.pos {
		return nil, errTruncated
	}
	d.pos += n
	return d.b[d.pos-n : d.pos], nil
}

func (d *decoder) u32() (uint32, error) {
	b, err := d.take(4, 4)
	if err != nil {
		return 0, err
	}
	return d.order.Uint32(b), nil
}

func (d *decoder) str(n int) (string, error) {
	b, err := d.take(n+1, 1)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

func (d *decoder) values(sig string, depth int) (list []any, err error) {
	for sig != "" {
		one, rest, err := nextType(sig, depth)
		if err != nil {
			return nil, err
		}
		v, err := d.value(one, depth)
		if err != nil {
			return nil, err
		}
		list, sig = append(list, v), rest
	}
	return list, nil
}

func (d *decoder) value(sig string, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("D-Bus message: it nests too deep")
	}
	switch sig[0] {
	case 's', 'o':
		n, err := d.u32()
		if err != nil || n > maxMessage {
			return nil, errTruncated
		}
		return d.str(int(n))
	case 'g', 'v':
		b, err := d.take(1, 1)
		if err != nil {
			return nil, err
		}
		s, err := d.str(int(b[0]))
		if err != nil || sig == "g" {
			return s, err
		}
		if one, rest, err := nextType(s, depth); err != nil || one == "" || rest != "" {
			return nil, fmt.Errorf("D-Bus message: a variant of %q", s)
		}
		v, err := d.value(s, depth+1)
		return Value{s, v}, err
	case 'a':
		return d.array(sig[1:], depth+1)
	case '(', '{':
		if _, err := d.take(0, 8); err != nil {
			return nil, err
		}
		return d.values(sig[1:len(sig)-1], depth+1)
	}
	return d.basic(sig[0])
}

func (d *decoder) basic(letter byte) (any, error) {
	size := map[byte]int{'y': 1, 'n': 2, 'q': 2, 'b': 4, 'i': 4, 'u': 4, 'x': 8, 't': 8, 'd': 8}[letter]
	b, err := d.take(size, max(size, 1))
	if err != nil {
		return nil, err
	}
	switch letter {
	case 'y':
		return b[0], nil
	case 'n':
		return int16(d.order.Uint16(b)), nil
	case 'q':
		return d.order.Uint16(b), nil
	case 'b':
		return d.order.Uint32(b) != 0, nil
	case 'i':
		return int32(d.order.Uint32(b)), nil
	case 'u':
		return d.order.Uint32(b), nil
	case 'x':
		return int64(d.order.Uint64(b)), nil
	case 't':
		return d.order.Uint64(b), nil
	}
	return math.Float64frombits(d.order.Uint64(b)), nil
}

func (d *decoder) array(elem string, depth int) (any, error) {
	n, err := d.u32()
	if err != nil {
		return nil, err
	}
	if n > maxMessage {
		return nil, errTruncated
	}
	if _, err := d.take(0, alignment(elem)); err != nil {
		return nil, err
	}
	if elem == "y" {
		b, err := d.take(int(n), 1)
		return append([]byte{}, b...), err
	}
	end := d.pos + int(n)
	if end > len(d.b) {
		return nil, errTruncated
	}
	list := []any{}
	for d.pos < end {
		v, err := d.value(elem, depth)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// prefixSize is how much of a message tells how long it is.
const prefixSize = 16

// messageSize reads the length of a whole message from its first 16 bytes.
func messageSize(b []byte) (int, error) {
	order, err := byteOrder(b[0])
	if err != nil {
		return 0, err
	}
	body, fields := order.Uint32(b[4:]), order.Uint32(b[12:])
	if body > maxMessage || fields > maxMessage {
		return 0, errors.New("D-Bus message: it is too long")
	}
	return prefixSize + (int(fields)+7)&^7 + int(body), nil
}

func byteOrder(b byte) (binary.ByteOrder, error) {
	switch b {
	case 'l':
		return binary.LittleEndian, nil
	case 'B':
		return binary.BigEndian, nil
	}
	return nil, fmt.Errorf("D-Bus message: byte order %q", b)
}

// unmarshal decodes a whole message.
func unmarshal(b []byte) (*message, error) {
	if len(b) < prefixSize {
		return nil, errTruncated
	}
	order, err := byteOrder(b[0])
	if err != nil {
		return nil, err
	}
	m := &message{kind: b[1], serial: order.Uint32(b[8:])}
	d := &decoder{b: b, pos: 12, order: order}
	v, err := d.value("a(yv)", 0)
	if err != nil {
		return nil, err
	}
	fields, _ := v.([]any)
	for _, f := range fields {
		pair, _ := f.([]any)
		code, _ := pair[0].(byte)
		value, _ := pair[1].(Value)
		m.field(code, value)
	}
	if _, err := d.take(0, 8); err != nil {
		return nil, err
	}
	body := &decoder{b: b[d.pos:], order: order}
	m.body, err = body.values(m.sig, 0)
	return m, err
}

func (m *message) field(code byte, v Value) {
	text, _ := v.V.(string)
	switch code {
	case fieldPath:
		m.path = text
	case fieldInterface:
		m.iface = text
	case fieldMember:
		m.member = text
	case fieldErrorName:
		m.errorName = text
	case fieldSignature:
		m.sig = text
	case fieldDestination:
		m.destination = text
	case fieldReplySerial:
		m.reply, _ = v.V.(uint32)
	}
}

// text returns the body's value at index i where it is a string.
func (m *message) text(i int) string {
	if i >= len(m.body) {
		return ""
	}
	s, _ := m.body[i].(string)
	return s
}
