package registry

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// cutting hangs up after some bytes of a blob, every time; with ranges when ranged.
func cutting(s **server, piece int, ranged bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		blob := (*s).blob
		from := 0
		if rg := r.Header.Get("Range"); rg != "" && ranged {
			_, _ = fmt.Sscanf(rg, "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		}
		end := from + piece
		if end >= len(blob) {
			_, _ = w.Write(blob[from:])
			return true
		}
		_, _ = w.Write(blob[from:end])
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
}

func TestStreamResumes(t *testing.T) {
	s := newServer(t, false, nil)
	s.do = cutting(&s, 100<<10, true)
	b, err := readAll(open(t, Options{Hosts: []Host{s.host(t, true)}}), s.blob)
	if err != nil || !bytes.Equal(b, s.blob) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	reqs := s.requests("blobs")
	if len(reqs) != 3 || reqs[1].Header.Get("Range") != fmt.Sprintf("bytes=%d-", 100<<10) {
		t.Errorf("%d requests", len(reqs))
	}
}

func TestStreamGivesUp(t *testing.T) {
	s := newServer(t, false, nil)
	s.do = cutting(&s, 1, true)
	_, err := readAll(open(t, Options{Hosts: []Host{s.host(t, true)}}), s.blob)
	if err == nil || !strings.HasPrefix(err.Error(), Unavailable) {
		t.Errorf("one byte at a time: %v", err)
	}
	if n := len(s.requests("blobs")); n > 20 {
		t.Errorf("%d requests", n)
	}
}

// TestStreamChangesHost goes on at the second host where the first one broke off, which does no ranges.
func TestStreamChangesHost(t *testing.T) {
	a := newServer(t, false, nil)
	a.do = cutting(&a, 50<<10, true)
	b := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false })
	b.blob = a.blob
	got, err := readAll(open(t, Options{Hosts: []Host{a.host(t, false), b.host(t, true)}}), a.blob)
	if err != nil || !bytes.Equal(got, a.blob) || len(a.requests("blobs")) != 1 {
		t.Errorf("%d bytes, %v, the first host was asked %d times", len(got), err, len(a.requests("blobs")))
	}
}

// TestStreamLies refuses bytes with another digest or size, and finds the host that tells the truth.
func TestStreamLies(t *testing.T) {
	truth := newServer(t, false, nil)
	other := bytes.Clone(truth.blob)
	other[1000] ^= 1
	for name, do := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"another byte": func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(other); return true },
		"too short":    func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(other[:5]); return true },
		"too long": func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(append(bytes.Clone(truth.blob), 1))
			return true
		},
		"no length, too long": func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(truth.blob)
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte{1})
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			liar := newServer(t, false, do)
			_, err := readAll(open(t, Options{Hosts: []Host{liar.host(t, true)}}), truth.blob)
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("alone: %v (%v), want it refused as invalid", err, errs.KindOf(err))
			}
			src := open(t, Options{Hosts: []Host{liar.host(t, false), truth.host(t, true)}})
			b, err := src.Blob(context.Background(), digestOf(truth.blob), int64(len(truth.blob)), 1<<20)
			if err != nil || !bytes.Equal(b, truth.blob) {
				t.Errorf("with another host: %d bytes, %v", len(b), err)
			}
		})
	}
}

func TestStreamWrongRange(t *testing.T) {
	for name, header := range map[string]string{"starts elsewhere": "bytes 0-9/300", "no header": "", "nonsense": "bytes x-y/z"} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			s := newServer(t, false, nil)
			s.do = func(w http.ResponseWriter, r *http.Request) bool {
				if n.Add(1) == 1 {
					return cutting(&s, 100, true)(w, r)
				}
				w.Header().Set("Content-Range", header)
				w.WriteHeader(http.StatusPartialContent)
				return true
			}
			if _, err := readAll(open(t, Options{Hosts: []Host{s.host(t, true)}}), s.blob); !errs.Is(err, errs.Invalid) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestStreamStalls leaves a host that sends no more and goes on with the next.
func TestStreamStalls(t *testing.T) {
	release := make(chan struct{})
	slow := newServer(t, false, nil)
	slow.do = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(slow.blob)))
		_, _ = w.Write(slow.blob[:1000])
		w.(http.Flusher).Flush()
		<-release
		return true
	}
	defer close(release)
	fast := newServer(t, false, nil)
	fast.blob = slow.blob
	src := open(t, Options{Hosts: []Host{slow.host(t, false), fast.host(t, true)}, Stall: Stall{50 * time.Millisecond, 10}})
	if b, err := readAll(src, slow.blob); err != nil || !bytes.Equal(b, slow.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestPace does not blame the network for a reader that takes its time.
func TestPace(t *testing.T) {
	var p pace
	if p.stalled(10) {
		t.Error("nobody reads")
	}
	p.reading.Store(true)
	if !p.stalled(10) {
		t.Error("somebody reads and nothing comes")
	}
	p.moved.Add(10)
	if p.stalled(10) {
		t.Error("enough came")
	}
	p.moved.Add(9)
	if !p.stalled(10) {
		t.Error("too little came since then")
	}
}

func TestStreamCancel(t *testing.T) {
	release := make(chan struct{})
	s := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "100")
		w.(http.Flusher).Flush()
		<-release
		return true
	})
	defer close(release)
	ctx, cancel := context.WithCancelCause(context.Background())
	src := open(t, Options{Hosts: []Host{s.host(t, true)}})
	st := src.Stream(ctx, digestOf(s.blob), 100)
	defer st.Close()
	go cancel(errTest)
	if _, err := io.ReadAll(st); !errors.Is(err, errTest) {
		t.Errorf("%v, want the cause", err)
	}
}

func TestStreamEmpty(t *testing.T) {
	s := newServer(t, false, nil)
	if b, err := readAll(open(t, Options{Hosts: []Host{s.host(t, true)}}), nil); err != nil || len(b) != 0 || len(s.seen) != 0 {
		t.Errorf("%v, %v", b, err)
	}
}
