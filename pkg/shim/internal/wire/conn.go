package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// oobLen is room for the control message of one packet with a full set of descriptors.
var oobLen = unix.CmsgSpace(4 * sys.MaxFDs)

// PacketLen is the size of the buffer that Recv needs.
func PacketLen() int { return headerLen + MaxInline + oobLen }

// Conn is one connected socket. One goroutine may receive while several send.
type Conn struct {
	f     *os.File
	rc    syscall.RawConn
	mu    sync.Mutex // one message at a time: its Files frames and itself stay together
	early map[uint32][]*os.File
	get   func() []byte
	put   func([]byte)
}

// NewConn makes a Conn of a connected SOCK_SEQPACKET socket, which it owns from then on, also when it
// fails. Receive buffers of PacketLen bytes are borrowed from get only while a packet is being read and
// returned with put, so that an idle connection holds none.
func NewConn(fd int, get func() []byte, put func([]byte)) (*Conn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "shim socket")
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Conn{f: f, rc: rc, get: get, put: put, early: map[uint32][]*os.File{}}, nil
}

// Close closes the connection; a Recv or Send in flight returns an error. It is idempotent.
func (c *Conn) Close() error { return c.f.Close() }

// Control calls fn with the descriptor.
func (c *Conn) Control(fn func(fd int)) error { return c.rc.Control(func(fd uintptr) { fn(int(fd)) }) }

// Recv waits for the next message. io.EOF says that the peer has closed. Any other error leaves the
// connection in no known state: close it. Recv must not run twice at a time.
func (c *Conn) Recv() (*Frame, error) {
	for {
		fr, err := c.recvPacket()
		if err != nil {
			for _, files := range c.early {
				sys.CloseAll(files)
			}
			c.early = nil
			return nil, err
		}
		if fr.Kind != Files {
			if files, ok := c.early[fr.ID]; ok {
				delete(c.early, fr.ID)
				fr.Files = append(files, fr.Files...)
			}
			return fr, nil
		}
		if len(c.early) > 16 || len(c.early[fr.ID])+len(fr.Files) > MaxFiles {
			fr.Close()
			return nil, fmt.Errorf("a message of more than %d descriptors", MaxFiles)
		}
		c.early[fr.ID] = append(c.early[fr.ID], fr.Files...)
	}
}

// recvPacket reads one packet into a borrowed buffer and takes out what it holds.
func (c *Conn) recvPacket() (fr *Frame, err error) {
	rerr := c.rc.Read(func(fd uintptr) bool {
		buf := c.get()
		defer c.put(buf)
		for {
			data, oob := buf[:headerLen+MaxInline], buf[headerLen+MaxInline:PacketLen()]
			n, oobn, flags, _, e := unix.Recvmsg(int(fd), data, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			switch {
			case e == unix.EINTR:
				continue
			case e == unix.EAGAIN:
				return false
			case e != nil:
				err = os.NewSyscallError("recvmsg", e)
			default:
				fr, err = takePacket(data[:n], oob[:oobn], flags)
			}
			return true
		}
	})
	if rerr != nil {
		return nil, rerr
	}
	return fr, err
}

// takePacket makes a frame of a packet's bytes and control messages. The frame shares no memory with them.
func takePacket(data, oob []byte, flags int) (*Frame, error) {
	files, err := takeFiles(oob)
	if err != nil {
		return nil, err
	}
	fr := &Frame{Files: files}
	if len(data) == 0 && len(files) == 0 {
		return nil, io.EOF // SOCK_SEQPACKET tells an end and an empty packet alike; we never send one
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		fr.Close()
		return nil, errors.New("a packet was cut short: too large, or no free descriptors")
	}
	var h header
	body, err := h.parse(data, len(files))
	if err == nil && h.flags&flagMemfd != 0 {
		last := files[len(files)-1]
		fr.Files = files[:len(files)-1]
		fr.Body, err = readSealed(last, int(h.body))
		last.Close()
	} else if err == nil {
		fr.Body = append([]byte(nil), body...)
	}
	if err != nil {
		fr.Close()
		return nil, err
	}
	fr.Kind, fr.Op, fr.ID = h.kind, h.op, h.id
	return fr, nil
}

func takeFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("parse control message", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials or another kind that nobody asked for
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

const bodySeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// readSealed reads a body of n bytes from a memfd, which must be sealed: otherwise it could change
// while it is read.
func readSealed(f *os.File, n int) ([]byte, error) {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("the descriptor of a body is not a memfd: %w", err)
	}
	if seals&bodySeals != bodySeals {
		return nil, fmt.Errorf("the descriptor of a body is not a sealed memfd (seals %#x)", seals)
	}
	body := make([]byte, n)
	if _, err := f.ReadAt(body, 0); err != nil {
		return nil, fmt.Errorf("read a body of %d bytes: %w", n, err)
	}
	return body, nil
}

func sealedBody(body []byte) (*os.File, error) {
	const noexecSeal = 8 // MFD_NOEXEC_SEAL, Linux 6.3
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("shim-message", flags|noexecSeal)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("shim-message", flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "shim-message")
	if _, err = f.Write(body); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, bodySeals)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("seal a body of %d bytes: %w", len(body), err)
	}
	return f, nil
}

