package cli

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
)

// fill gives every field a value: a member that encode forgets is missing in its text.
func fill(t *testing.T, v reflect.Value, text string) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(7)
	case reflect.Uint64:
		v.SetUint(1 << 60)
	case reflect.Slice:
		v.Set(reflect.ValueOf([]string{text, "", "b"}))
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{text: text, "": "", "b": "c"}))
	case reflect.Pointer: // encoding/json writes those
		switch v.Interface().(type) {
		case *systemd.Unit:
			v.Set(reflect.ValueOf(&systemd.Unit{Container: text}))
		case *runtime.Rdt:
			v.Set(reflect.ValueOf(&runtime.Rdt{}))
		default:
			t.Fatalf("what is a %s?", v.Type())
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 60, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fill(t, v.Field(i), text)
		}
	default:
		t.Fatalf("what is a %s?", v.Type())
	}
}

func TestEncodeRecords(t *testing.T) {
	texts := []string{"a", "", "/run/x y", `"\`, "<&>", "\x00\n\x7f", "é\u2028", "\xff\xfe", "~ !"}
	records := []record{{}, {Created: time.Now().UTC()}}
	for _, s := range texts {
		var r record
		fill(t, reflect.ValueOf(&r).Elem(), s)
		records = append(records, r)
	}
	for _, r := range records {
		want, err := json.Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r.encode(); err != nil || string(got) != string(want) {
			t.Errorf("record, %v:\n%s\nwant\n%s", err, got, want)
		}
		if want, err = json.Marshal(&r.process); err != nil {
			t.Fatal(err)
		}
		if got := r.process.encode(); string(got) != string(want) {
			t.Errorf("process:\n%s\nwant\n%s", got, want)
		}
	}
}
