package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
)

// logName is the shim's own log in its directory: what it could not tell anybody.
const logName = "shim.log"

// sendLimit bounds how long a request waits for a shim that does not read.
const sendLimit = 10 * time.Second

// Client speaks to one shim. All its methods may be called from any goroutine. When the shim dies or the
// connection breaks, calls in flight and later ones fail with errs.Unavailable.
type Client struct {
	dir     string
	conn    *wire.Conn
	pidfd   *os.File
	spawned bool // the shim is our child, and ours to reap

	events chan Event
	done   chan struct{} // the shim is dead
	broken chan struct{} // the connection is

	mu      sync.Mutex
	info    Info
	nextID  uint32
	pending map[uint32]chan *wire.Frame
	execs   map[string]*Exec
	err     error // why the connection is broken

	eventMu   sync.Mutex
	eventWake chan struct{}
	eventList []Event
}

var packets = sync.Pool{New: func() any { b := make([]byte, wire.PacketLen()); return &b }}

func newClient(dir string, sock int) (*Client, error) {
	// A borrowed buffer is remembered by the one receiver, so that put finds its pool entry.
	var held *[]byte
	get := func() []byte { held = packets.Get().(*[]byte); return *held }
	put := func([]byte) { packets.Put(held) }
	conn, err := wire.NewConn(sock, get, put)
	if err != nil {
		return nil, err
	}
	return &Client{
		dir: dir, conn: conn,
		events: make(chan Event, 16), done: make(chan struct{}), broken: make(chan struct{}),
		pending: map[uint32]chan *wire.Frame{}, execs: map[string]*Exec{}, eventWake: make(chan struct{}, 1),
	}, nil
}

// run starts the client's goroutines; pidfd is the shim's and becomes the client's.
func (c *Client) run(pidfd *os.File) {
	c.pidfd = pidfd
	go c.receive()
	go c.deliver()
	go c.await()
}

// await closes done when the shim has ended, and reaps it where it is a child.
func (c *Client) await() {
	rc, err := c.pidfd.SyscallConn()
	if err == nil {
		err = rc.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			return err == nil && n > 0
		})
	}
	if err != nil {
		return // Close came first
	}
	if c.spawned {
		for {
			if _, err := unix.Wait4(c.Info().Pid, nil, 0, nil); err != unix.EINTR {
				break
			}
		}
	}
	close(c.done)
	c.pidfd.Close()
}

// Done is closed when the shim has died. A client that was closed before does not see it.
func (c *Client) Done() <-chan struct{} { return c.done }

// Info returns who the shim is.
func (c *Client) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// Events tells what happens in the pod from the connection's beginning on, in order. What is not read is
// kept while the connection lasts; when it dies the channel is closed, and what was not read by then may be lost: the
// exit records have it. An event may tell what a reply to States has told or will tell.
func (c *Client) Events() <-chan Event { return c.events }

// Close ends the connection and leaves the shim and its containers running. A shim that has nothing to
// keep ends by itself then. It is idempotent.
func (c *Client) Close() error {
	c.breakOff(errs.New(errs.Unavailable, "the connection to the shim was closed"))
	if !c.spawned {
		c.pidfd.Close()
	}
	return nil
}

// breakOff fails everything that waits.
func (c *Client) breakOff(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	pending, execs := c.pending, c.execs
	c.pending, c.execs = nil, nil
	c.mu.Unlock()
	c.conn.Close()
	for _, ch := range pending {
		close(ch)
	}
	for _, e := range execs {
		close(e.done)
	}
	close(c.broken)
}

// lost makes the error of a connection that the other side ended.
func (c *Client) lost(err error) error {
	what := "the connection broke"
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		what = "it has ended"
	}
	text := fmt.Sprintf("shim (process %d): %s", c.Info().Pid, what)
	if what == "the connection broke" {
		text += ": " + err.Error()
	}
	if last := lastLine(filepath.Join(c.dir, logName)); last != "" {
		text += ". The last line of its log is: " + last
	}
	return errs.New(errs.Unavailable, "%s", text)
}

// lastLine returns the end of a short log, "" where there is none.
func lastLine(path string) string {
	f, err := os.Open(path) //nolint:forbidigo // our own 0700 state directory
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, 1024)
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	n, _ := f.ReadAt(buf, max(0, st.Size()-int64(len(buf))))
	lines := strings.Split(strings.TrimSpace(string(buf[:n])), "\n")
	return lines[len(lines)-1]
}

// receive takes in what the shim sends until the connection ends.
func (c *Client) receive() {
	for {
		fr, err := c.conn.Recv()
		if err != nil {
			c.breakOff(c.lost(err))
			return
		}
		switch fr.Kind {
		case wire.Reply, wire.Error:
			c.mu.Lock()
			ch := c.pending[fr.ID]
			delete(c.pending, fr.ID)
			c.mu.Unlock()
			if ch == nil {
				fr.Close() // the caller has given up
				continue
			}
			ch <- fr
		case wire.Event:
			c.event(fr)
			fr.Close()
		default:
			fr.Close() // a newer shim's; what matters it also answers
		}
	}
}

