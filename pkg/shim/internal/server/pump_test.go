package server

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-server/cri-server/pkg/shim/internal/crilog"
)

func newTestPump(t testing.TB) (*pump, *os.File) {
	t.Helper()
	ours, theirs, err := pipe(true)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPump(ours, false, &buffers{}, crilog.NewStream(&crilog.File{}, "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close(); theirs.Close() })
	return p, theirs
}

// TestTerminalsUnfinishedLine: who attaches to a terminal sees the prompt that is waiting there.
func TestTerminalsUnfinishedLine(t *testing.T) {
	for _, tty := range []bool{true, false} {
		p, w := newTestPump(t)
		p.tty = tty
		go p.run()
		if _, err := io.WriteString(w, "motd\nsh$ "); err != nil {
			t.Fatal(err)
		}
		for seen := uint64(0); seen < 9; time.Sleep(time.Millisecond) {
			p.mu.Lock()
			seen = p.seen
			p.mu.Unlock()
		}
		client, err := p.attach()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "ls\n"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		want := "ls\n"
		if tty {
			want = "sh$ ls\n"
		}
		if got, err := io.ReadAll(client); string(got) != want || err != nil {
			t.Errorf("terminal %t: %q, %v, want %q", tty, got, err, want)
		}
		client.Close()
	}
}

// TestHeldOutput: what was written before the first client came is his, and nobody's who comes later. The end of the
// process lets it go, too.
func TestHeldOutput(t *testing.T) {
	for _, attached := range []bool{true, false} {
		p, w := newTestPump(t)
		p.tty = true
		p.hold = true
		go p.run()
		if _, err := io.WriteString(w, "one\ntwo\n"); err != nil {
			t.Fatal(err)
		}
		var client *os.File
		if attached {
			var err error
			if client, err = p.attach(); err != nil {
				t.Fatal(err)
			}
			defer client.Close()
		}
		w.Close()
		p.drained(10 * time.Second)
		p.mu.Lock()
		seen := p.seen
		p.mu.Unlock()
		if seen != 8 {
			t.Errorf("attached %t: %d bytes were read, want 8", attached, seen)
		}
		if !attached {
			continue
		}
		if got, err := io.ReadAll(client); string(got) != "one\ntwo\n" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// TestHeldOutputMissed: who comes while the end of the process has what was held back read gets nothing, rather than a part.
func TestHeldOutputMissed(t *testing.T) {
	p, w := newTestPump(t)
	p.tty = true
	done := make(chan struct{})
	p.hold = true
	go func() { p.run(); close(done) }()
	if _, err := io.WriteString(w, "one\ntw"); err != nil {
		t.Fatal(err)
	}
	p.drained(0)
	client, err := p.attach()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := io.WriteString(w, "o\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	<-done
	if got, err := io.ReadAll(client); len(got) != 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if p.seen != 8 {
		t.Errorf("%d bytes were read, want 8", p.seen)
	}
}

// TestSlowClientIsToldWhatItMissed lets a client sleep through more than its pipe takes.
func TestSlowClientIsToldWhatItMissed(t *testing.T) {
	p, w := newTestPump(t)
	client, err := p.attach()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	go p.run()
	const lines = 300000
	var all bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&all, "line %d\n", i)
	}
	if _, err := w.Write(all.Bytes()); err != nil {
		t.Fatal(err)
	}
	p.drained(10 * time.Second)
	head := make([]byte, all.Len()) // what the pipe held
	n, err := client.Read(head)
	for err == nil && client.SetReadDeadline(time.Now().Add(10*time.Millisecond)) == nil {
		var m int
		m, err = client.Read(head[n:])
		n += m
	}
	if !bytes.HasPrefix(all.Bytes(), head[:n]) || n == all.Len() {
		t.Errorf("the client got %d bytes of %d, not the beginning", n, all.Len())
	}
	if err := client.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "rest of a line\nwhole again\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	rest, err := io.ReadAll(client)
	want := fmt.Sprintf("\r\n[attach: %d bytes are missing here: the client reads too slowly]\r\nwhole again\n", all.Len()-n+len("rest of a line\n"))
	if string(rest) != want || err != nil {
		t.Errorf("then %q, %v, want %q", rest, err, want)
	}
}

func TestDetachedClientIsTakenOff(t *testing.T) {
	p, _ := newTestPump(t)
	go p.run()
	for range 50 {
		client, err := p.attach()
		if err != nil {
			t.Fatal(err)
		}
		client.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		n := len(p.sinks)
		p.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d clients that have gone are still served", n)
		}
	}
}

// TestDrainedWaitsForTheEnd: a last line without a newline is logged at the end of the stream, which comes when nobody
// holds it open.
func TestDrainedWaitsForTheEnd(t *testing.T) {
	p, w := newTestPump(t)
	if _, err := io.WriteString(w, "no newline"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	step := func() (more bool) {
		_ = p.rc.Control(func(fd uintptr) { more, _ = p.step(int(fd)) })
		return more
	}
	if !step() {
		t.Fatal("the stream ended before what was written")
	}
	drained := make(chan struct{})
	go func() { p.drained(time.Minute); close(drained) }()
	select {
	case <-drained:
		t.Error("the exit would be told before the last line is logged")
	case <-time.After(20 * time.Millisecond):
	}
	if step() {
		t.Error("the stream has no end")
	}
	p.finish()
	<-drained
}

func TestDrainedWaitsForWhatWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	log, err := crilog.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p, w := newTestPump(t)
	p.log = crilog.NewStream(log, "stdout")
	if _, err := io.WriteString(w, strings.Repeat("x\n", 20000)); err != nil {
		t.Fatal(err)
	}
	go p.run() // the writer stays open, as with a background process
	p.drained(10 * time.Second)
	b, err := os.ReadFile(path)
	if n := bytes.Count(b, []byte{'\n'}); n != 20000 || err != nil {
		t.Errorf("%d lines are in the log when the exit is told, %v", n, err)
	}
}

// BenchmarkPump measures pipe to log file, with a writer beside it in the same process.
func BenchmarkPump(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprintf("line=%d", n), func(b *testing.B) {
			f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			if err != nil {
				b.Fatal(err)
			}
			log, err := crilog.NewFile(f)
			if err != nil {
				b.Fatal(err)
			}
			defer log.Close()
			p, w := newTestPump(b)
			p.log = crilog.NewStream(log, "stdout")
			go p.run()
			chunk := bytes.Repeat(append(bytes.Repeat([]byte("x"), n-1), '\n'), 65536/n)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if _, err := w.Write(chunk); err != nil {
					b.Fatal(err)
				}
			}
			p.drained(time.Minute)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(65536/n), "ns/line")
		})
	}
}
