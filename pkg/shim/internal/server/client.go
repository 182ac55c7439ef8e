package server

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
)

const (
	maxQueued   = 1024 // messages that a client may leave unread before it is cut off
	maxInFlight = 256  // requests of one client at a time
	sendLimit   = 30 * time.Second
)

// client is one connection. Messages to it never hold up who sends them: what the socket does not take
// waits in a queue, and a client that lets the queue fill up is cut off; it can ask for States again.
type client struct {
	s    *server
	conn *wire.Conn

	mu       sync.Mutex
	queue    []*wire.Frame
	flushing bool
	closed   bool
	idle     sync.Cond // signalled when flushing ends
}

// serve answers the requests of one connection until it closes.
func (s *server) serve(conn *wire.Conn) {
	cl := &client{s: s, conn: conn}
	cl.idle.L = &cl.mu
	s.mu.Lock()
	s.clients[cl] = struct{}{}
	s.mu.Unlock()
	slots := make(chan struct{}, maxInFlight)
	for {
		fr, err := conn.Recv()
		if err != nil {
			break
		}
		if fr.Kind != wire.Request {
			fr.Close()
			continue
		}
		if fr.Op == wire.OpHello { // in order: nothing a client sends later is answered before it
			cl.handle(fr)
			continue
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			cl.handle(fr)
		}()
	}
	cl.close()
	s.mu.Lock()
	delete(s.clients, cl)
	s.mu.Unlock()
	s.ended()
}

// handle answers one request and then does what the answer set off.
func (cl *client) handle(fr *wire.Frame) {
	reply, after, err := cl.s.dispatch(cl, fr)
	fr.Close()
	if err != nil {
		reply = &wire.Frame{Kind: wire.Error, Body: wire.Marshal(failure(err))}
	} else {
		if reply == nil {
			reply = &wire.Frame{}
		}
		reply.Kind = wire.Reply
	}
	reply.Op, reply.ID = fr.Op, fr.ID
	cl.post(reply)
	if after != nil {
		after()
	}
	cl.s.bufs.worked()
}

// failure takes an error apart for the wire.
func failure(err error) *wire.Failure {
	f := &wire.Failure{ErrKind: uint64(errs.KindOf(err)), Text: err.Error()}
	var op *launch.OpError
	if errors.As(err, &op) {
		f.IsOp, f.Index, f.Errno = true, op.Index, int(op.Errno)
	}
	return f
}

// post sends fr, or queues it where the client is slow. It takes over the frame and its descriptors and
// never blocks.
func (cl *client) post(fr *wire.Frame) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.closed {
		fr.Close()
		return
	}
	if !cl.flushing {
		sent, err := cl.conn.TrySend(fr)
		if sent || err != nil {
			fr.Close()
			if err != nil {
				cl.shut()
			}
			return
		}
		cl.flushing = true
		go cl.flush()
	}
	if len(cl.queue) >= maxQueued {
		fr.Close()
		cl.shut()
		return
	}
	cl.queue = append(cl.queue, fr)
}

// flush sends what is queued until nothing is left.
func (cl *client) flush() {
	for {
		cl.mu.Lock()
		if len(cl.queue) == 0 || cl.closed {
			cl.flushing = false
			cl.idle.Broadcast()
			cl.mu.Unlock()
			return
		}
		fr := cl.queue[0]
		cl.queue = cl.queue[1:]
		cl.mu.Unlock()
		err := cl.conn.Send(fr, time.Now().Add(sendLimit))
		fr.Close()
		if err != nil {
			cl.close()
		}
	}
}

// flushed waits until all that was posted is with the kernel, or the client is gone.
func (cl *client) flushed() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for cl.flushing && !cl.closed {
		cl.idle.Wait()
	}
}

func (cl *client) close() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.shut()
}

// shut is close with mu held.
func (cl *client) shut() {
	if cl.closed {
		return
	}
	cl.closed = true
	cl.conn.Close()
	for _, fr := range cl.queue {
		fr.Close()
	}
	cl.queue = nil
	cl.idle.Broadcast()
}

// broadcast sends fr, which has no descriptors, to every client.
func (s *server) broadcast(fr *wire.Frame) {
	s.mu.Lock()
	all := make([]*client, 0, len(s.clients))
	for cl := range s.clients {
		all = append(all, cl)
	}
	s.mu.Unlock()
	for _, cl := range all {
		c := *fr
		cl.post(&c)
	}
}

// accept takes connections until the listening socket closes. Only root, or whoever the shim runs as, may talk to it.
func (s *server) accept(listener *os.File) error {
	rc, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	for {
		conn := -1
		if err := rc.Read(func(fd uintptr) bool {
			var aerr error
			conn, _, aerr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return aerr != unix.EAGAIN
		}); err != nil {
			return err
		}
		if conn < 0 { // the peer gave up, or no descriptor is free: the next may fare better
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err := checkPeer(conn); err != nil {
			s.complain(err.Error())
			unix.Close(conn)
			continue
		}
		c, err := wire.NewConn(conn, s.bufs.getIn, s.bufs.putIn)
		if err != nil {
			continue
		}
		go s.serve(c)
	}
}

func checkPeer(conn int) error {
	cred, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("refused a connection of user %d, process %d", cred.Uid, cred.Pid)
	}
	return nil
}
