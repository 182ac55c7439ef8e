package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// maxStreams is how many streams of exec or attach may wait to be looked at; more than five make no sense.
const maxStreams = 16

// spdyProtocols are what exec and attach speak inside SPDY: version 4 ends with a Status, version 3 knows
// resizing, version 2 is the oldest whose streams close as they should.
var spdyProtocols = []string{remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV3Name, remotecommand.StreamProtocolV2Name}

// arrival is a stream that the client opened. replied is closed when it may be written to.
type arrival struct {
	httpstream.Stream
	replied <-chan struct{}
}

// openSPDY upgrades to SPDY/3.1 and waits for the client to open the streams of the request.
func (s *Server) openSPDY(w http.ResponseWriter, r *http.Request, want want) (*session, error) {
	protocol, err := httpstream.Handshake(r, w, spdyProtocols)
	if err != nil {
		return nil, err
	}
	ctx, cancel, free := s.watch(r)
	arrivals := make(chan arrival, maxStreams)
	conn := upgrade(w, r, func(st httpstream.Stream, replied <-chan struct{}) error {
		select {
		case arrivals <- arrival{st, replied}:
			return nil
		default:
			return errors.New("too many streams")
		}
	})
	if conn == nil {
		free()
		return nil, errors.New("upgrade to SPDY failed")
	}
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	c := &spdyConn{conn: conn, cancel: cancel, free: free, lingerTime: s.linger, plain: protocol != remotecommand.StreamProtocolV4Name}
	c.net, _ = r.Context().Value(connKey{}).(net.Conn)
	c.follow(ctx)
	byType, err := s.collect(ctx, arrivals, want.types(protocol))
	if err != nil {
		c.close()
		return nil, err
	}
	c.wg.Go(func() {
		s.beat(ctx, func() { _, _ = byType[remotecommand.StreamTypeError].Write(nil) }) // an empty frame means nothing
	})
	return c.session(ctx, byType), nil
}

// types are the streams that a client opens for a request.
func (w want) types(protocol string) []string {
	out := []string{remotecommand.StreamTypeError}
	for _, t := range []struct {
		on   bool
		name string
	}{
		{w.stdin, remotecommand.StreamTypeStdin}, {w.stdout, remotecommand.StreamTypeStdout}, {w.stderr, remotecommand.StreamTypeStderr},
		{w.tty && protocol != remotecommand.StreamProtocolV2Name, remotecommand.StreamTypeResize},
	} {
		if t.on {
			out = append(out, t.name)
		}
	}
	return out
}

// collect waits until every wanted stream is there and may be written to. Others are reset.
func (s *Server) collect(ctx context.Context, arrivals <-chan arrival, types []string) (map[string]httpstream.Stream, error) {
	wanted := make(map[string]bool, len(types))
	for _, t := range types {
		wanted[t] = true
	}
	timer := time.NewTimer(s.cfg.CreateTime)
	defer timer.Stop()
	got := make(map[string]httpstream.Stream, len(types))
	for len(got) < len(types) {
		select {
		case a := <-arrivals:
			t := a.Headers().Get(remotecommand.StreamType)
			select {
			case <-a.replied:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			if !wanted[t] || got[t] != nil {
				_ = a.Reset() // it is of no use, and the client hears so
				continue
			}
			got[t] = a.Stream
		case <-timer.C:
			return nil, fmt.Errorf("the client opened %d of %d streams in %v", len(got), len(types), s.cfg.CreateTime)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return got, nil
}

// spdyConn is an upgraded connection and what serves it.
type spdyConn struct {
	conn       httpstream.Connection
	net        net.Conn
	cancel     context.CancelCauseFunc
	free       func()
	plain      bool
	lingerTime time.Duration
	wg         sync.WaitGroup
}

// upgrade turns a request into a SPDY connection, or answers it and returns nil.
func upgrade(w http.ResponseWriter, r *http.Request, arrived httpstream.NewStreamHandler) httpstream.Connection {
	return spdy.NewResponseUpgrader().UpgradeResponse(hijacker{w}, r, arrived)
}

// hijacker hands out connections that may be closed twice. The SPDY library minds an error of the second
// Close for a second.
type hijacker struct{ http.ResponseWriter }

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &onceConn{Conn: c}, rw, nil
}

// onceConn closes once and keeps quiet about it: nobody could do anything about the error.
type onceConn struct {
	net.Conn
	once sync.Once
}

func (c *onceConn) Close() error {
	c.once.Do(func() { c.Conn.Close() })
	return nil
}

// follow ties the context and the connection together: the end of one is the end of the other.
func (c *spdyConn) follow(ctx context.Context) {
	c.wg.Go(func() {
		select {
		case <-c.conn.CloseChan():
			c.cancel(errGone)
		case <-ctx.Done():
		}
		c.shut()
	})
}

// shut closes the connection at once. The network's end goes first: resetting the streams writes to it, and
// would wait for a client that does not read.
func (c *spdyConn) shut() {
	if c.net != nil {
		c.net.Close()
	}
	c.conn.Close()
}

// close ends the connection and returns when nothing of it is left.
func (c *spdyConn) close() {
	c.cancel(nil)
	c.wg.Wait()
	<-c.conn.CloseChan()
	c.free()
}

// linger waits for the client to close the connection, for a while: closing it before the client has read
// everything could cut off the last bytes.
func (c *spdyConn) linger(ctx context.Context) {
	timer := time.NewTimer(c.lingerTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (c *spdyConn) session(ctx context.Context, byType map[string]httpstream.Stream) *session {
	sess := &session{ctx: ctx}
	if st := byType[remotecommand.StreamTypeStdin]; st != nil {
		sess.stdin = st
	}
	if st := byType[remotecommand.StreamTypeStdout]; st != nil {
		sess.stdout = st
	}
	if st := byType[remotecommand.StreamTypeStderr]; st != nil {
		sess.stderr = st
	}
	if st := byType[remotecommand.StreamTypeResize]; st != nil {
		sizes := make(latest, 1)
		sess.tty, sess.resize = true, sizes
		c.wg.Go(func() { decodeSizes(st, sizes) })
	}
	sess.finish = func(result *status) {
		for _, t := range []string{remotecommand.StreamTypeStdout, remotecommand.StreamTypeStderr} {
			if st := byType[t]; st != nil {
				_ = st.Close() // the client may be gone
			}
		}
		errStream := byType[remotecommand.StreamTypeError]
		if b := result.encode(c.plain); len(b) > 0 {
			_, _ = errStream.Write(b) // the client may be gone
		}
		_ = errStream.Close()
		c.linger(ctx)
		c.close()
	}
	return sess
}
