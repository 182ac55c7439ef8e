package stream

import (
	"encoding/base64"
	"errors"

	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

func dialWS(t *testing.T, url string, protocols ...string) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{Subprotocols: protocols})
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(-1)
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func send(t *testing.T, c *websocket.Conn, typ websocket.MessageType, b string) {
	t.Helper()
	if err := c.Write(t.Context(), typ, []byte(b)); err != nil {
		t.Fatal(err)
	}
}

// receive reads until the server closes and sorts what came by channel.
func receive(t *testing.T, c *websocket.Conn) map[byte]string {
	t.Helper()
	got := map[byte]string{}
	for {
		_, b, err := c.Read(t.Context())
		if err != nil {
			if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
				t.Errorf("closed by %v", err)
			}
			return got
		}
		got[b[0]] += string(b[1:])
	}
}

func TestWebSocketExec(t *testing.T) {
	f := newFake()
	f.exit = 42
	s := start(t, f)
	c := dialWS(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true, Stderr: true}), "v5.channel.k8s.io")
	if c.Subprotocol() != "v5.channel.k8s.io" {
		t.Errorf("subprotocol %q", c.Subprotocol())
	}
	large := strings.Repeat("0123456789", 20000) // in one message, longer than any buffer
	go func() {
		send(t, c, websocket.MessageBinary, "\x00"+large)
		send(t, c, websocket.MessageBinary, "\xff\x00")
	}()
	got := receive(t, c)
	if got[1] != large || got[2] != "err" {
		t.Errorf("stdout has %d bytes, stderr %q", len(got[1]), got[2])
	}
	if st := statusOf(t, []byte(got[3])); st.Reason != "NonZeroExitCode" || st.Details.Causes[0].Message != "42" {
		t.Errorf("status %+v", st)
	}
}

func TestWebSocketProtocols(t *testing.T) {
	for _, tc := range []struct{ protocol, result string }{
		{"v5.channel.k8s.io", `{"status":"Success"}`}, {"v4.channel.k8s.io", `{"status":"Success"}`}, {"channel.k8s.io", ""}, {"", ""},
	} {
		s := start(t, newFake())
		var protocols []string
		if tc.protocol != "" {
			protocols = []string{"unknown", tc.protocol}
		}
		c := dialWS(t, execURL(t, s, &cri.ExecRequest{Stdout: true}), protocols...)
		if _, b, err := c.Read(t.Context()); err != nil || string(b) != "\x01" {
			t.Errorf("%s: the first message is %q, %v", tc.protocol, b, err)
		}
		if got := receive(t, c); got[1] != "hello" || got[3] != tc.result {
			t.Errorf("%s: got %q", tc.protocol, got)
		}
	}
}

func TestWebSocketBase64(t *testing.T) {
	s := start(t, newFake())
	c := dialWS(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"cat"}, Stdin: true, Stdout: true, Tty: true}), "v4.base64.channel.k8s.io")
	send(t, c, websocket.MessageText, "0"+base64.StdEncoding.EncodeToString([]byte("ping\n")))
	var text string
	for text == "" {
		typ, b, err := c.Read(t.Context())
		if err != nil || typ != websocket.MessageText || b[0] != '1' {
			t.Fatalf("got %v %q, %v", typ, b, err)
		}
		plain, err := base64.StdEncoding.DecodeString(string(b[1:]))
		if err != nil {
			t.Fatal(err)
		}
		text += string(plain)
	}
	if text != "ping\n" {
		t.Errorf("got %q", text)
	}
	send(t, c, websocket.MessageText, "0not base64!")
	for {
		if _, _, err := c.Read(t.Context()); err != nil {
			if got := websocket.CloseStatus(err); got != websocket.StatusInvalidFramePayloadData {
				t.Errorf("closed with %v", err)
			}
			return
		}
	}
}

func TestWebSocketResize(t *testing.T) {
	f := newFake()
	s := start(t, f)
	c := dialWS(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"size"}, Stdout: true, Tty: true}), "v5.channel.k8s.io")
	send(t, c, websocket.MessageBinary, "\x04"+`{"Width":80,"Height":24}`+"\n")
	if z := <-f.sizes; z != (sandbox.Size{Width: 80, Height: 24}) {
		t.Errorf("size %v", z)
	}
	receive(t, c)
}

func TestWebSocketRefusesUnknownProtocols(t *testing.T) {
	s := start(t, newFake())
	_, resp, err := websocket.Dial(t.Context(), execURL(t, s, &cri.ExecRequest{Stdout: true}), &websocket.DialOptions{Subprotocols: []string{"v9.channel.k8s.io"}})
	if err == nil || resp.StatusCode != 403 {
		t.Errorf("got %v, %v", resp, err)
	}
	if _, _, err := websocket.Dial(t.Context(), forwardURL(t, s), &websocket.DialOptions{Subprotocols: []string{"v4.channel.k8s.io"}}); err == nil {
		t.Error("channels were taken for a request without ports")
	}
}

// TestWebSocketClientGoes drops the connection without a word, under a command that waits, with input that
// nobody reads in between.
func TestWebSocketClientGoes(t *testing.T) {
	for _, unread := range []int{0, 1 << 20} {
		f := newFake()
		s := start(t, f)
		c := dialWS(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"wait"}, Stdin: true, Stdout: true}), "v5.channel.k8s.io")
		<-f.started
		if unread > 0 {
			send(t, c, websocket.MessageBinary, "\x00"+strings.Repeat("x", unread))
		}
		_ = c.CloseNow()
		if err := <-f.ended; !errors.Is(err, errGone) {
			t.Errorf("ended by %v", err)
		}
		s.Close()
	}
}

func TestWebSocketBadClose(t *testing.T) {
	s := start(t, newFake())
	c := dialWS(t, execURL(t, s, &cri.ExecRequest{Stdin: true, Stdout: true}), "v5.channel.k8s.io")
	send(t, c, websocket.MessageBinary, "\xff\x00\x01")
	for {
		if _, _, err := c.Read(t.Context()); err != nil {
			if websocket.CloseStatus(err) != websocket.StatusProtocolError {
				t.Errorf("closed by %v", err)
			}
			return
		}
	}
}

func TestIdle(t *testing.T) {
	f := newFake()
	s := start(t, f, func(c *Config) { c.IdleTimeout = 20 * time.Millisecond })
	dialWS(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"wait"}, Stdout: true}), "v5.channel.k8s.io")
	if err := <-f.ended; !strings.Contains(err.Error(), "nothing moved") {
		t.Errorf("ended by %v", err)
	}
	c := dialSPDY(t, execURL(t, s, &cri.ExecRequest{Cmd: []string{"wait"}, Stdout: true}), "v4.channel.k8s.io")
	create(t, c, "streamType", "error")
	create(t, c, "streamType", "stdout")
	if err := <-f.ended; err == nil {
		t.Error("no cause")
	}
}

func TestPortForwardChannels(t *testing.T) {
	f := newFake()
	s := start(t, f)
	c := dialWS(t, forwardURL(t, s, 80, 0x1234), "v4.channel.k8s.io")
	send(t, c, websocket.MessageBinary, "\x02ping")
	got := map[byte]string{}
	for len(got[2]) < 6 || len(got) < 4 {
		_, b, err := c.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got[b[0]] += string(b[1:])
	}
	for ch, want := range map[byte]string{0: "P\x00", 1: "P\x00", 2: "\x34\x12ping", 3: "\x34\x12"} {
		if got[ch] != want {
			t.Errorf("channel %d: got %q, want %q", ch, got[ch], want)
		}
	}
}
