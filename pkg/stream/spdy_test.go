package stream

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

func dialSPDY(t *testing.T, url string, protocols ...string) httpstream.Connection {
	t.Helper()
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range protocols {
		req.Header.Add(httpstream.HeaderProtocolVersion, p)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rt.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func create(t *testing.T, c httpstream.Connection, kv ...string) httpstream.Stream {
	t.Helper()
	h := http.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Set(kv[i], kv[i+1])
	}
	st, err := c.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestSPDYExec(t *testing.T) {
	for protocol, want := range map[string]string{
		"v4.channel.k8s.io": string(result(3, nil).encode(false)), "v3.channel.k8s.io": result(3, nil).Message, "v2.channel.k8s.io": result(3, nil).Message,
	} {
		f := newFake()
		f.exit = 3
		s := start(t, f)
		c := dialSPDY(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true, Stderr: true}), "v5.channel.k8s.io", protocol)
		e := create(t, c, "streamType", "error")
		in, out, err := create(t, c, "streamType", "stdin"), create(t, c, "streamType", "stdout"), create(t, c, "streamType", "stderr")
		large := strings.Repeat("0123456789", 20000)
		go func() {
			_, _ = io.WriteString(in, large)
			in.Close() // the half close ends the command
		}()
		if got := readAll(t, out); got != large {
			t.Errorf("%s: stdout has %d bytes, want %d", protocol, len(got), len(large))
		}
		if got := readAll(t, err); got != "err" {
			t.Errorf("%s: stderr %q", protocol, got)
		}
		if got := readAll(t, e); got != want {
			t.Errorf("%s: result %q, want %q", protocol, got, want)
		}
		c.Close()
	}
}

func TestSPDYResizeAndAttach(t *testing.T) {
	f := newFake()
	s := start(t, f)
	c := dialSPDY(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"size"}, Stdout: true, Tty: true}), "v4.channel.k8s.io")
	e, out, rs := create(t, c, "streamType", "error"), create(t, c, "streamType", "stdout"), create(t, c, "streamType", "resize")
	if _, err := io.WriteString(rs, `{"Width":80,"Height":24}`); err != nil {
		t.Fatal(err)
	}
	if z := <-f.sizes; z != (sandbox.Size{Width: 80, Height: 24}) {
		t.Errorf("size %v", z)
	}
	readAll(t, out)
	if st := statusOf(t, []byte(readAll(t, e))); st.Status != "Success" {
		t.Errorf("status %v", st)
	}
	resp, err := s.GetAttach(&cri.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	c = dialSPDY(t, resp.Url, "v4.channel.k8s.io")
	e, out = create(t, c, "streamType", "error"), create(t, c, "streamType", "stdout")
	if got := readAll(t, out); got != "hello" {
		t.Errorf("attach: %q", got)
	}
	readAll(t, e)
}

// TestSPDYClientGoes closes the connection under a command: its context ends.
func TestSPDYClientGoes(t *testing.T) {
	f := newFake()
	s := start(t, f)
	c := dialSPDY(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"wait"}, Stdin: true, Stdout: true}), "v4.channel.k8s.io")
	create(t, c, "streamType", "error")
	create(t, c, "streamType", "stdin")
	create(t, c, "streamType", "stdout")
	<-f.started
	c.Close()
	if err := <-f.ended; !errors.Is(err, errGone) {
		t.Errorf("ended by %v", err)
	}
}

// TestSPDYClientGoesWithFullPipes does so with input that nobody reads in between.
func TestSPDYClientGoesWithFullPipes(t *testing.T) {
	f := newFake()
	s := start(t, f)
	c := dialSPDY(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"wait"}, Stdin: true}), "v4.channel.k8s.io")
	create(t, c, "streamType", "error")
	in := create(t, c, "streamType", "stdin")
	<-f.started
	for range 100 {
		if _, err := in.Write(make([]byte, 10000)); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	if err := <-f.ended; !errors.Is(err, errGone) {
		t.Errorf("ended by %v", err)
	}
}

func TestSPDYStreamsThatDoNotCome(t *testing.T) {
	s := start(t, newFake(), func(c *Config) { c.CreateTime = 10 * time.Millisecond })
	c := dialSPDY(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true}), "v4.channel.k8s.io")
	<-c.CloseChan()
}

