package systemd

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

// theirs turns a value into what the D-Bus library makes of it.
func theirs(v Value) any {
	switch x := v.V.(type) {
	case Value:
		return dbus.MakeVariant(theirs(x))
	case []any:
		if v.Sig == "as" {
			out := []string{}
			for _, s := range x {
				out = append(out, s.(string))
			}
			return out
		}
	}
	return v.V
}

// TestMarshal has the D-Bus library read what we write, and us what it writes.
func TestMarshal(t *testing.T) {
	props := []any{
		[]any{"Slice", Value{"s", "a.slice"}}, []any{"Delegate", Value{"b", true}}, []any{"PIDs", Value{"au", []any{uint32(7)}}},
		[]any{"Mask", Value{"ay", []byte{1, 2, 3}}}, []any{"Max", Value{"t", uint64(infinity)}}, []any{"Nice", Value{"i", int32(-3)}},
		[]any{"Allow", Value{"a(ss)", []any{[]any{"/dev/null", "rwm"}, []any{"char-*", "m"}}}}, []any{"Empty", Value{"a(ss)", []any{}}},
		[]any{"Deep", Value{"v", Value{"a{sv}", []any{[]any{"k", Value{"d", 1.5}}}}}}, []any{"Small", Value{"y", byte(9)}},
		[]any{"Short", Value{"n", int16(-2)}}, []any{"Word", Value{"q", uint16(2)}}, []any{"Long", Value{"x", int64(-5)}},
	}
	m := &message{kind: typeCall, serial: 3, path: managerPath, iface: managerIface, member: "StartTransientUnit", destination: managerName,
		sig: "ssa(sv)a(sa(sv))", body: []any{"x.scope", "replace", props, []any{}}}
	b, err := m.marshal()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := messageSize(b); err != nil || n != len(b) {
		t.Fatalf("size %d, %v of %d", n, err, len(b))
	}
	msg, err := dbus.DecodeMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := msg.IsValid(); err != nil {
		t.Fatal(err)
	}
	if got := plain(reflect.ValueOf(msg.Body)); !reflect.DeepEqual(got, m.body) {
		t.Errorf("the library reads:\n%#v\nwant\n%#v", got, m.body)
	}
	back, err := unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if back.member != m.member || back.path != m.path || back.sig != m.sig || back.serial != 3 || !reflect.DeepEqual(back.body, m.body) {
		t.Errorf("read back: %+v", back)
	}
}

// plain turns the library's values into ours.
func plain(v reflect.Value) any {
	if x, ok := v.Interface().(dbus.Variant); ok {
		return Value{x.Signature().String(), plain(reflect.ValueOf(x.Value()))}
	}
	switch v.Kind() {
	case reflect.Interface:
		return plain(v.Elem())
	case reflect.Slice:
		if b, ok := v.Interface().([]byte); ok {
			return b
		}
		out := []any{}
		for i := range v.Len() {
			out = append(out, plain(v.Index(i)))
		}
		return out
	case reflect.Map:
		out := []any{}
		for _, k := range v.MapKeys() {
			out = append(out, []any{plain(k), plain(v.MapIndex(k))})
		}
		return out
	case reflect.String:
		return v.String()
	}
	return v.Interface()
}

// TestForeign reads what the library writes, in both byte orders.
func TestForeign(t *testing.T) {
	type pair struct{ A, B string }
	body := []any{dbus.MakeVariant([]pair{{"a", "b"}}), uint64(7), dbus.MakeVariant(map[string]dbus.Variant{"k": dbus.MakeVariant(int16(-1))}), []string{"x", ""}}
	want := []any{Value{"a(ss)", []any{[]any{"a", "b"}}}, uint64(7), Value{"a{sv}", []any{[]any{"k", Value{"n", int16(-1)}}}}, []any{"x", ""}}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		msg := dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(managerPath)), dbus.FieldInterface: dbus.MakeVariant(managerIface),
			dbus.FieldMember: dbus.MakeVariant("JobRemoved"), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
		}, Body: body}
		var b bytes.Buffer
		if err := msg.EncodeTo(&b, order); err != nil {
			t.Fatal(err)
		}
		if n, err := messageSize(b.Bytes()); err != nil || n != b.Len() {
			t.Errorf("size %d of %d, %v", n, b.Len(), err)
		}
		m, err := unmarshal(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if m.member != "JobRemoved" || m.path != managerPath || !reflect.DeepEqual(m.body, want) {
			t.Errorf("got %+v", m)
		}
	}
}

