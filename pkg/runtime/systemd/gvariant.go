package systemd

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ParseValue reads a value in GVariant's text format: 'text', true, 5, uint64 5, 1.5, ['a', 'b'], (1, 'a'),
// {'k': 1}, <5>, b"bytes", @as []. A number without a type is an int32, one with a point or an exponent a double.
func ParseValue(text string) (Value, error) {
	p := &textParser{s: text}
	v, err := p.parse("", 0)
	if err == nil {
		if p.space(); p.s != "" {
			err = fmt.Errorf("%q is left over", p.s)
		}
	}
	return v, err
}

type textParser struct{ s string }

// keywords are the types that may stand before a value by their names.
var keywords = map[string]string{
	"boolean": "b", "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t",
	"double": "d", "string": "s", "objectpath": "o", "signature": "g",
}

func (p *textParser) space() { p.s = strings.TrimLeft(p.s, " \t\n\r") }

// accept takes a character if it comes next.
func (p *textParser) accept(c byte) bool {
	if p.space(); p.s == "" || p.s[0] != c {
		return false
	}
	p.s = p.s[1:]
	return true
}

// parse reads one value, of the type where want is one.
func (p *textParser) parse(want string, depth int) (Value, error) {
	if depth > maxDepth {
		return Value{}, errors.New("it nests too deep")
	}
	p.space()
	if p.s == "" {
		return Value{}, errors.New("it ends too early")
	}
	switch c := p.s[0]; {
	case c == '@':
		sig, rest, err := nextType(p.s[1:], 0)
		if err != nil {
			return Value{}, err
		}
		p.s = rest
		return p.typed(sig, want, depth)
	case c == '\'' || c == '"':
		s, err := p.quoted()
		if err != nil {
			return Value{}, err
		}
		return textValue(s, want)
	case c == '[':
		return p.array(want, depth)
	case c == '(':
		return p.tuple(want, depth)
	case c == '{':
		return p.dict(want, depth)
	case c == '<':
		p.s = p.s[1:]
		v, err := p.parse("", depth+1)
		if err == nil && !p.accept('>') {
			err = errors.New("a variant without its >")
		}
		return fits(Value{"v", v}, want, err)
	case strings.HasPrefix(p.s, "b'") || strings.HasPrefix(p.s, `b"`):
		p.s = p.s[1:]
		s, err := p.quoted()
		return fits(Value{"ay", append([]byte(s), 0)}, want, err)
	}
	return p.word(want, depth)
}

// fits checks a value against the type that is wanted.
func fits(v Value, want string, err error) (Value, error) {
	if err == nil && want != "" && want != v.Sig {
		err = fmt.Errorf("a value of type %q where %q is wanted", v.Sig, want)
	}
	return v, err
}

func (p *textParser) typed(sig, want string, depth int) (Value, error) {
	if want != "" && want != sig {
		return Value{}, fmt.Errorf("type %q where %q is wanted", sig, want)
	}
	return p.parse(sig, depth+1)
}

func textValue(s, want string) (Value, error) {
	switch want {
	case "", "s":
		return Value{"s", s}, nil
	case "o", "g":
		return Value{want, s}, nil
	}
	return Value{}, fmt.Errorf("a string where %q is wanted", want)
}

