// Package crilog writes what containers say into log files of the CRI format.
//
// A line of the format is "TIME STREAM TAG TEXT\n": TIME in RFC 3339 with nanoseconds, STREAM stdout or
// stderr, TAG F for a line that is whole and P for a part that the next entry of the same stream
// continues. TEXT of one entry has at most MaxText bytes.
//
// The writer must never hold a container up: a log that cannot be written (full disk, I/O error) drops
// what it is given, counts it, and tries again with the next.
package crilog

import (
	"bytes"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxText is how much text one entry carries; a longer line becomes entries with tag P and a last one with F.
const MaxText = 16 << 10

// Lost says what a log has dropped since it was made.
type Lost struct {
	Lines, Bytes uint64 // of formatted entries; a part of an entry counts as a line
	Err          error  // why the last write failed, nil when the last write went well
}

// File is the log of one container, shared by its streams. The zero File drops silently, as a container
// without a log path wants it.
type File struct {
	mu   sync.Mutex
	f    *os.File
	rc   syscall.RawConn
	torn bool // the file ends inside an entry that a failed write left
	lost Lost
}

// NewFile makes a log that appends to f, which it owns from then on; f may be nil.
func NewFile(f *os.File) (*File, error) {
	l := &File{}
	return l, l.Swap(f)
}

// Swap makes all later entries go to f and closes the former file. Every entry is in the one or the other,
// whole. It waits for a write in flight. f is owned from then on, also when an error is returned; then the
// former file stays. With nil the log drops.
func (l *File) Swap(f *os.File) error {
	var rc syscall.RawConn
	if f != nil {
		var err error
		if rc, err = f.SyscallConn(); err != nil {
			f.Close()
			return err
		}
	}
	l.mu.Lock()
	old := l.f
	l.f, l.rc, l.torn = f, rc, false
	l.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return nil
}

// Close closes the file; what comes later is dropped without being counted.
func (l *File) Close() error { return l.Swap(nil) }

// Lost returns what was dropped so far.
func (l *File) Lost() Lost {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Write appends b, whole entries, with one system call where the kernel takes it so. It reports no
// error: what could not be written is counted as lost.
func (l *File) Write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return
	}
	err := l.rc.Control(func(fd uintptr) { b = l.write(int(fd), b) })
	if err == nil && len(b) == 0 {
		l.lost.Err = nil
		return
	}
	if err != nil {
		l.lost.Err = err
	}
	l.lost.Bytes += uint64(len(b))
	l.lost.Lines += uint64(bytes.Count(b, []byte{'\n'}))
}

// write returns what it could not write. A write that stopped inside an entry is taken back to the
// entry's start, or where that fails ended by a newline later, so that no reader meets two entries in one line.
func (l *File) write(fd int, b []byte) []byte {
	if l.torn {
		if n, err := unix.Write(fd, []byte{'\n'}); n != 1 {
			l.lost.Err = err
			return b
		}
		l.torn = false
	}
	all := b
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case err == unix.EINTR:
		case err != nil || n <= 0:
			l.lost.Err = err
			return l.takeBack(fd, all, len(all)-len(b))
		default:
			b = b[n:]
		}
	}
	return nil
}

func (l *File) takeBack(fd int, all []byte, written int) []byte {
	part := written - 1 - bytes.LastIndexByte(all[:written], '\n')
	if part == 0 {
		return all[written:]
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size >= int64(part) && unix.Ftruncate(fd, st.Size-int64(part)) == nil {
		return all[written-part:]
	}
	l.torn = true
	return all[written:]
}

// Stream formats one stream of a container. It is not safe for concurrent use; streams of one File may
// run side by side.
type Stream struct {
	log   *File
	name  string
	carry []byte // the beginning of a line whose end has not come
	head  []byte // "TIME STREAM F "
	sec   int64  // the second that head was made for
}

// NewStream makes the stream called name, stdout or stderr, of the log.
func NewStream(log *File, name string) *Stream { return &Stream{log: log, name: name, sec: -1} }

const (
	timeLen  = len("2006-01-02T15:04:05.000000000Z")
	fracFrom = len("2006-01-02T15:04:05.")
)

// header brings the header up to now. Formatting a date costs more than a line, so it is done once a
// second and only the fraction is written anew.
func (s *Stream) header(now time.Time) []byte {
	if sec := now.Unix(); sec != s.sec {
		s.sec = sec
		s.head = now.UTC().AppendFormat(s.head[:0], "2006-01-02T15:04:05.")
		s.head = append(s.head, "000000000Z "...)
		s.head = append(s.head, s.name...)
		s.head = append(s.head, " F "...)
	}
	for i, ns := timeLen-2, now.Nanosecond(); i >= fracFrom; i-- {
		s.head[i] = byte('0' + ns%10)
		ns /= 10
	}
	return s.head
}

// Chunk logs in, read at the time now, using out[:0] as room to format into; cap(out) must be at least
// 2*MaxText. The end of in that has no newline yet waits for the next Chunk or Flush.
func (s *Stream) Chunk(in, out []byte, now time.Time) {
	head, out := s.header(now), out[:0]
	for {
		i := bytes.IndexByte(in, '\n')
		if i < 0 {
			break
		}
		if len(s.carry)+i > MaxText {
			in, out = s.split(in, out, i)
			continue
		}
		if len(head)+len(s.carry)+i+1 > cap(out)-len(out) {
			s.log.Write(out)
			out = out[:0]
		}
		out = append(out, head...)
		if len(s.carry) > 0 {
			out = append(out, s.carry...)
			s.drop()
		}
		out = append(out, in[:i+1]...)
		in = in[i+1:]
	}
	for len(s.carry)+len(in) > MaxText {
		in, out = s.split(in, out, len(in))
	}
	if len(out) > 0 {
		s.log.Write(out)
	}
	s.carry = append(s.carry, in...)
}

// split emits one full part of a line whose text goes on in in[:n].
func (s *Stream) split(in, out []byte, n int) (restIn, restOut []byte) {
	take := min(MaxText-len(s.carry), n)
	out = s.part(out, in[:take])
	return in[take:], out
}

// part appends an entry with tag P of the carry and more.
func (s *Stream) part(out, more []byte) []byte {
	if len(s.head)+len(s.carry)+len(more)+1 > cap(out)-len(out) {
		s.log.Write(out)
		out = out[:0]
	}
	out = append(out, s.head...)
	out[len(out)-2] = 'P'
	out = append(out, s.carry...)
	out = append(out, more...)
	s.drop()
	return append(out, '\n')
}

// Unfinished is the beginning of a line whose end has not come: what is in no entry yet. It is valid until the next
// call of the stream.
func (s *Stream) Unfinished() []byte { return s.carry }

// drop forgets the carry, and its memory when a long line has grown it.
func (s *Stream) drop() {
	if cap(s.carry) > 1024 {
		s.carry = nil
		return
	}
	s.carry = s.carry[:0]
}

// Flush logs what waits for its newline as a part: the stream has ended, and whoever joins parts gets
// exactly the bytes that the container wrote.
func (s *Stream) Flush(out []byte, now time.Time) {
	if len(s.carry) == 0 {
		return
	}
	s.header(now)
	s.log.Write(s.part(out[:0], nil))
}