func TestBadValues(t *testing.T) {
	for name, m := range map[string]message{
		"wrong type":    {sig: "u", body: []any{"x"}},
		"too few":       {sig: "us", body: []any{uint32(1)}},
		"too many":      {sig: "u", body: []any{uint32(1), "x"}},
		"NUL":           {sig: "s", body: []any{"a\x00b"}},
		"no type":       {sig: "z", body: []any{"a"}},
		"open struct":   {sig: "(s", body: []any{[]any{"a"}}},
		"empty struct":  {sig: "()", body: []any{[]any{}}},
		"two variants":  {sig: "v", body: []any{Value{"ss", "a"}}},
		"empty variant": {sig: "v", body: []any{Value{"", "a"}}},
		"deep":          {sig: strings.Repeat("a", 99) + "s", body: []any{[]any{}}},
	} {
		if _, err := m.marshal(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	m := message{kind: typeSignal, serial: 1, path: "/a", iface: "a.b", member: "M", sig: "a{sv}(uu)ay", body: []any{
		[]any{[]any{"k", Value{"as", []any{"x"}}}}, []any{uint32(1), uint32(2)}, []byte{3}}}
	b, err := m.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(append([]byte("B"), b[1:]...))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if len(b) >= prefixSize {
			_, _ = messageSize(b)
		}
		_, _ = unmarshal(b)
	})
}

// TestParseValue reads texts as the library does.
func TestParseValue(t *testing.T) {
	for _, text := range []string{
		"'inactive-or-failed'", `"x y"`, "uint64 123456789", "true", "false", "5", "-5", "byte 7", "int16 -7", "1.5",
		"['a', 'b']", "@as []", "@as ['x']", "[1, 2]", "<5>", `'it\'s\n'`, "@t 9", "int64 -1", "0x10",
	} {
		ours, err := ParseValue(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		v, err := dbus.ParseVariant(text, dbus.Signature{})
		if err != nil {
			t.Fatalf("%s: the library: %v", text, err)
		}
		if v.Signature().String() != ours.Sig {
			t.Errorf("%s: type %q, the library says %q", text, ours.Sig, v.Signature())
		}
		if s, ok := v.Value().([]int32); ok { // its arrays are of their type
			if len(s) != len(ours.V.([]any)) {
				t.Errorf("%s: %v", text, ours.V)
			}
			continue
		}
		if !reflect.DeepEqual(v.Value(), theirs(ours)) {
			t.Errorf("%s: %#v, the library says %#v", text, ours.V, v.Value())
		}
	}
	for text, want := range map[string]Value{
		"(1, 'a')":           {"(is)", []any{int32(1), "a"}},
		"(1,)":               {"(i)", []any{int32(1)}},
		"@a(ss) [('a','b')]": {"a(ss)", []any{[]any{"a", "b"}}},
		"{'k': 1}":           {"a{si}", []any{[]any{"k", int32(1)}}},
		"@a{sv} {}":          {"a{sv}", []any{}},
		`b"hi"`:              {"ay", []byte("hi\x00")},
		"@ay [1, 2]":         {"ay", []byte{1, 2}},
		"objectpath '/a'":    {"o", "/a"},
	} {
		if got, err := ParseValue(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %#v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "'a", "[1, 'a']", "[1", "(", "()", "{1", "uint64", "uint64 -1", "byte 256", "[]", "{}", "<5", "5 6",
		"@", "@z 5", "@as 5", "@s 5", "uint32 'a'", "'\\", "'\\u12'", strings.Repeat("[", 200), strings.Repeat("<", 200), "2147483648", "b'"} {
		if v, err := ParseValue(text); err == nil {
			t.Errorf("%s: %#v, no error", text, v)
		}
	}
}

func FuzzParseValue(f *testing.F) {
	for _, s := range []string{"'a'", "uint64 5", "['a']", "@a{sv} {'k': <(1,'x')>}", `b"x"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseValue(s)
		if err != nil {
			return
		}
		m := message{kind: typeCall, serial: 1, path: "/a", sig: "v", body: []any{v}}
		if b, err := m.marshal(); err == nil {
			if _, err := unmarshal(b); err != nil {
				t.Errorf("%q is read back with %v", s, err)
			}
		}
	})
}
