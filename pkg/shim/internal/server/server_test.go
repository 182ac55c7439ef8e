package server

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
)

// peer connects a raw client to a server without a socket of its own.
func peer(t testing.TB) (*server, *wire.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(Config{Pod: "test"})
	get, put := func() []byte { return make([]byte, wire.PacketLen()) }, func([]byte) {}
	theirs, err := wire.NewConn(fds[0], s.bufs.getIn, s.bufs.putIn)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := wire.NewConn(fds[1], get, put)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { s.serve(theirs); close(served) }()
	t.Cleanup(func() { ours.Close(); <-served })
	return s, ours
}

func ask(t testing.TB, c *wire.Conn, fr *wire.Frame) *wire.Frame {
	t.Helper()
	if err := c.Send(fr, time.Now().Add(10*time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		got, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got.Close()
		if got.ID == fr.ID {
			return got
		}
	}
}

func failureOf(t testing.TB, fr *wire.Frame) wire.Failure {
	t.Helper()
	var f wire.Failure
	if fr.Kind != wire.Error {
		t.Fatalf("the answer is of kind %d, want an error", fr.Kind)
	}
	if err := wire.Unmarshal(fr.Body, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestNewerDaemonIsAnswered(t *testing.T) {
	_, c := peer(t)
	hello := append(wire.Marshal(&wire.Hello{Version: 99, Pid: 1, Build: "from the future"}), 1, 2, 3) // and fields of it
	got := ask(t, c, &wire.Frame{Kind: wire.Request, Op: wire.OpHello, ID: 1, Body: hello})
	var h wire.Hello
	if err := wire.Unmarshal(got.Body, &h); err != nil || got.Kind != wire.Reply || h.Version != wire.Version || h.Pid != os.Getpid() {
		t.Errorf("hello: %+v, %v", h, err)
	}
	f := failureOf(t, ask(t, c, &wire.Frame{Kind: wire.Request, Op: 99, ID: 2}))
	if f.ErrKind != uint64(errs.Unsupported) {
		t.Errorf("an unknown operation: %+v", f)
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	_, c := peer(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for i, fr := range []*wire.Frame{
		{Op: wire.OpStart, Body: []byte{0xff}},
		{Op: wire.OpStart, Body: wire.Marshal(&wire.Start{ID: "c", LaunchFiles: 5})},
		{Op: wire.OpStart, Body: wire.Marshal(&wire.Start{ID: "c", LaunchFiles: -1})},
		{Op: wire.OpStart, Body: wire.Marshal(&wire.Start{ID: "c", HasLog: true, HasExitDir: true})},
		{Op: wire.OpStart, Body: wire.Marshal(&wire.Start{}), Files: []*os.File{null}},
		{Op: wire.OpHolder, Body: wire.Marshal(&wire.Start{ID: "c"})},
		{Op: wire.OpExec, Body: wire.Marshal(&wire.Exec{ID: "e"})},
		{Op: wire.OpSignal, Body: wire.Marshal(&wire.Target{ID: "c", Signal: 1000})},
		{Op: wire.OpSignal, Body: wire.Marshal(&wire.Target{Signal: 9})},
		{Op: wire.OpRelease, Body: wire.Marshal(&wire.Target{ID: "c"})},
		{Op: wire.OpAttach, Body: wire.Marshal(&wire.Target{ID: "c", Stdin: true})},
		{Op: wire.OpResize, Body: wire.Marshal(&wire.Target{ID: "c"})},
		{Op: wire.OpReopenLog, Body: wire.Marshal(&wire.Target{ID: "c"}), Files: []*os.File{null}},
	} {
		fr.Kind, fr.ID = wire.Request, uint32(i)
		if f := failureOf(t, ask(t, c, fr)); f.Text == "" {
			t.Errorf("request %d: %+v", i, f)
		}
	}
	got := ask(t, c, &wire.Frame{Kind: wire.Request, Op: wire.OpStates, ID: 100})
	var m wire.States
	if err := wire.Unmarshal(got.Body, &m); err != nil || len(m.List) != 0 {
		t.Errorf("they left %+v, %v", m.List, err)
	}
}

func FuzzDispatch(f *testing.F) {
	f.Add(uint16(wire.OpStart), wire.Marshal(&wire.Start{ID: "c", Launch: []byte{1, 0, 0}}), uint8(2))
	f.Add(uint16(wire.OpExec), wire.Marshal(&wire.Exec{ID: "c", Container: "x"}), uint8(3))
	f.Add(uint16(wire.OpAttach), wire.Marshal(&wire.Target{ID: "c", Stdin: true}), uint8(0))
	s, c := peer(f)
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	defer null.Close()
	id := uint32(0)
	f.Fuzz(func(t *testing.T, op uint16, body []byte, files uint8) {
		if op == uint16(wire.OpShutdown) || len(body) > wire.MaxBody {
			return
		}
		fr := &wire.Frame{Kind: wire.Request, Op: wire.Op(op), ID: id, Body: body}
		for range files % 8 {
			fr.Files = append(fr.Files, null)
		}
		id++
		ask(t, c, fr)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.containers)+len(s.execs) != 0 {
			t.Error("a random request started something")
		}
	})
}