func TestServerCloseEndsStreams(t *testing.T) {
	f := newFake()
	s := start(t, f)
	c := dialSPDY(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"flood"}, Stdout: true}), "v4.channel.k8s.io")
	create(t, c, "streamType", "error")
	create(t, c, "streamType", "stdout") // never read: the server's writes block
	<-f.started
	s.Close()
	if err := <-f.ended; err == nil {
		t.Error("the command's writes go on")
	}
}

func forwardURL(t *testing.T, s *Server, ports ...int32) string {
	t.Helper()
	resp, err := s.GetPortForward(&cri.PortForwardRequest{PodSandboxId: "p", Port: ports})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

// forward opens one forwarded connection.
func forward(t *testing.T, c httpstream.Connection, id, port string) (data, e httpstream.Stream) {
	t.Helper()
	e = create(t, c, "streamType", "error", "port", port, "requestID", id)
	e.Close() // this direction is never used
	return create(t, c, "streamType", "data", "port", port, "requestID", id), e
}

func testForward(t *testing.T, f *fake, c httpstream.Connection) {
	t.Helper()
	d1, e1 := forward(t, c, "1", "80")
	d2, e2 := forward(t, c, "2", "81")
	for _, d := range []httpstream.Stream{d2, d1} {
		go func() {
			_, _ = io.WriteString(d, "ping")
			d.Close()
		}()
	}
	for _, st := range []struct {
		httpstream.Stream
		want string
	}{{d1, "ping"}, {d2, "ping"}, {e1, ""}, {e2, ""}} {
		if got := readAll(t, st); got != st.want {
			t.Errorf("got %q, want %q", got, st.want)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(f.ports)
	if !slices.Equal(f.ports, []int32{80, 81}) {
		t.Errorf("ports %v", f.ports)
	}
}

func TestPortForwardSPDY(t *testing.T) {
	f := newFake()
	s := start(t, f)
	testForward(t, f, dialSPDY(t, forwardURL(t, s), "portforward.k8s.io"))
}

func TestPortForwardTunnel(t *testing.T) {
	f := newFake()
	s := start(t, f)
	ws, resp, err := websocket.Dial(t.Context(), forwardURL(t, s), &websocket.DialOptions{Subprotocols: []string{"SPDY/3.1+portforward.k8s.io"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != "SPDY/3.1+portforward.k8s.io" {
		t.Errorf("subprotocol %q", got)
	}
	c, err := spdy.NewClientConnection(&onceConn{Conn: websocket.NetConn(t.Context(), ws, websocket.MessageBinary)})
	if err != nil {
		t.Fatal(err)
	}
	testForward(t, f, c)
	c.Close()
	_ = ws.CloseNow()
}

func TestPortForwardErrors(t *testing.T) {
	f := newFake()
	f.err = errors.New("connection refused")
	s := start(t, f)
	c := dialSPDY(t, forwardURL(t, s, 80), "portforward.k8s.io")
	_, e := forward(t, c, "1", "80")
	if got := readAll(t, e); !strings.Contains(got, "port 80") || !strings.Contains(got, "connection refused") {
		t.Errorf("error stream %q", got)
	}
	for _, port := range []string{"81", "0", "65536", "x", ""} { // 81: the request was for 80
		st, err := c.CreateStream(http.Header{"Streamtype": {"error"}, "Port": {port}, "Requestid": {"2"}})
		if err == nil {
			if _, err = io.ReadAll(st); err == nil {
				_, err = st.Write([]byte("x"))
			}
		}
		if err == nil {
			t.Errorf("port %q was taken", port)
		}
	}
}

func TestPortForwardHalfAPair(t *testing.T) {
	s := start(t, newFake(), func(c *Config) { c.CreateTime = 10 * time.Millisecond })
	c := dialSPDY(t, forwardURL(t, s), "portforward.k8s.io")
	e := create(t, c, "streamType", "error", "port", "80", "requestID", "1")
	if got := readAll(t, e); !strings.Contains(got, "did not come") {
		t.Errorf("error stream %q", got)
	}
}

func TestPortForwardOldClient(t *testing.T) {
	s := start(t, newFake())
	c := dialSPDY(t, forwardURL(t, s), "portforward.k8s.io")
	create(t, c, "streamType", "error", "port", "80")
	d := create(t, c, "streamType", "data", "port", "80")
	_, _ = io.WriteString(d, "ping")
	d.Close()
	if got := readAll(t, d); got != "ping" {
		t.Errorf("got %q", got)
	}
}
