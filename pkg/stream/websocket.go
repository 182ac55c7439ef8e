package stream

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// The channels of exec and attach, one byte before the bytes of every message. In the base64 protocols it is
// the digit.
const (
	chanStdin = iota
	chanStdout
	chanStderr
	chanError
	chanResize
	chanClose = 255 // version 5: the next byte is a channel that ends
)

// messageBytes is the most of a stream that goes into one message: clients have buffers of this size.
const messageBytes = 32 << 10

// channelProtocol is how messages are framed under a subprotocol.
type channelProtocol struct {
	base64 bool // the rest of each message is base64
	plain  bool // before version 4: the result is text, not a Status
	close  bool // version 5: a message closes a channel
}

const (
	protocolV5 = "v5.channel.k8s.io"
	protocolV4 = "v4.channel.k8s.io"
)

var channelProtocols = map[string]channelProtocol{
	protocolV5:                 {close: true},
	protocolV4:                 {},
	"v4.base64.channel.k8s.io": {base64: true},
	"channel.k8s.io":           {plain: true},
	"base64.channel.k8s.io":    {plain: true, base64: true},
	"":                         {plain: true},
}

// execProtocols are those that can be asked for, the best first.
var execProtocols = []string{protocolV5, protocolV4, "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"}

// accept upgrades to a WebSocket that speaks one of the protocols, or none where the client names none.
func accept(w http.ResponseWriter, r *http.Request, protocols []string, touch func()) (*websocket.Conn, error) {
	asked := headerTokens(r, "Sec-WebSocket-Protocol")
	if len(asked) > 0 && !slices.ContainsFunc(asked, func(p string) bool { return slices.Contains(protocols, p) }) {
		err := fmt.Errorf("subprotocols %s: none of them is spoken here, but %s", strings.Join(asked, ", "), strings.Join(protocols, ", "))
		http.Error(w, err.Error(), http.StatusForbidden)
		return nil, err
	}
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:       protocols,
		InsecureSkipVerify: true, // of the Origin: the token in the URL is the credential
		OnPingReceived:     func(context.Context, []byte) bool { touch(); return true },
	})
	if err != nil {
		return nil, err
	}
	c.SetReadLimit(-1) // messages are read in pieces, whatever their length
	return c, nil
}

// idle cancels a connection on which nothing moves. touch is to be called whenever something does.
func (s *Server) idle(cancel context.CancelCauseFunc) (touch func(), stop func() bool) {
	t := time.AfterFunc(s.cfg.IdleTimeout, func() { cancel(fmt.Errorf("nothing moved for %v", s.cfg.IdleTimeout)) })
	return func() { t.Reset(s.cfg.IdleTimeout) }, t.Stop
}

// openWebSocket upgrades to a WebSocket whose messages belong to channels.
func (s *Server) openWebSocket(w http.ResponseWriter, r *http.Request, want want) (*session, error) {
	ctx, cancel, free := s.watch(r)
	touch, stopIdle := s.idle(cancel)
	c, err := accept(w, r, execProtocols, touch)
	if err != nil {
		stopIdle()
		free()
		return nil, err
	}
	ws := newChannels(ctx, c, touch)
	sess := &session{ctx: ctx}
	readers := map[byte]*io.PipeWriter{}
	if want.stdin {
		pr, pw := io.Pipe()
		sess.stdin, readers[chanStdin] = pr, pw
	}
	if want.tty {
		pr, pw := io.Pipe()
		sizes := make(latest, 1)
		sess.tty, sess.resize, readers[chanResize] = true, sizes, pw
		ws.wg.Go(func() {
			decodeSizes(pr, sizes)
			pr.Close() // what follows is no size: it is dropped
		})
	}
	first := byte(chanError)
	if want.stderr {
		sess.stderr, first = ws.writer(chanStderr), chanStderr
	}
	if want.stdout {
		sess.stdout, first = ws.writer(chanStdout), chanStdout
	}
	_, _ = ws.writer(first).Write(nil) // an empty message tells the client that it is connected
	ws.wg.Go(func() { cancel(ws.demux(readers)) })
	ws.wg.Go(func() { s.beat(ctx, ws.pingStalled) })
	sess.finish = func(result *status) {
		if b := result.encode(ws.plain); len(b) > 0 {
			_, _ = ws.writer(chanError).Write(b) // the client may be gone
		}
		if pr, ok := sess.stdin.(*io.PipeReader); ok {
			pr.Close() // what the client still sends is dropped
		}
		ws.shut()
		stopIdle()
		free()
	}
	return sess, nil
}

