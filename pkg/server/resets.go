package server

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

// A caller that gives up on a call sends RST_STREAM. gRPC ends the call's context then, but only while the call is
// open: once the answer is on its way nobody is told any more, and a client that left in just that moment would find
// the name of its pod taken when it tries again. So the connection itself is watched for these frames. Which call one
// belongs to is not known, and need not be: that some caller of the connection left while this answer was on the way
// is reason enough to give an identical request the same answer.

// resets are the moments at which a connection's client last gave up on something.
type resets struct {
	mu sync.Mutex
	at [32]time.Time
	n  int
}

func (r *resets) add(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at[r.n%len(r.at)] = at
	r.n++
}

// within says whether there was one between the two moments.
func (r *resets) within(from, to time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, at := range r.at {
		if !at.IsZero() && !at.Before(from) && !at.After(to) {
			return true
		}
	}
	return false
}

// withResets lets the lower packages ask whether the call's answer may have been lost.
func withResets(ctx context.Context) context.Context {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return ctx
	}
	info, ok := p.AuthInfo.(watchedInfo)
	if !ok {
		return ctx
	}
	begin := time.Now()
	return sandbox.WithUnheard(ctx, func(until time.Time) bool { return info.resets.within(begin, until) })
}

// watchedInfo is what a connection is known by in the calls on it.
type watchedInfo struct {
	credentials.CommonAuthInfo
	resets *resets
}

func (watchedInfo) AuthType() string { return "watched" }

// watching are no credentials: gRPC hands them every connection before it reads from it.
type watching struct {
	credentials.TransportCredentials
}

func newWatching() credentials.TransportCredentials { return watching{insecure.NewCredentials()} }

func (w watching) Clone() credentials.TransportCredentials { return newWatching() }

func (w watching) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	r := &resets{}
	return &watchedConn{Conn: c, resets: r, skip: prefaceLen},
		watchedInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, r}, nil
}

// What HTTP/2 connections are made of (RFC 9113, sections 3.4, 4.1 and 6.4).
const (
	prefaceLen = 24
	headerLen  = 9
	rstStream  = 3
)

// watchedConn looks at the head of every frame that comes in.
type watchedConn struct {
	net.Conn
	resets *resets
	skip   int // bytes to the next frame
	head   [headerLen]byte
	have   int // of head
}

// Read is net.Conn's; gRPC has one reader for each connection.
func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.look(b[:n])
	return n, err
}

func (c *watchedConn) look(b []byte) {
	for len(b) > 0 {
		if c.skip > 0 {
			n := min(c.skip, len(b))
			c.skip, b = c.skip-n, b[n:]
			continue
		}
		n := copy(c.head[c.have:], b)
		b, c.have = b[n:], c.have+n
		if c.have < headerLen {
			return
		}
		if c.head[3] == rstStream {
			c.resets.add(time.Now())
		}
		c.have, c.skip = 0, int(binary.BigEndian.Uint32(c.head[:4])>>8)
	}
}
