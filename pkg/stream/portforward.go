package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// forwardProtocols are the WebSocket subprotocols of port-forward: SPDY in a tunnel, or two channels for
// each port that the request named.
var forwardProtocols = []string{portforward.WebsocketsSPDYTunnelingPortForwardV1, protocolV4, "v4.base64.channel.k8s.io"}

// maxPairs is how many connections one client may forward at a time.
const maxPairs = 1024

func (s *Server) portForward(w http.ResponseWriter, r *http.Request, req *cri.PortForwardRequest) {
	log := klog.Background().WithValues("stream", "portforward", "pod", req.GetPodSandboxId())
	f := &forwarder{server: s, pod: req.GetPodSandboxId(), ports: req.GetPort(), log: log}
	var err error
	if isWebSocket(r) {
		err = f.overWebSocket(w, r)
	} else {
		err = f.overSPDY(w, r)
	}
	log.V(2).Info("Stream ended", "err", err)
}

// forwarder serves one client of port-forward.
type forwarder struct {
	server *Server
	pod    string
	ports  []int32 // the only ones allowed, where there are any
	log    klog.Logger
	wg     sync.WaitGroup
}

// overSPDY serves a client that upgraded to SPDY/3.1.
func (f *forwarder) overSPDY(w http.ResponseWriter, r *http.Request) error {
	if _, err := httpstream.Handshake(r, w, portforward.SupportedProtocols); err != nil {
		return err
	}
	ctx, cancel, free := f.server.watch(r)
	streams := make(chan httpstream.Stream)
	conn := upgrade(w, r, f.arrived(ctx, streams))
	if conn == nil {
		free()
		return errors.New("upgrade to SPDY failed")
	}
	conn.SetIdleTimeout(f.server.cfg.IdleTimeout)
	c := &spdyConn{conn: conn, cancel: cancel, free: free}
	c.net, _ = r.Context().Value(connKey{}).(net.Conn)
	return f.run(ctx, c, streams)
}

// overWebSocket serves a client that upgraded to a WebSocket.
func (f *forwarder) overWebSocket(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel, free := f.server.watch(r)
	touch, stopIdle := f.server.idle(cancel)
	defer stopIdle()
	protocols := forwardProtocols
	if len(f.ports) == 0 {
		protocols = protocols[:1] // channels are laid out by the ports of the request
	}
	ws, err := accept(w, r, protocols, touch)
	if err != nil {
		free()
		return err
	}
	if ws.Subprotocol() != portforward.WebsocketsSPDYTunnelingPortForwardV1 {
		defer free()
		return f.overChannels(ctx, cancel, newChannels(ctx, ws, touch))
	}
	tunnel := &onceConn{Conn: &touchConn{websocket.NetConn(ctx, ws, websocket.MessageBinary), touch}}
	streams := make(chan httpstream.Stream)
	conn, err := spdy.NewServerConnection(tunnel, f.arrived(ctx, streams))
	if err != nil {
		_ = ws.CloseNow()
		free()
		return fmt.Errorf("speak SPDY through the tunnel: %w", err)
	}
	c := &spdyConn{conn: conn, cancel: cancel, free: free}
	c.net, _ = r.Context().Value(connKey{}).(net.Conn)
	return f.run(ctx, c, streams)
}

// touchConn keeps a tunnel from being taken for idle.
type touchConn struct {
	net.Conn
	touch func()
}

func (c *touchConn) Read(p []byte) (int, error)  { c.touch(); return c.Conn.Read(p) }
func (c *touchConn) Write(p []byte) (int, error) { c.touch(); return c.Conn.Write(p) }

