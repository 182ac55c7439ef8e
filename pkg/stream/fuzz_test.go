package stream

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

// FuzzSizes holds the decoder of terminal sizes to ending, whatever it is sent.
func FuzzSizes(f *testing.F) {
	f.Add([]byte(`{"Width":80,"Height":24}`))
	f.Add([]byte(`{"Width":-1}`))
	f.Add([]byte(`[[[[[[[`))
	f.Add([]byte(strings.Repeat(`{"Width":1}`, 1000)))
	f.Fuzz(func(_ *testing.T, b []byte) { decodeSizes(bytes.NewReader(b), make(latest, 1)) })
}

// discard is a Runtime that takes what it gets.
type discard struct{ n atomic.Int64 }

func (d *discard) Exec(_ context.Context, _ string, s sandbox.ExecStreams) (int, error) {
	n, err := io.Copy(io.Discard, s.Stdin)
	d.n.Add(n)
	return 0, err
}
func (d *discard) Attach(context.Context, string, sandbox.AttachStreams) error { return nil }
func (d *discard) PortForward(context.Context, string, int32, io.ReadWriteCloser) error {
	return nil
}

// FuzzMessages sends messages of a hostile client: whatever they are, the session ends when the client does.
func FuzzMessages(f *testing.F) {
	f.Add("v5.channel.k8s.io", []byte("\x00stdin\x00\xff\x00"))
	f.Add("v5.channel.k8s.io", []byte("\xff\xff\xff"))
	f.Add("v4.base64.channel.k8s.io", []byte("0"+base64.StdEncoding.EncodeToString([]byte("x"))))
	f.Add("v4.base64.channel.k8s.io", []byte("\x00=\xff"))
	f.Add("channel.k8s.io", []byte("\x04{\x04}\x07"))
	f.Fuzz(func(t *testing.T, protocol string, b []byte) {
		if _, ok := channelProtocols[protocol]; !ok {
			t.Skip("no protocol of ours")
		}
		rt := &discard{}
		s, err := Listen(Config{}, rt)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.Serve() }()
		defer s.Close()
		resp, err := s.GetExec(&cri.ExecRequest{Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c, _, err := websocket.Dial(ctx, resp.Url, &websocket.DialOptions{Subprotocols: []string{protocol}})
		if err != nil {
			t.Skip("the empty protocol cannot be asked for")
		}
		for m := range bytes.SplitSeq(b, []byte{0xfe}) {
			if c.Write(ctx, websocket.MessageBinary, m) != nil {
				break
			}
		}
		_ = c.CloseNow()
		if rt.n.Load() > int64(len(b)) {
			t.Errorf("%d bytes arrived of %d", rt.n.Load(), len(b))
		}
	})
}

// TestTokenRace presents one token many times at once.
func TestTokenRace(t *testing.T) {
	k := newTokens(time.Minute, 10)
	token, err := k.add("r")
	if err != nil {
		t.Fatal(err)
	}
	var wins atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, ok := k.take(token); ok {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("the token worked %d times", wins.Load())
	}
}