func (c *Client) event(fr *wire.Frame) {
	var m wire.State
	if err := wire.Unmarshal(fr.Body, &m); err != nil {
		return
	}
	switch fr.Op {
	case wire.EventExecExit:
		c.mu.Lock()
		e := c.execs[m.ID]
		delete(c.execs, m.ID)
		c.mu.Unlock()
		if e != nil {
			e.status = &ExitStatus{ExitCode: m.ExitCode, Signal: m.Signal, FinishedAt: m.FinishedAt}
			close(e.done)
		}
	case wire.EventExit, wire.EventOOM:
		typ := EventExit
		if fr.Op == wire.EventOOM {
			typ = EventOOM
		}
		c.eventMu.Lock()
		c.eventList = append(c.eventList, Event{Type: typ, State: state(&m)})
		c.eventMu.Unlock()
		select {
		case c.eventWake <- struct{}{}:
		default:
		}
	}
}

// deliver moves events into the channel, so that a reader who is slow does not hold replies up.
func (c *Client) deliver() {
	defer close(c.events)
	for {
		c.eventMu.Lock()
		list := c.eventList
		c.eventList = nil
		c.eventMu.Unlock()
		for _, e := range list {
			select {
			case c.events <- e:
			case <-c.broken: // who reads later gets what fits
				select {
				case c.events <- e:
				default:
				}
			}
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-c.eventWake:
		case <-c.broken:
			return
		}
	}
}

func state(m *wire.State) ContainerState {
	return ContainerState{
		ID: m.ID, Holder: m.Holder, Pid: m.Pid, Gated: m.Gated, StartedAt: m.StartedAt,
		Exited: m.Exited, ExitCode: m.ExitCode, Signal: m.Signal, FinishedAt: m.FinishedAt,
		OOMKilled: m.OOMKilled, OOMKills: m.OOMKills,
		DroppedLines: m.DroppedLines, DroppedBytes: m.DroppedBytes, LogError: m.LogError,
	}
}

// call sends a request and waits for its reply, which it decodes into out; the caller owns the files. When
// ctx ends first the request may still be carried out.
func (c *Client) call(ctx context.Context, op wire.Op, in, out wire.Message, files ...*os.File) ([]*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ch := make(chan *wire.Frame, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.nextID++
	id := c.nextID
	c.pending[id] = ch
	c.mu.Unlock()
	deadline := time.Now().Add(sendLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.conn.Send(&wire.Frame{Kind: wire.Request, Op: op, ID: id, Body: wire.Marshal(in), Files: files}, deadline); err != nil {
		c.forget(id)
		c.mu.Lock()
		broken := c.err
		c.mu.Unlock()
		switch {
		case broken != nil:
			return nil, broken
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, errs.New(errs.Timeout, "shim (process %d): it does not take requests", c.Info().Pid)
		case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
			return nil, c.lost(io.EOF)
		}
		return nil, fmt.Errorf("send a request to the shim: %w", err)
	}
	select {
	case <-ctx.Done():
		c.forget(id)
		return nil, ctx.Err()
	case fr, ok := <-ch:
		if !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.err
		}
		return reply(fr, out)
	}
}

// forget drops a request that nobody waits for any more, and its reply if it has come meanwhile.
func (c *Client) forget(id uint32) {
	c.mu.Lock()
	ch := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if ch != nil {
		return // its reply will find nobody
	}
	// Either the reply is in the channel by now, or receive is about to put it there and drop cannot see
	// it: then the finalizers of its files close them.
}

func reply(fr *wire.Frame, out wire.Message) ([]*os.File, error) {
	if fr.Kind == wire.Error {
		fr.Close()
		var f wire.Failure
		if err := wire.Unmarshal(fr.Body, &f); err != nil {
			return nil, fmt.Errorf("the shim's answer is an error that cannot be read: %w", err)
		}
		return nil, remoteError(&f)
	}
	if out != nil {
		if err := wire.Unmarshal(fr.Body, out); err != nil {
			fr.Close()
			return nil, fmt.Errorf("the shim's answer cannot be read: %w", err)
		}
	}
	return fr.Files, nil
}

// failedThere is an error that came over the wire. Its text is all of it; what can be asked of it is the
// kind, which errs wraps around it, and the *launch.OpError.
type failedThere struct {
	text string
	op   error
}

func (e *failedThere) Error() string { return e.text }
func (e *failedThere) Unwrap() error { return e.op }

func remoteError(f *wire.Failure) error {
	e := &failedThere{text: f.Text}
	if f.IsOp {
		e.op = &launch.OpError{Index: f.Index, Errno: syscall.Errno(f.Errno)}
	}
	if f.ErrKind == uint64(errs.Unknown) || f.ErrKind > 255 {
		return e
	}
	return errs.With(errs.Kind(f.ErrKind), e)
}
