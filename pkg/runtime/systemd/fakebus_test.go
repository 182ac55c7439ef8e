package systemd

import (
	"encoding/hex"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeBus stands in for systemd, behind a bus or directly: it answers, remembers what it was asked, and can be told
// to fail.
type fakeBus struct {
	t      *testing.T
	direct bool
	socket string

	mu     sync.Mutex
	calls  []*message
	fail   map[string][]string // by member: error names of the next calls, "" for success
	result string              // of jobs
	early  bool                // a job's end is told before the call is answered
	silent bool                // nothing is answered
	jobs   int
}

func newFakeBus(t *testing.T, direct bool) *fakeBus {
	t.Helper()
	b := &fakeBus{t: t, direct: direct, socket: filepath.Join(t.TempDir(), "bus"), fail: map[string][]string{}, result: "done"}
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { b.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return b
}

// behave changes how it answers from now on.
func (b *fakeBus) behave(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// dial connects to it.
func (b *fakeBus) dial() *Conn {
	b.t.Helper()
	c, err := dial(b.t.Context(), address{b.socket, b.direct})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.Close)
	return c
}

func (b *fakeBus) serve(c net.Conn) {
	defer c.Close()
	if !b.auth(c) {
		return
	}
	if !b.direct {
		hello := b.next(c)
		if hello == nil || hello.member != "Hello" {
			b.t.Errorf("the first call is %+v, not Hello", hello)
			return
		}
		b.reply(c, hello, "s", ":1.7")
		b.signal(c, "NameAcquired", "s", ":1.7") // nobody asked for it
	}
	for {
		m := b.next(c)
		if m == nil {
			return
		}
		b.answer(c, m)
	}
}

func (b *fakeBus) auth(c net.Conn) bool {
	line := make([]byte, 0, 64)
	one := make([]byte, 1)
	for !strings.HasSuffix(string(line), "\r\n") {
		if _, err := c.Read(one); err != nil {
			return false
		}
		line = append(line, one[0])
	}
	want := "\x00AUTH EXTERNAL " + hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid()))) + "\r\n"
	if string(line) != want {
		b.t.Errorf("authentication %q, want %q", line, want)
		io.WriteString(c, "REJECTED EXTERNAL\r\n")
		return false
	}
	begin := make([]byte, 7) // before the answer: see authenticate
	_, err := io.ReadFull(c, begin)
	io.WriteString(c, "OK 1234\r\n")
	return err == nil && string(begin) == "BEGIN\r\n"
}

// next reads a message, nil at the end.
func (b *fakeBus) next(c net.Conn) *message {
	buf := make([]byte, prefixSize)
	if _, err := io.ReadFull(c, buf); err != nil {
		return nil
	}
	n, err := messageSize(buf)
	if err != nil {
		b.t.Error(err)
		return nil
	}
	buf = append(buf, make([]byte, n-prefixSize)...)
	if _, err := io.ReadFull(c, buf[prefixSize:]); err != nil {
		return nil
	}
	m, err := unmarshal(buf)
	if err != nil {
		b.t.Error(err)
		return nil
	}
	b.mu.Lock()
	b.calls = append(b.calls, m)
	b.mu.Unlock()
	return m
}

func (b *fakeBus) send(c net.Conn, m *message) {
	m.serial = 99
	data, err := m.marshal()
	if err != nil {
		b.t.Error(err)
		return
	}
	for len(data) > 0 { // in pieces, as a stream may
		n := min(len(data), 11)
		if _, err := c.Write(data[:n]); err != nil {
			return
		}
		data = data[n:]
	}
}

func (b *fakeBus) reply(c net.Conn, to *message, sig string, body ...any) {
	b.send(c, &message{kind: typeReturn, reply: to.serial, sig: sig, body: body})
}

func (b *fakeBus) signal(c net.Conn, member, sig string, body ...any) {
	b.send(c, &message{kind: typeSignal, path: managerPath, iface: managerIface, member: member, sig: sig, body: body})
}

func (b *fakeBus) answer(c net.Conn, m *message) {
	b.mu.Lock()
	result, early, silent := b.result, b.early, b.silent
	failure := ""
	if list := b.fail[m.member]; len(list) > 0 {
		failure, b.fail[m.member] = list[0], list[1:]
	}
	b.jobs++
	number := uint32(b.jobs)
	job := managerPath + "/job/" + strconv.Itoa(b.jobs)
	b.mu.Unlock()
	switch {
	case silent:
	case failure != "":
		b.send(c, &message{kind: typeError, reply: m.serial, errorName: managerName + "." + failure, sig: "s", body: []any{failure + "!"}})
	case m.member == "StartTransientUnit" || m.member == "StopUnit":
		ended := func() { b.signal(c, "JobRemoved", "uoss", number, job, m.text(0), result) }
		b.signal(c, "JobRemoved", "uoss", uint32(0), managerPath+"/job/0", "other.scope", "failed") // somebody else's
		if early {
			ended()
		}
		b.reply(c, m, "o", job)
		if !early {
			ended()
		}
	case m.member == "Get" && m.text(1) == "Version":
		b.reply(c, m, "v", Value{"s", "252.39-1~deb12u2"})
	case m.member == "Get":
		b.reply(c, m, "v", Value{"s", "/user.slice/user-7.slice/user@7.service"})
	case m.member == "ListUnitsByPatterns":
		row := []any{"cri-1.scope", "what", "loaded", "failed", "failed", "", "/u", uint32(0), "", "/"}
		b.reply(c, m, "a(ssssssouso)", []any{row})
	default:
		b.reply(c, m, "")
	}
}

// members lists what was called, in order, the bus's own methods left out.
func (b *fakeBus) members() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, m := range b.calls {
		if m.iface != busName {
			out = append(out, m.member)
		}
	}
	return strings.Join(out, " ")
}

// props are the properties that the last call of the method was given.
func (b *fakeBus) props(member string) map[string]Value {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string]Value{}
	for _, m := range b.calls {
		if m.member != member {
			continue
		}
		clear(out)
		for _, p := range m.body[2].([]any) {
			pair := p.([]any)
			out[pair[0].(string)] = pair[1].(Value)
		}
	}
	return out
}
