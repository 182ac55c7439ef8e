package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var at = time.Date(2026, 3, 4, 5, 6, 7, 89, time.FixedZone("x", 3600))

const stamp = "2026-03-04T04:06:07.000000089Z"

func newLog(t testing.TB) (*File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	l, err := NewFile(openLog(t, path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

func openLog(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func room() []byte { return make([]byte, 0, 256<<10) }

// transcript shortens text so that a long line can be read in a test.
func transcript(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		tag, text, _ := strings.Cut(strings.TrimPrefix(line, stamp+" "), " ")
		kind, text, _ := strings.Cut(text, " ")
		if len(text) > 40 {
			text = fmt.Sprintf("%d bytes\n", len(text)-1)
		}
		fmt.Fprintf(&b, "%s %s %s", tag, kind, text)
	}
	return b.String()
}

func TestTranscripts(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	tests := []struct {
		name   string
		chunks []string
		want   string
	}{
		{"lines", []string{"a\nb\n"}, "stdout F a\nstdout F b\n"},
		{"empty lines", []string{"\n\na\n"}, "stdout F \nstdout F \nstdout F a\n"},
		{"a line in two reads", []string{"he", "llo\nw", "orld\n"}, "stdout F hello\nstdout F world\n"},
		{"no newline at the end", []string{"a\nb"}, "stdout F a\nstdout P b\n"},
		{"exactly one part and its newline", []string{long(MaxText) + "\n"}, "stdout F 16384 bytes\n"},
		{"the newline comes later", []string{long(MaxText), "\n"}, "stdout F 16384 bytes\n"},
		{"one byte over", []string{long(MaxText+1) + "\nb\n"}, "stdout P 16384 bytes\nstdout F x\nstdout F b\n"},
		{"one byte over in two reads", []string{long(MaxText), "x\n"}, "stdout P 16384 bytes\nstdout F x\n"},
		{"three parts", []string{long(2*MaxText) + "tail\n"}, "stdout P 16384 bytes\nstdout P 16384 bytes\nstdout F tail\n"},
		{"three parts in pieces", []string{long(10000), long(10000), long(12768), "tail\n"}, "stdout P 16384 bytes\nstdout P 16384 bytes\nstdout F tail\n"},
		{"a long end", []string{long(MaxText + 5)}, "stdout P 16384 bytes\nstdout P xxxxx\n"},
		{"carriage returns and NULs stay", []string{"a\r\nb\x00c\n"}, "stdout F a\r\nstdout F b\x00c\n"},
		{"nothing", []string{""}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, path := newLog(t)
			s := NewStream(l, "stdout")
			for _, c := range tt.chunks {
				s.Chunk([]byte(c), room(), at)
			}
			s.Flush(room(), at)
			if got := transcript(read(t, path)); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestHeaderIsTheCRIFormat(t *testing.T) {
	l, path := newLog(t)
	NewStream(l, "stderr").Chunk([]byte("x\n"), room(), at)
	if got, want := read(t, path), stamp+" stderr F x\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if ts, err := time.Parse(time.RFC3339Nano, stamp); err != nil || !ts.Equal(at) {
		t.Errorf("the stamp parses as %v, %v", ts, err)
	}
}

// TestBytesSurvive joins what any cutting into reads made of random text.
func TestBytesSurvive(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		text := make([]byte, rnd.IntN(200000))
		for i := range text {
			text[i] = "abc\n"[rnd.IntN(3+rnd.IntN(2))]
		}
		if rnd.IntN(2) == 0 {
			text = bytes.ReplaceAll(text, []byte("a\n"), nil)
		}
		l, path := newLog(t)
		s := NewStream(l, "stdout")
		for in := text; len(in) > 0; {
			n := min(len(in), 1+rnd.IntN(65536))
			s.Chunk(in[:n], make([]byte, 0, 2*MaxText), at)
			in = in[n:]
		}
		s.Flush(room(), at)
		var joined []byte
		for line := range bytes.Lines([]byte(read(t, path))) {
			rest := line[len(stamp)+len(" stdout "):]
			body := rest[2:]
			if len(body)-1 > MaxText {
				t.Fatalf("an entry has %d bytes of text", len(body)-1)
			}
			if rest[0] == 'P' {
				body = body[:len(body)-1]
			}
			joined = append(joined, body...)
		}
		if !bytes.Equal(joined, text) {
			t.Fatalf("%d bytes went in, %d different ones came out", len(text), len(joined))
		}
	}
}

func TestSwapLosesNothing(t *testing.T) {
	l, path := newLog(t)
	s := NewStream(l, "stdout")
	s.Chunk([]byte("one\ntw"), room(), at)
	rotated := path + ".1"
	if err := os.Rename(path, rotated); err != nil {
		t.Fatal(err)
	}
	if err := l.Swap(openLog(t, path)); err != nil {
		t.Fatal(err)
	}
	s.Chunk([]byte("o\n"), room(), at)
	if got := transcript(read(t, rotated)) + "|" + transcript(read(t, path)); got != "stdout F one\n|stdout F two\n" {
		t.Errorf("got %q", got)
	}
}

func TestFailedWritesAreCountedAndLeaveNoTornEntry(t *testing.T) {
	l, path := newLog(t)
	s := NewStream(l, "stdout")
	s.Chunk([]byte("one\n"), room(), at)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	if err := l.Swap(full); err != nil {
		t.Fatal(err)
	}
	s.Chunk([]byte("two\nthree\n"), room(), at)
	lost := l.Lost()
	if lost.Lines != 2 || lost.Bytes == 0 || !errors.Is(lost.Err, unix.ENOSPC) {
		t.Errorf("lost %+v", lost)
	}
	if err := l.Swap(openLog(t, path)); err != nil {
		t.Fatal(err)
	}
	s.Chunk([]byte("four\n"), room(), at)
	if got := transcript(read(t, path)); got != "stdout F one\nstdout F four\n" {
		t.Errorf("got %q", got)
	}
	if lost = l.Lost(); lost.Err != nil || lost.Lines != 2 {
		t.Errorf("after it works again: %+v", lost)
	}
}

func TestShortWriteIsTakenBack(t *testing.T) {
	l, path := newLog(t)
	entry := []byte(stamp + " stdout F line\n")
	f := openLog(t, path)
	defer f.Close()
	if _, err := f.Write(append(bytes.Clone(entry), entry[:9]...)); err != nil { // as a full disk leaves it
		t.Fatal(err)
	}
	if rest := l.takeBack(int(f.Fd()), append(bytes.Clone(entry), entry...), len(entry)+9); !bytes.Equal(rest, entry) {
		t.Errorf("left to write: %q", rest)
	}
	if got := read(t, path); got != string(entry) {
		t.Errorf("the file has %q", got)
	}
}

func TestWithoutAFileAllIsDropped(t *testing.T) {
	var l File
	s := NewStream(&l, "stdout")
	s.Chunk([]byte("a\n"), room(), at)
	s.Flush(room(), at)
	if l.Lost() != (Lost{}) {
		t.Errorf("lost %+v", l.Lost())
	}
}

func BenchmarkChunk(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("line=%d", n), func(b *testing.B) {
			f, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
			if err != nil {
				b.Fatal(err)
			}
			l, err := NewFile(f)
			if err != nil {
				b.Fatal(err)
			}
			in := bytes.Repeat(append(bytes.Repeat([]byte("x"), n-1), '\n'), 65536/n+1)[:65536]
			out, s := room(), NewStream(l, "stdout")
			b.SetBytes(int64(len(in)))
			for b.Loop() {
				s.Chunk(in, out, time.Now())
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(65536/float64(n)), "ns/line")
		})
	}
}
