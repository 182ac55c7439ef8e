package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	get, put := func() []byte { return make([]byte, PacketLen()) }, func([]byte) {}
	if a, err = NewConn(fds[0], get, put); err != nil {
		t.Fatal(err)
	}
	if b, err = NewConn(fds[1], get, put); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func tempFile(t testing.TB, content string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFramesArriveWhole(t *testing.T) {
	a, b := pair(t)
	for _, n := range []int{0, 1, MaxInline, MaxInline + 1, 3 << 20} {
		body := bytes.Repeat([]byte{7}, n)
		f := tempFile(t, fmt.Sprint(n))
		done := make(chan error, 1)
		go func() {
			done <- a.Send(&Frame{Kind: Request, Op: OpStart, ID: 9, Body: body, Files: []*os.File{f}}, time.Time{})
		}()
		fr, err := b.Recv()
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if err := <-done; err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if fr.Kind != Request || fr.Op != OpStart || fr.ID != 9 || !bytes.Equal(fr.Body, body) || len(fr.Files) != 1 {
			t.Fatalf("%d bytes: got kind %d op %d id %d, %d bytes, %d files", n, fr.Kind, fr.Op, fr.ID, len(fr.Body), len(fr.Files))
		}
		got := make([]byte, 16)
		k, _ := fr.Files[0].ReadAt(got, 0)
		if string(got[:k]) != fmt.Sprint(n) {
			t.Errorf("%d bytes: the descriptor reads %q", n, got[:k])
		}
		fr.Close()
	}
	a.Close()
	if _, err := b.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the peer closed: %v, want EOF", err)
	}
}

func TestManyDescriptors(t *testing.T) {
	a, b := pair(t)
	f := tempFile(t, "x")
	files := make([]*os.File, 600)
	for i := range files {
		files[i] = f
	}
	go func() { _ = a.Send(&Frame{Kind: Request, Op: OpStart, ID: 1, Files: files}, time.Time{}) }()
	fr, err := b.Recv()
	if err != nil {
		t.Fatal(err)
	}
	defer fr.Close()
	if len(fr.Files) != len(files) {
		t.Errorf("%d descriptors came of %d", len(fr.Files), len(files))
	}
	if err := a.Send(&Frame{Files: make([]*os.File, MaxFiles+1)}, time.Time{}); err == nil {
		t.Error("a message with too many descriptors was sent")
	}
}

func TestSendGivesUpAtTheDeadline(t *testing.T) {
	a, _ := pair(t)
	fr := &Frame{Kind: Event, Op: EventExit, Body: make([]byte, 1000)}
	for i := 0; ; i++ {
		ok, err := a.TrySend(fr)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if i > 100000 {
			t.Fatal("the queue never fills")
		}
	}
	if err := a.Send(fr, time.Now().Add(time.Millisecond)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Send to a full queue: %v, want a deadline error", err)
	}
}

func TestSendersDoNotMix(t *testing.T) {
	a, b := pair(t)
	f := tempFile(t, "x")
	const senders, each = 4, 20
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			files := make([]*os.File, 260+s)
			for i := range files {
				files[i] = f
			}
			for range each {
				if err := a.Send(&Frame{Kind: Request, Op: OpStart, ID: uint32(s), Files: files}, time.Time{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range senders * each {
		fr, err := b.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(fr.Files) != 260+int(fr.ID) {
			t.Errorf("message of sender %d has %d descriptors", fr.ID, len(fr.Files))
		}
		fr.Close()
	}
	wg.Wait()
}

var someMessages = []Message{
	&Hello{Version: 3, Pid: 12, Build: "v1"},
	&Start{ID: "c", Launch: []byte{1, 2, 3}, LaunchFiles: 4, HasLog: true, HasExitDir: true, HasOOMEvent: true, HasOOMCount: true, HoldOutput: true,
		Stdin: true, StdinOnce: true, TTY: true},
	&Exec{ID: "e", Container: "c", Launch: []byte{9}, LaunchFiles: 1, TTY: true},
	&Started{Pid: 77, At: time.Unix(5, 6)},
	&Target{ID: "x", Signal: 9, All: true, Width: 3, Height: 4, Stdin: true, Stdout: true, Stderr: true, Force: true},
	&Attached{Stdin: true, Stderr: true},
	&States{List: []State{{ID: "", Holder: true, Pid: 5}, {ID: "c", Exited: true, ExitCode: 137, Signal: 9, FinishedAt: time.Unix(1, 1), OOMKilled: true,
		OOMKills: 2, DroppedLines: 3, DroppedBytes: 4, LogError: "no space", StartedAt: time.Unix(0, 1), Gated: true}}},
	&Failure{ErrKind: 4, Text: "no", IsOp: true, Index: -1, Errno: 22},
}

func TestMessagesSurviveTheirCoding(t *testing.T) {
	for _, m := range someMessages {
		b := Marshal(m)
		got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
		if err := Unmarshal(append(b, 1, 2, 3), got); err != nil { // fields of a newer peer follow
			t.Errorf("%T: %v", m, err)
		}
		if !reflect.DeepEqual(m, got) {
			t.Errorf("%T: sent %+v, got %+v", m, m, got)
		}
	}
}

func TestAbsentTrailingFieldsAreZero(t *testing.T) {
	var h Hello
	b := Marshal(&Hello{Version: 1, Pid: 2, Build: "new field"})
	if err := Unmarshal(b[:2], &h); err != nil || h != (Hello{Version: 1, Pid: 2}) {
		t.Errorf("an older peer's hello: %+v, %v", h, err)
	}
	if err := Unmarshal(b[:5], &h); err == nil {
		t.Error("a body that ends inside a field was accepted")
	}
}

func FuzzPacket(f *testing.F) {
	for _, m := range someMessages {
		body := Marshal(m)
		h := header{kind: Request, op: OpStart, id: 1, body: uint32(len(body))}
		f.Add(append(h.append(nil), body...), uint8(0))
	}
	f.Fuzz(func(t *testing.T, packet []byte, nfds uint8) {
		var h header
		if body, err := h.parse(packet, int(nfds)); err == nil && h.flags == 0 && len(body) != int(h.body) {
			t.Errorf("a body of %d bytes was announced as %d", len(body), h.body)
		}
		fr, err := takePacket(packet, nil, 0)
		if err != nil {
			return
		}
		for _, m := range someMessages {
			got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
			if Unmarshal(fr.Body, got) != nil {
				continue
			}
			again := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
			if err := Unmarshal(Marshal(got), again); err != nil {
				t.Errorf("%T: what was decoded cannot be encoded: %v", m, err)
			}
		}
	})
}