// arrived checks a stream that the client opens and hands it to run.
func (f *forwarder) arrived(ctx context.Context, streams chan<- httpstream.Stream) httpstream.NewStreamHandler {
	return func(st httpstream.Stream, _ <-chan struct{}) error {
		if _, err := f.port(st); err != nil {
			return err
		}
		t := st.Headers().Get(portforward.StreamType)
		if t != portforward.StreamTypeData && t != portforward.StreamTypeError {
			return fmt.Errorf("stream type %q: want data or error", t)
		}
		select {
		case streams <- st:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// port is the port that a stream is for.
func (f *forwarder) port(st httpstream.Stream) (int32, error) {
	v := st.Headers().Get(portforward.PortHeader)
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: not between 1 and 65535", v)
	}
	if len(f.ports) > 0 && !slices.Contains(f.ports, int32(n)) {
		return 0, fmt.Errorf("port %d: the request was for others", n)
	}
	return int32(n), nil
}

// pair is the two streams of one forwarded connection.
type pair struct {
	data, err httpstream.Stream
	timer     *time.Timer
}

// run pairs the streams that arrive and forwards each pair, until the connection ends.
func (f *forwarder) run(ctx context.Context, c *spdyConn, streams <-chan httpstream.Stream) error {
	c.follow(ctx)
	defer func() {
		c.close()
		f.wg.Wait()
	}()
	pairs := map[string]*pair{}
	late := make(chan string)
	slots := make(chan struct{}, maxPairs)
	for {
		select {
		case st := <-streams:
			id := requestID(st)
			p := pairs[id]
			if p == nil {
				if len(pairs) >= maxPairs {
					_ = st.Reset() // nothing is owed to a client that only opens halves
					continue
				}
				p = &pair{timer: time.AfterFunc(f.server.cfg.CreateTime, func() {
					select {
					case late <- id:
					case <-ctx.Done():
					}
				})}
				pairs[id] = p
			}
			if !p.add(st) {
				_ = st.Reset()
				continue
			}
			if p.data != nil && p.err != nil {
				p.timer.Stop()
				delete(pairs, id)
				f.start(ctx, c.conn, p, slots)
			}
		case id := <-late:
			if p := pairs[id]; p != nil {
				delete(pairs, id)
				p.drop(c.conn, "the other stream of the pair did not come")
			}
		case <-ctx.Done():
			for _, p := range pairs {
				p.timer.Stop()
			}
			return context.Cause(ctx)
		}
	}
}

func (p *pair) add(st httpstream.Stream) bool {
	slot := &p.data
	if st.Headers().Get(portforward.StreamType) == portforward.StreamTypeError {
		slot = &p.err
	}
	if *slot != nil {
		return false
	}
	*slot = st
	return true
}

// drop ends a pair with a message where there is a stream for it.
func (p *pair) drop(conn httpstream.Connection, message string) {
	if p.err != nil {
		_, _ = io.WriteString(p.err, message) // the client may be gone
	}
	for _, st := range []httpstream.Stream{p.data, p.err} {
		if st != nil {
			_ = st.Reset()
			conn.RemoveStreams(st)
		}
	}
}

// requestID tells which pair a stream belongs to. Old clients do not say: theirs come two by two, the error
// stream first, with consecutive odd numbers.
func requestID(st httpstream.Stream) string {
	if id := st.Headers().Get(portforward.PortForwardRequestIDHeader); id != "" {
		return id
	}
	n := st.Identifier()
	if st.Headers().Get(portforward.StreamType) == portforward.StreamTypeData {
		n -= 2
	}
	return "stream " + strconv.FormatUint(uint64(n), 10)
}

// start forwards one pair on a goroutine of its own.
func (f *forwarder) start(ctx context.Context, conn httpstream.Connection, p *pair, slots chan struct{}) {
	select {
	case slots <- struct{}{}:
	default:
		p.drop(conn, fmt.Sprintf("%d connections are being forwarded already", maxPairs))
		return
	}
	f.wg.Go(func() {
		defer func() { <-slots }()
		defer conn.RemoveStreams(p.data, p.err)
		port, _ := f.port(p.data) // checked on arrival
		err := f.server.rt.PortForward(ctx, f.pod, port, &halfStream{Stream: p.data})
		if err != nil && ctx.Err() == nil {
			f.log.V(2).Info("Forwarding failed", "port", port, "err", err)
			_, _ = fmt.Fprintf(p.err, "error forwarding port %d to pod %s: %v", port, f.pod, err)
		}
		_ = p.data.Close()
		_ = p.err.Close()
		_ = p.data.Reset() // ends a Read that still waits for the client
		_ = p.err.Reset()
	})
}

// halfStream closes its own direction once: closing twice is an error of the stream below.
type halfStream struct {
	httpstream.Stream
	once sync.Once
}

func (h *halfStream) Close() (err error) {
	h.once.Do(func() { err = h.Stream.Close() })
	return err
}

// overChannels serves the ports of the request, each by a channel for data and one for an error. Every
// channel begins with its port, two bytes, the low one first.
func (f *forwarder) overChannels(ctx context.Context, cancel context.CancelCauseFunc, ws *channels) error {
	readers := map[byte]*io.PipeWriter{}
	if 2*len(f.ports) > chanClose {
		_ = ws.c.Close(websocket.StatusPolicyViolation, "too many ports")
		return errors.New("too many ports")
	}
	for i, port := range f.ports {
		data, errs := ws.writer(byte(2*i)), ws.writer(byte(2*i+1))
		head := binary.LittleEndian.AppendUint16(nil, uint16(port))
		_, _ = data.Write(head) // the client may be gone, which demux notices
		_, _ = errs.Write(head)
		pr, pw := io.Pipe()
		readers[byte(2*i)] = pw
		f.wg.Go(func() {
			defer pr.Close()
			err := f.server.rt.PortForward(ctx, f.pod, port, &channelPair{pr, data})
			if err != nil && ctx.Err() == nil {
				_, _ = fmt.Fprintf(errs, "error forwarding port %d to pod %s: %v", port, f.pod, err)
			}
		})
	}
	ws.wg.Go(func() { cancel(ws.demux(readers)) })
	f.wg.Wait()
	ws.shut()
	return nil
}

// channelPair is the data channel of one port.
type channelPair struct {
	*io.PipeReader
	io.Writer
}

// Close ends reading; a channel cannot be closed before version 5.
func (c *channelPair) Close() error { return c.PipeReader.Close() }

var _ io.ReadWriteCloser = (*channelPair)(nil)