// Send sends the message, whole or not at all as far as the peer can tell; a failure leaves the connection
// unusable unless it came before the first byte. Files stay open and the caller's. It blocks while the
// peer's queue is full, until the deadline (zero: for ever); then the error wraps os.ErrDeadlineExceeded.
func (c *Conn) Send(fr *Frame, deadline time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.f.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := c.send(fr, true)
	return err
}

// TrySend is Send that does not block: false without an error says that the peer's queue is full and
// nothing was sent.
func (c *Conn) TrySend(fr *Frame) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.f.SetWriteDeadline(time.Time{}); err != nil {
		return false, err
	}
	return c.send(fr, false)
}

func (c *Conn) send(fr *Frame, wait bool) (bool, error) {
	files, h := fr.Files, header{kind: fr.Kind, op: fr.Op, id: fr.ID, body: uint32(len(fr.Body))}
	if len(fr.Body) > MaxBody || len(files) > MaxFiles {
		return false, fmt.Errorf("a message of %d bytes and %d descriptors is over the limits of %d and %d", len(fr.Body), len(files), MaxBody, MaxFiles)
	}
	body := fr.Body
	if len(body) > MaxInline {
		memfd, err := sealedBody(body)
		if err != nil {
			return false, err
		}
		defer memfd.Close()
		files, body, h.flags = append(files[:len(files):len(files)], memfd), nil, flagMemfd
	}
	for len(files) > sys.MaxFDs {
		sent, err := c.packet(&header{kind: Files, id: fr.ID, files: sys.MaxFDs}, nil, files[:sys.MaxFDs], wait)
		if err != nil || !sent {
			return false, err
		}
		files, wait = files[sys.MaxFDs:], true // what was begun is finished
	}
	h.files = uint16(len(files))
	return c.packet(&h, body, files, wait)
}

func (c *Conn) packet(h *header, body []byte, files []*os.File, wait bool) (sent bool, err error) {
	pkt := append(h.append(make([]byte, 0, headerLen+len(body))), body...)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			if fds[i], err = rawFD(f); err != nil {
				return false, err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	werr := c.rc.Write(func(fd uintptr) bool {
		for {
			switch e := unix.Sendmsg(int(fd), pkt, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT); e {
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return !wait
			default:
				sent, err = e == nil, os.NewSyscallError("sendmsg", e)
				return true
			}
		}
	})
	if werr != nil {
		return false, werr
	}
	return sent, err
}

// rawFD returns the number of f's descriptor without File.Fd's side effect of making it blocking, which
// would reach the other end of what is passed. The caller keeps f open.
func rawFD(f *os.File) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = rc.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}