// channels multiplexes streams over a WebSocket.
type channels struct {
	channelProtocol
	ctx   context.Context //nolint:containedctx // of the connection
	c     *websocket.Conn
	touch func()
	wg    sync.WaitGroup
	// stalled is set while what the client sent waits for its reader.
	stalled atomic.Bool
}

// pingStalled sends a ping while nothing is read from the client. Nobody waits for the answer.
func (ws *channels) pingStalled() {
	if ws.stalled.Load() {
		ctx, cancel := context.WithTimeout(ws.ctx, time.Second)
		defer cancel()
		_ = ws.c.Ping(ctx)
	}
}

func newChannels(ctx context.Context, c *websocket.Conn, touch func()) *channels {
	return &channels{channelProtocol: channelProtocols[c.Subprotocol()], ctx: ctx, c: c, touch: touch}
}

// shut closes the connection and returns when nothing reads it any more. A client that does not answer the
// closing is left after a few seconds.
func (ws *channels) shut() {
	if ws.ctx.Err() == nil {
		_ = ws.c.Close(websocket.StatusNormalClosure, "") // the client may be gone
	} else {
		_ = ws.c.CloseNow()
	}
	ws.wg.Wait()
}

// demux moves what the client sends to the pipes of its channels, until the connection ends. It returns why
// that was. The pipes end with it.
func (ws *channels) demux(to map[byte]*io.PipeWriter) (err error) {
	defer func() {
		for _, pw := range to {
			pw.Close() // end of file, not an error: a client that leaves ends its standard input
		}
	}()
	buf := make([]byte, messageBytes)
	for {
		_, r, err := ws.c.Reader(ws.ctx)
		if err != nil {
			return errors.Join(errGone, err)
		}
		ws.touch()
		var head [1]byte
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
			continue // an empty message means nothing
		} else if err != nil {
			return errors.Join(errGone, err)
		}
		if ws.close && head[0] == chanClose {
			if err := ws.closeChannel(r, to); err != nil {
				return err
			}
			continue
		}
		if err := ws.forward(r, head[0], to, buf); err != nil {
			return err
		}
	}
}

// closeChannel obeys version 5's request to end a channel.
func (ws *channels) closeChannel(r io.Reader, to map[byte]*io.PipeWriter) error {
	body, err := io.ReadAll(io.LimitReader(r, 2))
	if err != nil {
		return errors.Join(errGone, err)
	}
	if len(body) != 1 {
		_ = ws.c.Close(websocket.StatusProtocolError, "a close message names one channel")
		return errors.New("malformed close message")
	}
	if pw := to[body[0]]; pw != nil {
		pw.Close()
	}
	return nil
}

// forward copies the rest of one message to its channel's pipe. Messages of channels that nobody reads are
// dropped.
func (ws *channels) forward(r io.Reader, channel byte, to map[byte]*io.PipeWriter, buf []byte) error {
	if ws.base64 {
		channel -= '0'
		r = base64.NewDecoder(base64.StdEncoding, r)
	}
	var w io.Writer = io.Discard
	if pw := to[channel]; pw != nil {
		w = pw
	}
	for {
		n, err := r.Read(buf)
		if n > 0 {
			ws.stalled.Store(true)
			if _, werr := w.Write(buf[:n]); werr != nil {
				w = io.Discard // its reader is done
			}
			ws.stalled.Store(false)
			ws.touch()
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, new(base64.CorruptInputError)):
			_ = ws.c.Close(websocket.StatusInvalidFramePayloadData, "not base64")
			return err
		case err != nil:
			return errors.Join(errGone, err)
		}
	}
}

// writer returns the sending end of a channel.
func (ws *channels) writer(channel byte) io.Writer { return &channelWriter{ws, channel} }

type channelWriter struct {
	*channels
	channel byte
}

// Write sends p in as many messages as it takes, at least one.
func (w *channelWriter) Write(p []byte) (int, error) {
	sent := 0
	for first := true; first || sent < len(p); first = false {
		n := min(len(p)-sent, messageBytes)
		if err := w.message(p[sent : sent+n]); err != nil {
			return sent, err
		}
		sent += n
		w.touch()
	}
	return sent, nil
}

func (w *channelWriter) message(p []byte) error {
	if w.base64 {
		m := append(make([]byte, 0, 1+base64.StdEncoding.EncodedLen(len(p))), '0'+w.channel)
		return w.c.Write(w.ctx, websocket.MessageText, base64.StdEncoding.AppendEncode(m, p))
	}
	m := append(make([]byte, 0, 1+len(p)), w.channel)
	return w.c.Write(w.ctx, websocket.MessageBinary, append(m, p...))
}
