package exitrec

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

var sample = Record{ID: "c0ffee", Pid: 4711, ExitCode: 137, Signal: 9, OOMKilled: true, StartedAt: time.Unix(1700000000, 5), FinishedAt: time.Unix(1700000001, 999999999)}

func TestRecordSurvivesAFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir); !errs.Is(err, errs.NotFound) {
		t.Errorf("no record: %v, want NotFound", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 2 { // the second replaces the first
		if err := Write(d, &sample); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*got, sample) {
		t.Errorf("wrote %+v, read %+v", sample, *got)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%d files in the directory, want 1", len(left))
	}
}

func TestRecordIsJSON(t *testing.T) {
	b, err := sample.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if v["id"] != "c0ffee" || v["exitCode"] != 137.0 || v["oomKilled"] != true {
		t.Errorf("got %v", v)
	}
}

func TestEveryMutationIsFound(t *testing.T) {
	b, err := sample.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	check := func(m []byte) {
		if _, err := Unmarshal(m); !errors.Is(err, ErrTorn) && !errs.Is(err, errs.Unsupported) {
			t.Errorf("%q: %v, want ErrTorn", m, err)
		}
	}
	for i := range b {
		check(b[:i])
		for bit := range 8 {
			m := append([]byte(nil), b...)
			m[i] ^= 1 << bit
			check(m)
		}
	}
	if _, err := (&Record{ID: `a"b`}).Marshal(); err == nil {
		t.Error("an ID with a quote was written")
	}
}

func FuzzUnmarshal(f *testing.F) {
	b, _ := sample.Marshal()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Unmarshal(b)
		if err != nil {
			return
		}
		if again, err := r.Marshal(); err != nil || string(again) != string(b) {
			t.Errorf("%q was read as %+v, which is written as %q (%v)", b, r, again, err)
		}
	})
}
