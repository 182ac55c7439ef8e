package registry

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

const (
	maxFailures = 6       // failures in a row, each without progressBytes since the last
	progress    = 1 << 20 // bytes after which failures are forgotten
)

// Verifier compares a stream with a digest.
type Verifier struct {
	hash.Hash
	want string
}

// NewVerifier returns a verifier for "sha256:…" or "sha512:…".
func NewVerifier(digest string) (*Verifier, error) {
	alg, hexa, _ := strings.Cut(digest, ":")
	switch {
	case alg == "sha256" && len(hexa) == 64:
		return &Verifier{sha256.New(), hexa}, nil
	case alg == "sha512" && len(hexa) == 128:
		return &Verifier{sha512.New(), hexa}, nil
	}
	return nil, fmt.Errorf("digest %q is neither sha256 nor sha512", printable(digest, 150))
}

// Verified reports whether what was written has the digest.
func (v *Verifier) Verified() bool { return hex.EncodeToString(v.Sum(nil)) == v.want }

// Stream is one blob as a continuous stream over broken connections, stalled mirrors and changes of host.
// The last Read returns io.EOF only when size and digest are right.
type Stream struct {
	ctx    context.Context //nolint:containedctx // a stream is one call's
	src    *Source
	digest string
	size   int64

	off      int64
	verify   *Verifier
	body     io.ReadCloser
	attempt  context.Context //nolint:containedctx // of the connection in use
	cancel   context.CancelFunc
	pace     *pace
	from     int // index of the endpoint in use
	used     map[*endpoint]bool
	failures int
	mark     int64 // offset at the last failure
	err      error
}

