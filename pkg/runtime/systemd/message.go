package systemd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Value is a D-Bus value with its type: what a variant holds. V is, by the first letter of Sig: y byte, b bool,
// n int16, q uint16, i int32, u uint32, x int64, t uint64, d float64; s, o and g string; v Value; ay []byte; any
// other array []any of its elements, and a struct or dict entry []any of its fields.
type Value struct {
	Sig string
	V   any
}

// Property is a property of a unit.
type Property struct {
	Name  string
	Value Value
}

// Kinds of messages.
const (
	typeCall   = 1
	typeReturn = 2
	typeError  = 3
	typeSignal = 4
)

// Header fields.
const (
	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
)

// maxMessage is what the specification allows.
const maxMessage = 128 << 20

// maxDepth is how deep containers nest, by the specification.
const maxDepth = 64

var errTruncated = errors.New("D-Bus message: it ends too early")

// message is one D-Bus message.
type message struct {
	kind                   byte
	serial, reply          uint32
	path, iface, member    string
	destination, errorName string
	sig                    string
	body                   []any
}

// encoder appends values in the specification's marshalling format, little endian.
type encoder struct{ b []byte }

func (e *encoder) pad(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) u32(v uint32) {
	e.pad(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, v)
}

func (e *encoder) str(s string) {
	e.u32(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}

// values encodes one value for each complete type of sig.
func (e *encoder) values(sig string, list []any) error {
	for _, v := range list {
		one, rest, err := nextType(sig, 0)
		if err != nil {
			return err
		}
		if err := e.value(one, v); err != nil {
			return err
		}
		sig = rest
	}
	if sig != "" {
		return fmt.Errorf("D-Bus value: nothing for type %q", sig)
	}
	return nil
}

func (e *encoder) value(sig string, v any) error {
	bad := func() error { return fmt.Errorf("D-Bus value: %T is no %q", v, sig) }
	switch sig[0] {
	case 'a':
		return e.array(sig[1:], v)
	case '(', '{':
		list, ok := v.([]any)
		if !ok {
			return bad()
		}
		e.pad(8)
		return e.values(sig[1:len(sig)-1], list)
	case 'v':
		x, ok := v.(Value)
		if !ok {
			return bad()
		}
		if one, rest, err := nextType(x.Sig, 0); err != nil || one == "" || rest != "" {
			return fmt.Errorf("D-Bus value: %q is not one type", x.Sig)
		}
		e.b = append(append(append(e.b, byte(len(x.Sig))), x.Sig...), 0)
		return e.value(x.Sig, x.V)
	}
	switch x := v.(type) {
	case string:
		if strings.IndexByte(x, 0) >= 0 {
			return errors.New("D-Bus value: a string with a NUL")
		}
		switch sig {
		case "s", "o":
			e.str(x)
		case "g":
			e.b = append(append(append(e.b, byte(len(x))), x...), 0)
		default:
			return bad()
		}
		return nil
	default:
		bits, size, ok := number(sig, v)
		if !ok {
			return bad()
		}
		e.pad(size)
		for range size {
			e.b = append(e.b, byte(bits))
			bits >>= 8
		}
		return nil
	}
}

// number returns a basic value's bits and size where it is of that type.
func number(sig string, v any) (bits uint64, size int, ok bool) {
	var letter string
	switch x := v.(type) {
	case byte:
		letter, bits, size = "y", uint64(x), 1
	case bool:
		letter, size = "b", 4
		if x {
			bits = 1
		}
	case int16:
		letter, bits, size = "n", uint64(x), 2
	case uint16:
		letter, bits, size = "q", uint64(x), 2
	case int32:
		letter, bits, size = "i", uint64(x), 4
	case uint32:
		letter, bits, size = "u", uint64(x), 4
	case int64:
		letter, bits, size = "x", uint64(x), 8
	case uint64:
		letter, bits, size = "t", x, 8
	case float64:
		letter, bits, size = "d", math.Float64bits(x), 8
	}
	return bits, size, letter == sig
}

func (e *encoder) array(elem string, v any) error {
	e.u32(0)
	at := len(e.b)
	e.pad(alignment(elem))
	start := len(e.b)
	if raw, ok := v.([]byte); ok && elem == "y" {
		e.b = append(e.b, raw...)
	} else {
		list, ok := v.([]any)
		if !ok {
			return fmt.Errorf("D-Bus value: %T is no array", v)
		}
		for _, x := range list {
			if err := e.value(elem, x); err != nil {
				return err
			}
		}
	}
	binary.LittleEndian.PutUint32(e.b[at-4:], uint32(len(e.b)-start))
	return nil
}

func alignment(sig string) int {
	switch sig[0] {
	case 'y', 'g', 'v':
		return 1
	case 'n', 'q':
		return 2
	case 'x', 't', 'd', '(', '{':
		return 8
	}
	return 4
}

// nextType splits the first complete type off a signature.
func nextType(sig string, depth int) (one, rest string, err error) {
	if sig == "" {
		return "", "", errors.New("D-Bus signature: it ends too early")
	}
	if depth > maxDepth {
		return "", "", errors.New("D-Bus signature: it nests too deep")
	}
	switch c := sig[0]; {
	case strings.IndexByte("ybnqiuxtdsogv", c) >= 0:
		return sig[:1], sig[1:], nil
	case c == 'a':
		if len(sig) > 1 && sig[1] == '{' {
			return dictType(sig, depth)
		}
		elem, rest, err := nextType(sig[1:], depth+1)
		return sig[:1+len(elem)], rest, err
	case c == '(':
		in := sig[1:]
		for n := 0; ; n++ {
			if in != "" && in[0] == ')' && n > 0 {
				return sig[:len(sig)-len(in)+1], in[1:], nil
			}
			if _, in, err = nextType(in, depth+1); err != nil {
				return "", "", err
			}
		}
	}
	return "", "", fmt.Errorf("D-Bus signature: %q is no type", sig[0])
}

// dictType splits "a{kv}" off.
func dictType(sig string, depth int) (one, rest string, err error) {
	in := sig[2:]
	if in == "" || strings.IndexByte("ybnqiuxtdsog", in[0]) < 0 {
		return "", "", errors.New("D-Bus signature: a dict's key is not basic")
	}
	if _, in, err = nextType(in[1:], depth+2); err != nil {
		return "", "", err
	}
	if in == "" || in[0] != '}' {
		return "", "", errors.New("D-Bus signature: a dict entry has a key and a value")
	}
	return sig[:len(sig)-len(in)+1], in[1:], nil
}

// marshal encodes a message.
func (m *message) marshal() ([]byte, error) {
	var body encoder
	if err := body.values(m.sig, m.body); err != nil {
		return nil, err
	}
	e := encoder{b: []byte{'l', m.kind, 0, 1}}
	e.u32(uint32(len(body.b)))
	e.u32(m.serial)
	var fields []any
	add := func(code byte, sig string, v any) { fields = append(fields, []any{code, Value{sig, v}}) }
	for _, f := range []struct {
		code       byte
		sig, value string
	}{{fieldPath, "o", m.path}, {fieldInterface, "s", m.iface}, {fieldMember, "s", m.member}, {fieldErrorName, "s", m.errorName},
		{fieldDestination, "s", m.destination}, {fieldSignature, "g", m.sig}} {
		if f.value != "" {
			add(f.code, f.sig, f.value)
		}
	}
	if m.reply != 0 {
		add(fieldReplySerial, "u", m.reply)
	}
	if err := e.value("a(yv)", fields); err != nil {
		return nil, err
	}
	e.pad(8)
	return append(e.b, body.b...), nil
}
