// Package wire is how the daemon and the shims talk: frames on a SOCK_SEQPACKET unix socket, descriptors
// beside them by SCM_RIGHTS.
//
// The kernel keeps the boundaries of frames, so there is no stream to lose step with. A frame is a header
// of 16 bytes and a body of fields (Codec). A body of more than MaxInline bytes travels as a sealed memfd,
// descriptors of more than one message's worth in frames of their own ahead of it. Requests carry a number
// that the reply repeats; events carry none. The first request is a hello with the speaker's version;
// whoever does not know an operation answers with an error of kind errs.Unsupported.
package wire

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/cri-server/cri-server/pkg/sys"
)

// Version is the newest version of the protocol that this build speaks. It grows when a meaning changes;
// a new operation or a new trailing field needs no new version.
const Version = 1

// The limits of a frame.
const (
	MaxInline = 64 << 10 // bytes of a body inside the frame
	MaxBody   = 8 << 20  // bytes of a body at all
	MaxFiles  = 1024     // descriptors that belong to one message
)

// Kind is what a frame is.
type Kind uint8

// The kinds of frames.
const (
	Request Kind = 1 // asks for Op
	Reply   Kind = 2 // answers the request of the same ID
	Error   Kind = 3 // answers it with a Failure
	Event   Kind = 4 // tells of Op without being asked
	Files   Kind = 5 // carries descriptors of the message with the same ID, which follows
)

// Op is an operation or, in an Event, what happened. The numbers are never reused.
type Op uint16

// The operations, and the events from 100 on.
const (
	OpHello      Op = 1
	OpHolder     Op = 2
	OpStart      Op = 3
	OpExec       Op = 4
	OpRelease    Op = 5
	OpSignal     Op = 6
	OpStates     Op = 7
	OpReopenLog  Op = 8
	OpAttach     Op = 9
	OpResize     Op = 10
	OpCloseStdin Op = 11
	OpForget     Op = 12
	OpShutdown   Op = 13

	EventExit     Op = 100
	EventOOM      Op = 101
	EventExecExit Op = 102
)

// Frame is one message. Whoever receives a frame owns its Files.
type Frame struct {
	Kind  Kind
	Op    Op
	ID    uint32
	Body  []byte
	Files []*os.File
}

// Close closes the frame's descriptors.
func (f *Frame) Close() {
	sys.CloseAll(f.Files)
	f.Files = nil
}

const (
	headerLen   = 16
	frameFormat = 1
	flagMemfd   = 1 // the body is in the last descriptor
)

type header struct {
	kind  Kind
	op    Op
	id    uint32
	body  uint32
	files uint16
	flags uint8
}

// append writes the header: format, kind, flags, one byte reserved, op, files, id, body; little endian.
func (h *header) append(b []byte) []byte {
	b = append(b, frameFormat, byte(h.kind), h.flags, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.op))
	b = binary.LittleEndian.AppendUint16(b, h.files)
	b = binary.LittleEndian.AppendUint32(b, h.id)
	return binary.LittleEndian.AppendUint32(b, h.body)
}

// parse reads the header of a packet with nfds descriptors and checks all that can be checked without
// knowing the operation. It returns the bytes after the header.
func (h *header) parse(p []byte, nfds int) ([]byte, error) {
	if len(p) < headerLen {
		return nil, fmt.Errorf("frame of %d bytes is shorter than its header", len(p))
	}
	if p[0] != frameFormat {
		return nil, fmt.Errorf("frame format %d is not known, want %d", p[0], frameFormat)
	}
	*h = header{
		kind: Kind(p[1]), flags: p[2],
		op:    Op(binary.LittleEndian.Uint16(p[4:])),
		files: binary.LittleEndian.Uint16(p[6:]),
		id:    binary.LittleEndian.Uint32(p[8:]),
		body:  binary.LittleEndian.Uint32(p[12:]),
	}
	rest := p[headerLen:]
	switch {
	case h.kind < Request || h.kind > Files:
		return nil, fmt.Errorf("frame kind %d is not known", h.kind)
	case int(h.files) != nfds:
		return nil, fmt.Errorf("frame announces %d descriptors, %d came", h.files, nfds)
	case h.body > MaxBody:
		return nil, fmt.Errorf("body of %d bytes is over the limit of %d", h.body, MaxBody)
	case h.flags&flagMemfd == 0 && int(h.body) != len(rest):
		return nil, fmt.Errorf("frame announces a body of %d bytes, %d came", h.body, len(rest))
	case h.flags&flagMemfd != 0 && (nfds == 0 || len(rest) != 0):
		return nil, fmt.Errorf("frame announces a body in a descriptor and has %d descriptors and %d bytes", nfds, len(rest))
	}
	return rest, nil
}
