// Package decode reads JSON into Go values as encoding/json does, in a program that reads one document and ends.
//
// encoding/json prepares for every type that a type can reach before it reads the first byte, encoders
// included, which for the configuration of a container takes longer than making its namespaces. This package looks at the types that
// the document has values for. It reads what ordinary documents are made of; whatever else there is, every
// error included, it leaves to encoding/json, which starts anew. So what it accepts it has to read as
// encoding/json would, and it never words an error.
package decode

import (
	"encoding"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// JSON is json.Unmarshal into a value that is zero so far; v points to it. The data is not kept.
func JSON(data []byte, v any) error {
	p := reflect.ValueOf(v)
	d := &decoder{data: string(data), structs: map[reflect.Type]*fields{}}
	if p.Kind() == reflect.Pointer && !p.IsNil() && p.Elem().IsZero() {
		if d.value(p.Elem(), 0) && d.next() == 0 && d.pos == len(d.data) {
			return nil
		}
		p.Elem().SetZero()
	}
	return json.Unmarshal(data, v)
}

// maxDepth is how deep values may lie in each other.
const maxDepth = 64

// decoder is one reading. Its methods return false for what is not theirs to read.
type decoder struct {
	data    string
	pos     int
	structs map[reflect.Type]*fields
}

// fields are the fields of a struct by their names in JSON, those of embedded structs included.
type fields struct {
	names []string
	index [][]int
}

var (
	unmarshaler     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// next skips white space and returns the byte after it, 0 at the end.
func (d *decoder) next() byte {
	for ; d.pos < len(d.data); d.pos++ {
		switch c := d.data[d.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take skips white space and the byte c, when that is next.
func (d *decoder) take(c byte) bool {
	if d.next() != c || c == 0 {
		return false
	}
	d.pos++
	return true
}

// word skips a literal.
func (d *decoder) word(w string) bool {
	if !strings.HasPrefix(d.data[d.pos:], w) {
		return false
	}
	d.pos += len(w)
	return true
}

// value reads the next value into v, which is zero.
func (d *decoder) value(v reflect.Value, depth int) bool {
	c := d.next()
	if depth > maxDepth {
		return false
	}
	if t := v.Type(); t.PkgPath() != "" { // only such types have methods
		if p := reflect.PointerTo(t); p.Implements(unmarshaler) || p.Implements(textUnmarshaler) {
			begin := d.pos
			if !d.skip(depth) {
				return false
			}
			text := []byte(d.data[begin:d.pos])
			if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
				return u.UnmarshalJSON(text) == nil
			}
			return json.Unmarshal(text, v.Addr().Interface()) == nil
		}
	}
	if c == 'n' {
		return v.Kind() != reflect.Interface && d.word("null") // leaves what is there, which is nothing
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(v.Elem(), depth+1)
	case reflect.Struct:
		return d.object(func(name string) bool { return d.field(v, name, depth) })
	case reflect.Map:
		return d.entries(v, depth)
	case reflect.Slice:
		return d.list(v, depth)
	case reflect.String:
		s, ok := d.text()
		v.SetString(s)
		return ok
	case reflect.Bool:
		v.SetBool(c == 't')
		return d.word("true") || d.word("false")
	}
	return d.integer(v)
}

// object reads an object.
func (d *decoder) object(member func(name string) bool) bool {
	if !d.take('{') {
		return false
	}
	if d.take('}') {
		return true
	}
	for {
		d.next()
		name, ok := d.text()
		if !ok || !d.take(':') || !member(name) {
			return false
		}
		if !d.take(',') {
			return d.take('}')
		}
	}
}

// field reads the value of a struct's field, or skips what the struct has no field for.
func (d *decoder) field(v reflect.Value, name string, depth int) bool {
	t := v.Type()
	f := d.structs[t]
	if f == nil {
		f = &fields{make([]string, 0, t.NumField()), make([][]int, 0, t.NumField())}
		if !f.add(t, nil) {
			return false
		}
		d.structs[t] = f
	}
	for i, n := range f.names {
		if n == name {
			field := v.FieldByIndex(f.index[i]) // a name that comes twice is merged, by rules of encoding/json's own
			return field.IsZero() && d.value(field, depth+1)
		}
	}
	for _, n := range f.names {
		if strings.EqualFold(n, name) {
			return false
		}
	}
	d.next()
	return d.skip(depth + 1)
}

// add adds the fields of t. Two of one name, and what tags can say beside names, are for encoding/json.
func (f *fields) add(t reflect.Type, above []int) bool {
	for i := range t.NumField() {
		sf := t.Field(i)
		tag, tagged := sf.Tag.Lookup("json")
		name, rest, _ := strings.Cut(tag, ",")
		index := sf.Index
		if len(above) > 0 {
			index = append(append([]int{}, above...), i)
		}
		switch {
		case tag == "-" || !sf.IsExported() && !sf.Anonymous:
			continue
		case strings.Contains(rest, "string"):
			return false
		case sf.Anonymous && name == "":
			if sf.Type.Kind() != reflect.Struct || !f.add(sf.Type, index) {
				return false
			}
			continue
		case !sf.IsExported():
			return false
		case !tagged || name == "":
			name = sf.Name
		}
		for _, n := range f.names {
			if n == name {
				return false
			}
		}
		f.names, f.index = append(f.names, name), append(f.index, index)
	}
	return true
}

// entries reads a map with strings for keys.
func (d *decoder) entries(v reflect.Value, depth int) bool {
	t := v.Type()
	if t.Key() != reflect.TypeFor[string]() {
		return false
	}
	v.Set(reflect.MakeMap(t))
	return d.object(func(name string) bool {
		key, elem := reflect.ValueOf(name), reflect.New(t.Elem()).Elem()
		if v.MapIndex(key).IsValid() || !d.value(elem, depth+1) {
			return false
		}
		v.SetMapIndex(key, elem)
		return true
	})
}

// list reads an array into a slice. Bytes are a string in JSON.
func (d *decoder) list(v reflect.Value, depth int) bool {
	if v.Type().Elem().Kind() == reflect.Uint8 || !d.take('[') {
		return false
	}
	if d.take(']') {
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		return true
	}
	for n := 0; ; n++ {
		if n == v.Cap() {
			v.Grow(1)
		}
		v.SetLen(n + 1)
		if !d.value(v.Index(n), depth+1) {
			return false
		}
		if !d.take(',') {
			return d.take(']')
		}
	}
}

// text reads a string.
func (d *decoder) text() (string, bool) {
	if !d.word(`"`) {
		return "", false
	}
	for begin, escaped := d.pos, false; d.pos < len(d.data); d.pos++ {
		switch c := d.data[d.pos]; {
		case c == '"':
			s := d.data[begin:d.pos]
			d.pos++
			if escaped {
				return unescape(s)
			}
			return s, utf8.ValidString(s)
		case c == '\\':
			escaped = true
			d.pos++
		case c < ' ':
			return "", false
		}
	}
	return "", false
}

// unescape undoes the escapes of a string, but for halves of surrogate pairs.
func unescape(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++ // text has seen the byte that follows
		switch c := s[i]; c {
		case '"', '\\', '/':
			b.WriteByte(c)
		case 'u':
			if i+4 >= len(s) {
				return "", false
			}
			n, err := strconv.ParseUint(s[i+1:i+5], 16, 16)
			if err != nil || n >= 0xd800 && n < 0xe000 {
				return "", false
			}
			b.WriteRune(rune(n))
			i += 4
		default:
			at := strings.IndexByte("bfnrt", c)
			if at < 0 {
				return "", false
			}
			b.WriteByte("\b\f\n\r\t"[at])
		}
	}
	return b.String(), utf8.ValidString(b.String())
}

// integer reads a number into an integer of any size.
func (d *decoder) integer(v reflect.Value) bool {
	begin := d.pos
	if !d.number() {
		return false
	}
	s := d.data[begin:d.pos]
	switch {
	case v.CanInt():
		n, err := strconv.ParseInt(s, 10, v.Type().Bits())
		v.SetInt(n)
		return err == nil
	case v.CanUint():
		n, err := strconv.ParseUint(s, 10, v.Type().Bits())
		v.SetUint(n)
		return err == nil
	}
	return false
}

// number skips a whole number.
func (d *decoder) number() bool {
	d.word("-")
	begin := d.pos
	for d.pos < len(d.data) && '0' <= d.data[d.pos] && d.data[d.pos] <= '9' {
		d.pos++
	}
	if d.pos == begin || d.data[begin] == '0' && d.pos > begin+1 {
		return false
	}
	return d.pos == len(d.data) || strings.IndexByte(".eE", d.data[d.pos]) < 0
}

// skip reads past a value that nobody wants.
func (d *decoder) skip(depth int) bool {
	if depth > maxDepth {
		return false
	}
	switch d.next() {
	case '{':
		return d.object(func(string) bool { return d.skip(depth + 1) })
	case '[':
		d.pos++
		if d.take(']') {
			return true
		}
		for {
			if !d.skip(depth + 1) {
				return false
			}
			if !d.take(',') {
				return d.take(']')
			}
		}
	case '"':
		_, ok := d.text()
		return ok
	case 't':
		return d.word("true")
	case 'f':
		return d.word("false")
	case 'n':
		return d.word("null")
	}
	return d.number()
}
