package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

type body struct{ Name, Note string }

var schema = Schema{Kind: "pod", Version: 2}

func TestRecordSurvivesEveryMutation(t *testing.T) {
	p := filepath.Join(t.TempDir(), "pod.json")
	want := body{"a", "<html> & more"}
	if err := schema.Write(p, want, true); err != nil {
		t.Fatal(err)
	}
	var got body
	if err := schema.Read(p, &got); err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	good, _ := os.ReadFile(p)
	for i := range good {
		for name, data := range map[string][]byte{"cut": good[:i], "flip": flip(good, i)} {
			if err := os.WriteFile(p, data, 0o600); err != nil {
				t.Fatal(err)
			}
			got = body{}
			err := schema.Read(p, &got)
			if err == nil && got != want {
				t.Fatalf("%s at %d: read %+v without an error", name, i, got)
			}
			if err != nil && !errors.Is(err, ErrTorn) && !errs.Is(err, errs.Unsupported) {
				t.Fatalf("%s at %d: %v", name, i, err)
			}
		}
	}
}

func flip(b []byte, i int) []byte {
	c := append([]byte(nil), b...)
	c[i] ^= 1
	return c
}

func TestReplaceLeavesNothingBeside(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "pod.json")
	for i, sync := range []bool{false, false, true, false} {
		want := body{Name: string(rune('a' + i))}
		if err := schema.Write(p, want, sync); err != nil {
			t.Fatal(err)
		}
		var got body
		if err := schema.Read(p, &got); err != nil || got != want {
			t.Fatalf("got %+v, %v", got, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Fatalf("write %d left %v", i, entries)
		}
	}
}

func TestRecordVersions(t *testing.T) {
	p := filepath.Join(t.TempDir(), "pod.json")
	if err := (Schema{"pod", 3}).Write(p, body{}, false); err != nil {
		t.Fatal(err)
	}
	if err := schema.Read(p, &body{}); !errs.Is(err, errs.Unsupported) {
		t.Fatalf("newer version: %v", err)
	}
	if err := (Schema{"image", 3}).Read(p, &body{}); !errors.Is(err, ErrTorn) {
		t.Fatalf("other kind: %v", err)
	}
	if err := schema.Read(p+"x", &body{}); !errs.Is(err, errs.NotFound) {
		t.Fatalf("missing: %v", err)
	}
	to, err := Quarantine(p)
	if err != nil || to != p+".torn" {
		t.Fatal(to, err)
	}
}

func TestTrashAndSweep(t *testing.T) {
	d := t.TempDir()
	if slot, err := Trash(filepath.Join(d, ".trash"), filepath.Join(d, "gone")); slot != "" || err != nil {
		t.Fatal(slot, err)
	}
	if err := os.MkdirAll(filepath.Join(d, "a/b"), 0o700); err != nil {
		t.Fatal(err)
	}
	slot, err := Trash(filepath.Join(d, ".trash"), filepath.Join(d, "a"))
	if err != nil || slot == "" {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(slot, "b")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the same name again, with something in it
		if err := os.MkdirAll(filepath.Join(d, "a/b"), 0o700); err != nil {
			t.Fatal(err)
		}
		again, err := Trash(filepath.Join(d, ".trash"), filepath.Join(d, "a"))
		if err != nil || again == slot {
			t.Fatal(again, err)
		}
		if _, err := os.Stat(filepath.Join(again, "x/b")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(d, tmpPrefix+"r"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := SweepTemp(d); err != nil {
		t.Fatal(err)
	}
	if m, _ := filepath.Glob(filepath.Join(d, tmpPrefix+"*")); len(m) != 0 {
		t.Fatal(m)
	}
}
