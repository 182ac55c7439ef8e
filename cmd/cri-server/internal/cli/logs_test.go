package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/image"
)

func logFile(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLogTail(t *testing.T) {
	const text = "1 stdout F one\n2 stdout P tw\n3 stdout F o\n4 stderr F three\n5 stdout F \n"
	for tail, want := range map[int]string{-1: "one\ntwo\nthree\n\n", 0: "", 1: "\n", 2: "three\n\n", 3: "two\nthree\n\n", 4: "one\ntwo\nthree\n\n", 9: "one\ntwo\nthree\n\n"} {
		var out bytes.Buffer
		l := &logReader{path: logFile(t, text), out: &out, err: &out, tail: tail}
		if err := l.print(); err != nil || out.String() != want {
			t.Errorf("tail %d: got %q, %v, want %q", tail, out.String(), err, want)
		}
	}
	var long strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&long, "t stdout F line %d\n", i)
	}
	var out bytes.Buffer
	l := &logReader{path: logFile(t, long.String()), out: &out, err: &out, tail: 10000}
	if err := l.print(); err != nil || !strings.HasPrefix(out.String(), "line 10000\n") || strings.Count(out.String(), "\n") != 10000 {
		t.Errorf("tail over blocks: %.20q…, %v", out.String(), err)
	}
}

func TestLogTimestamps(t *testing.T) {
	var out bytes.Buffer
	l := &logReader{path: logFile(t, "1 stdout P a\n2 stdout F b\nnonsense\n"), out: &out, err: &out, tail: -1, timestamps: true}
	if err := l.print(); err != nil || out.String() != "1 ab\nnonsense nonsense\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

// TestLogFollow appends, rotates and ends while the log is followed. ended is called once per round: each does
// the next thing, which the round after it has to print.
func TestLogFollow(t *testing.T) {
	path := logFile(t, "1 stdout F one\n")
	appendTo := func(p, text string) {
		f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	rounds := []func(){
		func() {},
		func() { appendTo(path, "2 stdout F tw") }, // half an entry
		func() { appendTo(path, "o\n") },
		func() {
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			appendTo(path+".1", "3 stdout F three\n")
		},
		func() { appendTo(path, "4 stdout F four\n") },
		func() { appendTo(path, "5 stdout F five\n") },
	}
	var out bytes.Buffer
	l := &logReader{path: path, out: &out, err: &out, tail: -1}
	round := 0
	err := l.follow(t.Context(), func() bool {
		if round < len(rounds) {
			rounds[round]()
		}
		round++
		return round > len(rounds)
	})
	if want := "one\ntwo\nthree\nfour\nfive\n"; err != nil || out.String() != want {
		t.Errorf("got %q, %v, want %q", out.String(), err, want)
	}
}

func TestBars(t *testing.T) {
	var out bytes.Buffer
	b := &bars{out: &out, width: 80, byLayer: map[string]image.Progress{}}
	b.update(image.Progress{Layer: "sha256:aaaaaaaaaaaaaaaa", Phase: "download", Done: 500, Total: 1000})
	b.update(image.Progress{Layer: "sha256:bbbbbbbbbbbbbbbb", Phase: "waiting"})
	b.done()
	last := out.String()[strings.LastIndex(out.String(), "\x1b[1A"):]
	contains(t, last, "aaaaaaaaaaaaa [", "download", "500 B of 1.0 kB", "bbbbbbbbbbbbb [", "waiting")
	line := bar(image.Progress{Layer: "l", Phase: "download", Done: 5, Total: 10}, 79)
	if full, empty := strings.Count(line, "="), strings.Count(line[:strings.Index(line, "]")], " "); full == 0 || full > empty {
		t.Errorf("half a bar: %q", line)
	}
	if line := bar(image.Progress{Layer: "l", Phase: "done"}, 79); len(line) > 79 || strings.Contains(line, "  ]") {
		t.Errorf("a full bar: %q", line)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[float64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 3.85e6: "3.9 MB", 123e9: "123 GB"} {
		if got := size(n); got != want {
			t.Errorf("%v: got %s, want %s", n, got, want)
		}
	}
}

// FuzzLog reads logs of any content, with any tail: no crash, and a tail is an end of the whole.
func FuzzLog(f *testing.F) {
	f.Add([]byte("1 stdout F one\n2 stdout P tw\n3 stdout F o\n"), 1)
	f.Add([]byte("\n\n\n"), 2)
	f.Add([]byte("a b P"), 0)
	f.Fuzz(func(t *testing.T, text []byte, tail int) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		var whole, end bytes.Buffer
		for _, l := range []*logReader{{path: path, out: &whole, err: &whole, tail: -1}, {path: path, out: &end, err: &end, tail: max(0, tail)}} {
			if err := l.print(); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasSuffix(whole.Bytes(), end.Bytes()) {
			t.Errorf("tail %d of %q is %q, no end of %q", tail, text, end.Bytes(), whole.Bytes())
		}
	})
}
