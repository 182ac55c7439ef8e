package decode

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// kinds has what configurations and records are made of.
type kinds struct {
	Name   string            `json:"name,omitempty"`
	On     *bool             `json:"on"`
	Small  int8              `json:"small"`
	Big    uint64            `json:"big"`
	Words  []string          `json:"words"`
	Bytes  []byte            `json:"bytes"`
	Map    map[string]string `json:"map"`
	Deep   map[string]*kinds `json:"deep"`
	List   []kinds           `json:"list"`
	When   time.Time         `json:"when"`
	Any    any               `json:"any"`
	Number float64           `json:"number"`
	Plain  int
	Hidden int `json:"-"`
	_      int // not exported
	inner
}

type inner struct {
	Major int64 `json:"major"`
	Minor int64 `json:"minor"`
}

// compare reads data both ways, and reports whether it is this package that has read it.
func compare(t *testing.T, data []byte, new func() any) bool {
	t.Helper()
	got, want := new(), new()
	errGot, errWant := JSON(data, got), json.Unmarshal(data, want)
	if (errGot == nil) != (errWant == nil) || errGot != nil && errGot.Error() != errWant.Error() {
		t.Fatalf("%s: error %v, encoding/json says %v", data, errGot, errWant)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s:\n%+v, encoding/json reads\n%+v", data, got, want)
	}
	d := &decoder{data: string(data), structs: map[reflect.Type]*fields{}}
	return d.value(reflect.ValueOf(new()).Elem(), 0) && d.next() == 0
}

func newKinds() any { return new(kinds) }
func newSpec() any  { return new(specs.Spec) }

var documents = []string{
	`{}`, ` { } `, `null`, `{"name":null,"on":null,"words":null,"map":null,"small":null,"deep":{"a":null}}`,
	`{"name":"a\"b\\c\/\b\f\n\r\t\u003c\u00e9\u20ac","on":true,"small":-128,"big":18446744073709551615}`,
	`{"words":[],"map":{},"list":[{},{"name":"x","list":[{"small":1}]}],"deep":{"a":{"deep":{"b":{"big":3}}}}}`,
	`{"words":["a","b"," "],"map":{"a":"b","c":""},"major":5,"minor":6,"Plain":7,"_":8}`,
	`{"when":"2026-01-02T03:04:05.000000006Z","unknown":{"a":[1,-2,"x",null,true,false,{}],"b":[],"b":2}}`,
}

// foreign are left to encoding/json.
var foreign = []string{
	``, `{`, `{"name"`, `{"name":}`, `{"name":"a",}`, `[]`, `{"small":128}`, `{"small":-129}`, `{"big":-1}`, `{"small":1.0}`, `{"small":01}`, `{"small":-}`,
	`{"name":"a","name":"b"}`, `{"map":{"a":"1","a":"2"}}`, `{"list":[{"name":"a"}],"list":[{}]}`, `{"NAME":"a"}`, `{"\u006eame":"a","name":"b"}`,
	`{"name":"\ud83d\ude00"}`, `{"name":"\ud83d"}`, `{"name":"` + "\xff" + `"}`, `{"name":"\x"}`, `{"name":"\u12"}`, `{"name":"a` + "\n" + `b"}`,
	`{"any":null}`, `{"any":{"a":1}}`, `{"number":1}`, `{"bytes":"YQ=="}`, `{"bytes":[1]}`, `{"words":"a"}`, `{"words":[1]}`, `{"on":"true"}`, `{"on":truex}`,
	`{"when":"never"}`, `{} {}`, `{}x`, `{"unknown":1.5}`, `{"plain":1}`,
	strings.Repeat(`{"deep":{"a":`, 40) + `{}` + strings.Repeat(`}}`, 40),
}

func TestDocuments(t *testing.T) {
	for _, doc := range documents {
		if !compare(t, []byte(doc), newKinds) {
			t.Errorf("%s is left to encoding/json", doc)
		}
	}
	for _, doc := range foreign {
		if compare(t, []byte(doc), newKinds) {
			t.Errorf("%s is not left to encoding/json", doc)
		}
	}
}

// fill gives every field of v a value, but those of any type, and what is made for other systems.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() || v.Type().Field(i).Anonymous {
				fill(v.Field(i), depth+1)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Interface || v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), depth+1)
		fill(v.Index(1), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e, depth+1)
		v.SetMapIndex(reflect.ValueOf("a <key>").Convert(v.Type().Key()), e)
	case reflect.String:
		v.SetString("a \"value\" & more")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Interface:
	default:
		if v.CanInt() {
			v.SetInt(int64(100 + depth))
		} else {
			v.SetUint(uint64(100 + depth))
		}
	}
}

// Whatever runtime-spec has is read here.
func TestConfiguration(t *testing.T) {
	var s specs.Spec
	fill(reflect.ValueOf(&s).Elem(), 0)
	for _, part := range []any{&s, s.Linux, s.Process, s.Linux.Resources, s.Linux.Seccomp} {
		data, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		if !compare(t, data, func() any { return reflect.New(reflect.TypeOf(part).Elem()).Interface() }) {
			t.Errorf("%s is left to encoding/json", data)
		}
	}
}

func FuzzJSON(f *testing.F) {
	for _, doc := range append(documents, foreign...) {
		f.Add([]byte(doc))
	}
	var s specs.Spec
	fill(reflect.ValueOf(&s).Elem(), 0)
	if data, err := json.Marshal(&s); err == nil {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		compare(t, data, newKinds)
		compare(t, data, newSpec)
	})
}