// Stream starts reading a blob; nothing is asked before the first Read. The caller closes it. Size is the
// descriptor's.
func (s *Source) Stream(ctx context.Context, digest string, size int64) *Stream {
	st := &Stream{ctx: ctx, src: s, digest: digest, size: size, used: map[*endpoint]bool{}}
	st.verify, st.err = NewVerifier(digest)
	return st
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	for s.err == nil {
		if s.body == nil {
			if s.off == s.size {
				s.err = s.finish()
				break
			}
			if s.err = s.open(); s.err != nil {
				break
			}
		}
		s.pace.reading.Store(true)
		n, err := s.body.Read(p)
		s.pace.reading.Store(false)
		if n > 0 {
			if s.off+int64(n) > s.size {
				s.err = s.refuse("sent more than the %d bytes that its descriptor says", s.size)
				break
			}
			s.off += int64(n)
			s.pace.moved.Add(int64(n))
			_, _ = s.verify.Write(p[:n])
		}
		if err != nil && !(err == io.EOF && s.off == s.size) {
			s.failed(err)
		} else if s.off == s.size {
			s.extra()
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, s.err
}

// extra looks whether the body goes on after its last byte should have come.
func (s *Stream) extra() {
	var one [1]byte
	if n, _ := s.body.Read(one[:]); n > 0 {
		s.err = s.refuse("sent more than the %d bytes that its descriptor says", s.size)
	}
	s.drop()
}

func (s *Stream) finish() error {
	if s.verify.Verified() {
		return io.EOF
	}
	return s.refuse("sent bytes whose digest is another")
}

// refuse blames every endpoint that gave a part of the bytes.
func (s *Stream) refuse(format string, args ...any) error {
	for e := range s.used {
		e.bad.Store(true)
	}
	names := make([]string, 0, len(s.used))
	for e := range s.used {
		names = append(names, e.Base.Host)
	}
	return errs.With(errs.Invalid, badf("blob %s: %s %s", s.digest, strings.Join(names, ", "), fmt.Sprintf(format, args...)))
}

// Retry reports whether reading the blob again from the start may work after Read returned err: a host
// lied, and there is another.
func (s *Stream) Retry(err error) bool {
	var b *badAnswer
	if !errors.As(err, &b) || s.ctx.Err() != nil {
		return false
	}
	for _, e := range s.src.ends {
		if e.Pull && !e.bad.Load() {
			return true
		}
	}
	return false
}

// failed notes a broken transfer: the next Read goes on where it ended, with the next host.
func (s *Stream) failed(err error) {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(context.Cause(s.attempt), errStalled) {
		err = errStalled
	}
	s.drop()
	if cause := context.Cause(s.ctx); cause != nil {
		s.err = fmt.Errorf("read blob %s: %w", s.digest, cause)
		return
	}
	if s.off-s.mark >= progress {
		s.failures = 0
	}
	s.mark = s.off
	s.from++
	if s.failures++; s.failures >= maxFailures {
		s.err = explain("read blob", s.digest, []error{redact(err)})
		return
	}
	if err := sleep(s.ctx, s.src.opts.Backoff<<min(s.failures-1, 4)/4); err != nil {
		s.err = fmt.Errorf("read blob %s: %w", s.digest, err)
	}
}

func (s *Stream) drop() {
	if s.body != nil {
		s.cancel()
		s.body.Close()
		s.body = nil
	}
}

// Err is what Read failed with, nil while it has not and at the end of a sound blob. It must not be called
// beside Read.
func (s *Stream) Err() error {
	if errors.Is(s.err, io.EOF) && !errors.Is(s.err, io.ErrUnexpectedEOF) {
		return nil
	}
	return s.err
}

// Close ends the transfer. It is idempotent.
func (s *Stream) Close() error {
	s.drop()
	if s.err == nil {
		s.err = errors.New("read of a closed blob stream")
	}
	return nil
}

// open asks for the rest of the blob, beginning with the host whose turn it is.
func (s *Stream) open() error {
	n := len(s.src.ends)
	can := func(e *endpoint) bool { return e.Pull }
	rotated := &Source{opts: s.src.opts}
	for i := range n {
		rotated.ends = append(rotated.ends, s.src.ends[(s.from+i)%n])
	}
	return rotated.each(s.ctx, "read blob", s.digest, can, func(e *endpoint) error {
		ctx, cancel := context.WithCancelCause(s.ctx)
		body, err := s.openAt(ctx, e)
		if err != nil {
			cancel(nil)
			return err
		}
		s.body, s.attempt, s.pace, s.used[e] = body, ctx, new(pace), true
		stop := s.pace.watch(s.src.opts.Stall, cancel)
		s.cancel = func() { stop(); cancel(nil) }
		return nil
	})
}

func (s *Stream) openAt(ctx context.Context, e *endpoint) (io.ReadCloser, error) {
	h := http.Header{"Accept": {"application/octet-stream, */*"}}
	if s.off > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", s.off))
	}
	resp, err := s.src.get(ctx, e, "/blobs/"+s.digest, h, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent && s.off > 0:
		if !rangeStarts(resp.Header.Get("Content-Range"), s.off) {
			resp.Body.Close()
			return nil, badf("%s answered with another range than the one asked for", e.Base.Host)
		}
	case resp.StatusCode == http.StatusPartialContent:
		resp.Body.Close()
		return nil, badf("%s answered with a part that nobody asked for", e.Base.Host)
	case resp.ContentLength >= 0 && resp.ContentLength != s.size:
		resp.Body.Close()
		e.bad.Store(true)
		return nil, badf("%s has blob %s with %d bytes, its descriptor says %d", e.Base.Host, s.digest, resp.ContentLength, s.size)
	case s.off > 0: // it does not do ranges
		if _, err := io.CopyN(io.Discard, resp.Body, s.off); err != nil {
			resp.Body.Close()
			return nil, err
		}
	}
	return resp.Body, nil
}

func rangeStarts(h string, off int64) bool {
	spec, ok := strings.CutPrefix(h, "bytes ")
	first, _, found := strings.Cut(spec, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	return ok && found && err == nil && n == off
}

// pace is how fast a transfer moves.
type pace struct {
	moved   atomic.Int64
	reading atomic.Bool // it is the network that is waited for, not the disk
	last    int64       // moved at the end of the last interval
}

// stalled looks at the interval that ends now.
func (p *pace) stalled(least int64) bool {
	now := p.moved.Load()
	few := now-p.last < least
	p.last = now
	return few && p.reading.Load()
}

// watch cancels a transfer that moves less than the stall rule asks for. The returned function ends it and
// waits for it.
func (p *pace) watch(rule Stall, cancel context.CancelCauseFunc) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(rule.Interval)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				if p.stalled(rule.Bytes) {
					cancel(errStalled)
					return
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}
