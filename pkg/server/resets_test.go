package server

import (
	"bytes"
	"context"
	"testing"
	"time"

	"golang.org/x/net/http2"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestWatchedConn finds the frames in a stream however it is cut.
func TestWatchedConn(t *testing.T) {
	var stream bytes.Buffer
	stream.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&stream, nil)
	write := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write(f.WriteSettings())
	write(f.WriteData(1, false, bytes.Repeat([]byte{rstStream}, 1000)))
	write(f.WriteRSTStream(1, http2.ErrCodeCancel))
	write(f.WriteData(3, true, nil))
	write(f.WriteRSTStream(3, http2.ErrCodeCancel))
	for _, size := range []int{1, 7, 4096} {
		c := &watchedConn{resets: &resets{}, skip: prefaceLen}
		for b := stream.Bytes(); len(b) > 0; b = b[min(size, len(b)):] {
			c.look(b[:min(size, len(b))])
		}
		if c.resets.n != 2 {
			t.Errorf("in pieces of %d: %d resets, want 2", size, c.resets.n)
		}
	}
}

func TestResets(t *testing.T) {
	r, now := &resets{}, time.Now()
	for i := range 100 {
		r.add(now.Add(time.Duration(i) * time.Second))
	}
	for _, c := range []struct {
		from, to int
		want     bool
	}{{99, 99, true}, {80, 81, true}, {100, 200, false}, {-5, -1, false}} {
		at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
		if got := r.within(at(c.from), at(c.to)); got != c.want {
			t.Errorf("within %d and %d: %t", c.from, c.to, got)
		}
	}
}

// TestCallerThatLeft is a client that gives up when the server has answered already: gRPC tells nobody.
func TestCallerThatLeft(t *testing.T) {
	f := &fake{}
	c := start(t, f)
	ask := func() func(time.Time) bool {
		if _, err := c.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "a"}}}); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.unheard
	}
	later := time.Now().Add(time.Hour)
	heard := ask()
	if heard(later) {
		t.Error("the answer of a caller that waited for it is lost")
	}
	// A stream that its caller leaves is a reset of the same connection, and comes before what is asked next.
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.GetContainerEvents(ctx, &cri.GetEventsRequest{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	for deadline := time.Now().Add(10 * time.Second); !heard(later) && time.Now().Before(deadline); {
		ask()
	}
	if !heard(later) {
		t.Error("nobody left")
	}
	if ask()(later) {
		t.Error("who left before a call was made is its caller")
	}
}
