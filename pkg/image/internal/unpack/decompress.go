package unpack

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"

	"github.com/cri-server/cri-server/pkg/errs"
)

const (
	gzipBlock  = 256 << 10
	gzipAhead  = 4
	zstdWindow = 128 << 20 // what zstd itself takes without being told
)

// Decompress returns the tar stream of a layer blob. The first bytes say how it is packed: tools have
// written wrong media types, and the diff ID guards the result. The caller closes it; r stays open.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	src := &source{r: r}
	br := bufio.NewReaderSize(src, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := pgzip.NewReaderN(br, gzipBlock, gzipAhead)
		if err != nil {
			return nil, src.blame("gzip", err)
		}
		return &packed{z, src, "gzip"}, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, src.blame("zstd", err)
		}
		return &packed{z.IOReadCloser(), src, "zstd"}, nil
	}
	return io.NopCloser(br), nil
}

// source remembers how reading the packed bytes failed.
type source struct {
	r   io.Reader
	mu  sync.Mutex // decompressors read ahead in goroutines of their own
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

// blame says whether it was the source or the format that broke.
func (s *source) blame(format string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	return errs.New(errs.Invalid, "layer: not a sound %s stream: %w", format, err)
}

type packed struct {
	io.ReadCloser
	src    *source
	format string
}

func (p *packed) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = p.src.blame(p.format, err)
	}
	return n, err
}
