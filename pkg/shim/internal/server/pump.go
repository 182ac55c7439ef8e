package server

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/shim/internal/crilog"
)

// pump moves one stream of a container, a pipe or a console, into its log and to whoever is attached. It
// never waits for either.
type pump struct {
	f    *os.File
	rc   syscall.RawConn
	tty  bool
	bufs *buffers
	log  *crilog.Stream
	hold bool          // run waits for open; set before anybody else has the pump
	held chan struct{} // closed by open: what is held back is read
	open func()

	mu    sync.Mutex // held from reading bytes to having written them
	alone bool       // the end of the process has let go what was held back, before any client came
	seen  uint64     // bytes read so far
	eof   bool
	moved chan struct{} // closed at the next change of seen or eof, nil when nobody waits
	sinks []*sink
}

// newPump takes over r, which must be in non-blocking mode.
func newPump(r *os.File, tty bool, bufs *buffers, log *crilog.Stream) (*pump, error) {
	rc, err := r.SyscallConn()
	if err != nil {
		r.Close()
		return nil, err
	}
	p := &pump{f: r, rc: rc, tty: tty, bufs: bufs, log: log, held: make(chan struct{})}
	p.open = sync.OnceFunc(func() { close(p.held) })
	return p, nil
}

// run moves bytes until the stream ends or close is called. With hold it begins when a client attaches or the
// process ends, whichever comes first: until then what the process writes stays in its console.
func (p *pump) run() {
	if p.hold {
		<-p.held
	}
	for {
		more := false
		if err := p.rc.Read(func(fd uintptr) bool {
			var wait bool
			more, wait = p.step(int(fd))
			return !wait
		}); err != nil || !more {
			p.finish()
			return
		}
	}
}

// step reads once and passes on what came. more is false at the end of the stream, wait true when there
// is nothing to read yet.
func (p *pump) step(fd int) (more, wait bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.bufs.get()
	defer p.bufs.put(b)
	n, err := unix.Read(fd, b.in[:readSize])
	switch {
	case err == unix.EINTR:
		return true, false
	case err == unix.EAGAIN:
		return true, true
	case err != nil || n <= 0: // a console whose last program has gone gives EIO
		return false, false
	}
	in := b.in[:n]
	p.log.Chunk(in, b.out, time.Now())
	p.fan(in)
	p.seen += uint64(n)
	p.wake()
	if n >= readSize/4 {
		p.bufs.worked()
	}
	return true, false
}

func (p *pump) wake() {
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

func (p *pump) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.eof {
		return
	}
	b := p.bufs.get()
	p.log.Flush(b.out, time.Now())
	p.bufs.put(b)
	p.eof = true
	p.wake()
	for _, s := range p.sinks {
		s.f.Close()
	}
	p.sinks = nil
	p.f.Close()
}

// ended reports whether the stream has ended and all of it is in the log.
func (p *pump) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.eof
}

// close ends the stream even where a background process still holds the other end.
func (p *pump) close() {
	p.f.Close()
	p.open()
}

// drained returns when all that a process which has just ended wrote has been passed on: at the end of
// the stream, or where another process keeps it open when what was in the pipe has been read. The
// console of a terminal cannot say what is in it, so it gets a moment. It gives up at the limit.
func (p *pump) drained(limit time.Duration) {
	p.mu.Lock()
	select {
	case <-p.held:
	default:
		p.alone = p.hold
	}
	p.mu.Unlock()
	p.open()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	want := uint64(0)
	for first := true; ; first = false {
		p.mu.Lock()
		if first && !p.tty {
			_ = p.rc.Control(func(fd uintptr) {
				if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
					want = p.seen + uint64(n)
				}
			})
		}
		if p.eof || !p.tty && p.seen >= want && !p.over() {
			p.mu.Unlock()
			return
		}
		if p.moved == nil {
			p.moved = make(chan struct{})
		}
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-timeout.C:
			return
		}
	}
}

// over reports whether nobody can write any more: the end of the stream is the next thing that is read, and with it the
// line that has no newline is logged.
func (p *pump) over() (yes bool) {
	_ = p.rc.Control(func(fd uintptr) { yes = hungUp(int(fd)) })
	return yes
}

// sinkSize is how far an attached client may be behind before it misses bytes.
const sinkSize = 1 << 20

// sink is one attached client's end of a stream: a pipe in non-blocking mode, whose buffer in the kernel
// is all the buffer there is. A client that is too slow misses whole lines, and is told how much in the
// stream itself: cutting it off would be worse for a person who watches, and holding the container up is
// out of the question.
type sink struct {
	f    *os.File
	rc   syscall.RawConn
	lost uint64
}

// attach adds a client and returns its end of the stream, which the caller owns; one that has ended gives end of file. Of a
// terminal it begins with the line that stands unfinished: a prompt is the answer to what nobody has typed yet.
func (p *pump) attach() (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, sinkSize) // less is allowed to the unprivileged
	r, w := os.NewFile(uintptr(fds[0]), "attached"), os.NewFile(uintptr(fds[1]), "sink")
	rc, err := w.SyscallConn()
	if err != nil {
		r.Close()
		w.Close()
		return nil, err
	}
	s := &sink{f: w, rc: rc}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.eof || p.alone { // who was promised all of it is not to take a part for that
		w.Close()
		return r, nil // an end of file at once
	}
	if p.tty {
		s.write(p.log.Unfinished())
	}
	p.sinks = append(p.sinks, s)
	p.open()
	go p.watch(s)
	return r, nil
}

// watch takes the client off when it has closed its end, also while the container says nothing.
func (p *pump) watch(s *sink) {
	_ = s.rc.Read(func(fd uintptr) bool { return hungUp(int(fd)) })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(s)
}

// hungUp reports whether nobody has the other end of a pipe open.
func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
}

func (p *pump) remove(s *sink) {
	for i, other := range p.sinks {
		if other == s {
			p.sinks = append(p.sinks[:i:i], p.sinks[i+1:]...)
			s.f.Close()
			return
		}
	}
}

// fan gives b to every attached client that has room.
func (p *pump) fan(b []byte) {
	for _, s := range p.sinks {
		if !s.write(b) {
			p.remove(s) // the slice that range walks is not touched
		}
	}
}

// write reports whether the client is still there.
func (s *sink) write(b []byte) bool {
	if s.lost > 0 {
		i := bytes.IndexByte(b, '\n') + 1
		note := append(strconv.AppendUint([]byte("\r\n[attach: "), s.lost+uint64(i), 10), " bytes are missing here: the client reads too slowly]\r\n"...)
		n, alive := s.try(note)
		if n < len(note) { // a part of it cannot be: it is shorter than PIPE_BUF, so pipes take it whole
			s.lost += uint64(len(b))
			return alive
		}
		s.lost, b = 0, b[i:]
	}
	n, alive := s.try(b)
	s.lost += uint64(len(b) - n)
	return alive
}

func (s *sink) try(b []byte) (n int, alive bool) {
	alive = true
	err := s.rc.Control(func(fd uintptr) {
		for n < len(b) {
			m, err := unix.Write(int(fd), b[n:])
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				alive = err == unix.EAGAIN
				return
			}
			n += m
		}
	})
	return n, alive && err == nil
}