// quoted reads a string in single or double quotes, with the escapes of C.
func (p *textParser) quoted() (string, error) {
	quote := p.s[0]
	var b strings.Builder
	for i := 1; i < len(p.s); i++ {
		switch c := p.s[i]; c {
		case quote:
			p.s = p.s[i+1:]
			return b.String(), nil
		case '\\':
			r, n, err := escape(p.s[i+1:])
			if err != nil {
				return "", err
			}
			b.WriteString(r)
			i += n
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("a string without its closing quote")
}

// escape reads what follows a backslash, and says how long it is.
func escape(s string) (string, int, error) {
	if s == "" {
		return "", 0, errors.New("a string without its closing quote")
	}
	if i := strings.IndexByte("abfnrtv", s[0]); i >= 0 {
		return string("\a\b\f\n\r\t\v"[i]), 1, nil
	}
	if n := map[byte]int{'u': 4, 'U': 8}[s[0]]; n > 0 {
		if len(s) <= n {
			return "", 0, errors.New("a string without its closing quote")
		}
		r, err := strconv.ParseUint(s[1:1+n], 16, 32)
		if err != nil {
			return "", 0, fmt.Errorf("the escape \\%s: %w", s[:1+n], err)
		}
		return string(rune(r)), 1 + n, nil
	}
	return s[:1], 1, nil
}

// word reads what is written without marks: true, false, a number, or a type's name before a value.
func (p *textParser) word(want string, depth int) (Value, error) {
	n := strings.IndexAny(p.s, " \t\n\r,]})>:")
	if n < 0 {
		n = len(p.s)
	}
	w := p.s[:n]
	p.s = p.s[n:]
	if sig := keywords[w]; sig != "" {
		return p.typed(sig, want, depth)
	}
	if w == "true" || w == "false" {
		return fits(Value{"b", w == "true"}, want, nil)
	}
	if want == "" {
		want = "i"
		if !strings.HasPrefix(w, "0x") && strings.ContainsAny(w, ".eE") {
			want = "d"
		}
	}
	v, err := numeral(w, want)
	if err != nil {
		return Value{}, fmt.Errorf("%q is no value of type %q", w, want)
	}
	return Value{want, v}, nil
}

func numeral(w, sig string) (any, error) {
	signed := func(bits int) (int64, error) { return strconv.ParseInt(w, 0, bits) }
	unsigned := func(bits int) (uint64, error) { return strconv.ParseUint(w, 0, bits) }
	switch sig {
	case "y":
		n, err := unsigned(8)
		return byte(n), err
	case "n":
		n, err := signed(16)
		return int16(n), err
	case "q":
		n, err := unsigned(16)
		return uint16(n), err
	case "i":
		n, err := signed(32)
		return int32(n), err
	case "u":
		n, err := unsigned(32)
		return uint32(n), err
	case "x":
		return signed(64)
	case "t":
		return unsigned(64)
	case "d":
		return strconv.ParseFloat(w, 64)
	}
	return nil, errors.New("no number")
}

func (p *textParser) array(want string, depth int) (Value, error) {
	elem := ""
	if want != "" {
		if want[0] != 'a' {
			return Value{}, fmt.Errorf("an array where %q is wanted", want)
		}
		elem = want[1:]
	}
	p.s = p.s[1:]
	list := []any{}
	for first := true; !p.accept(']'); first = false {
		if !first && !p.accept(',') {
			return Value{}, errors.New("an array without its ]")
		}
		v, err := p.parse(elem, depth+1)
		if err != nil {
			return Value{}, err
		}
		elem, list = v.Sig, append(list, v.V)
	}
	if elem == "" {
		return Value{}, errors.New("an empty array without a type: write @as []")
	}
	if elem == "y" {
		b := make([]byte, len(list))
		for i, v := range list {
			b[i], _ = v.(byte)
		}
		return Value{"ay", b}, nil
	}
	return Value{"a" + elem, list}, nil
}

func (p *textParser) tuple(want string, depth int) (Value, error) {
	if want != "" && want[0] != '(' {
		return Value{}, fmt.Errorf("a tuple where %q is wanted", want)
	}
	left, typed := strings.TrimSuffix(strings.TrimPrefix(want, "("), ")"), want != ""
	p.s = p.s[1:]
	sig, list := "(", []any{}
	for first := true; !p.accept(')'); first = false {
		if !first && !p.accept(',') {
			return Value{}, errors.New("a tuple without its )")
		}
		if len(list) == 1 && p.accept(')') { // "(1,)"
			break
		}
		one := ""
		if typed {
			var err error
			if one, left, err = nextType(left, 0); err != nil {
				return Value{}, fmt.Errorf("a tuple with more than %q", want)
			}
		}
		v, err := p.parse(one, depth+1)
		if err != nil {
			return Value{}, err
		}
		sig, list = sig+v.Sig, append(list, v.V)
	}
	if len(list) == 0 || left != "" {
		return Value{}, errors.New("a tuple that lacks values")
	}
	return Value{sig + ")", list}, nil
}

func (p *textParser) dict(want string, depth int) (Value, error) {
	key, value := "", ""
	if want != "" {
		if !strings.HasPrefix(want, "a{") {
			return Value{}, fmt.Errorf("a dictionary where %q is wanted", want)
		}
		key, value = want[2:3], want[3:len(want)-1]
	}
	p.s = p.s[1:]
	list := []any{}
	for first := true; !p.accept('}'); first = false {
		if !first && !p.accept(',') {
			return Value{}, errors.New("a dictionary without its }")
		}
		k, err := p.parse(key, depth+1)
		if err != nil {
			return Value{}, err
		}
		if !p.accept(':') {
			return Value{}, errors.New("a dictionary's key without a value")
		}
		v, err := p.parse(value, depth+1)
		if err != nil {
			return Value{}, err
		}
		key, value, list = k.Sig, v.Sig, append(list, []any{k.V, v.V})
	}
	sig := "a{" + key + value + "}"
	if _, _, err := nextType(sig, 0); err != nil {
		return Value{}, errors.New("a dictionary without types: write @a{ss} {}")
	}
	return Value{sig, list}, nil
}
