package server

import (
	"runtime/debug"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/shim/internal/wire"
)

const (
	readSize   = 64 << 10 // what one read of a pipe takes: its whole default capacity
	formatSize = 256 << 10
	inSize     = readSize + 8<<10 // a packet fits as well
	quiet      = time.Second      // without work before memory goes back
)

// buffers lends memory outside of the Go heap: a pump or receiver holds a buffer only while bytes are in
// it, so that a hundred idle streams hold none, and a quiet shim gives all of it back to the kernel.
type buffers struct {
	mu    sync.Mutex
	free  [][]byte
	last  time.Time
	timer *time.Timer // armed while there is something to give back
}

// buffer is one loan.
type buffer struct{ in, out []byte }

func (b *buffers) get() buffer {
	b.mu.Lock()
	var m []byte
	if n := len(b.free); n > 0 {
		m, b.free = b.free[n-1], b.free[:n-1]
	}
	b.mu.Unlock()
	if m == nil {
		var err error
		if m, err = unix.Mmap(-1, 0, inSize+formatSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
			m = make([]byte, inSize+formatSize) // as good, only slower to give back
		}
	}
	return buffer{m[:inSize], m[inSize:inSize:cap(m)]}
}

func (b *buffers) put(l buffer) {
	m := unsafe.Slice(unsafe.SliceData(l.in), inSize+formatSize)
	b.mu.Lock()
	b.free = append(b.free, m)
	b.mu.Unlock()
}

// getIn and putIn lend the receiving half, for wire.NewConn.
func (b *buffers) getIn() []byte  { return b.get().in[:wire.PacketLen()] }
func (b *buffers) putIn(p []byte) { b.put(buffer{in: p}) }

// worked says that there was work that left garbage: memory is given back when it has been quiet for a
// while.
func (b *buffers) worked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = time.Now()
	if b.timer == nil {
		b.timer = time.AfterFunc(quiet, b.tidy)
	}
}

func (b *buffers) tidy() {
	b.mu.Lock()
	if wait := quiet - time.Since(b.last); wait > 0 {
		b.timer.Reset(wait)
		b.mu.Unlock()
		return
	}
	b.timer = nil
	for _, m := range b.free {
		_ = unix.Madvise(m, unix.MADV_DONTNEED)
	}
	b.mu.Unlock()
	debug.FreeOSMemory()
}
