package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

// want is which streams a request asked for.
type want struct{ stdin, stdout, stderr, tty bool }

// session is one connected client of exec or attach.
type session struct {
	streams
	ctx context.Context //nolint:containedctx // of the connection
	// finish tells the client the result, closes the connection in good order where the client plays along,
	// and returns when nothing of the session is left. It is called once.
	finish func(*status)
}

// errGone is why a connection's context ended when its client did.
var errGone = errors.New("the client went away")

// open upgrades a request to a session. On failure it has answered the request.
func (s *Server) open(w http.ResponseWriter, r *http.Request, want want) (*session, error) {
	if isWebSocket(r) {
		return s.openWebSocket(w, r, want)
	}
	return s.openSPDY(w, r, want)
}

// status is the part of the Kubernetes API's Status that ends an exec or attach.
type status struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// result is the status of a command that ended with a code, or could not be run.
func result(exit int, err error) *status {
	switch {
	case err != nil:
		return &status{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
			Message: "Internal error occurred: " + err.Error()}
	case exit != 0:
		return &status{Status: "Failure", Reason: "NonZeroExitCode",
			Details: &details{[]cause{{"ExitCode", fmt.Sprint(exit)}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: %d", exit)}
	}
	return &status{Status: "Success"}
}

// encode is what goes into the error stream: JSON from version 4 of the protocol on, before that the text of
// a failure and nothing for success.
func (st *status) encode(plain bool) []byte {
	if plain && st.Status == "Success" {
		return nil
	}
	if plain {
		return []byte(st.Message)
	}
	b, _ := json.Marshal(st) // strings and numbers always encode
	return b
}

// watch gives a connection its context. It ends with the server, or when the client has closed its end: the
// kernel knows that even while bytes that nobody reads yet keep us from reading the end itself. The
// function that is returned frees what watch uses, and waits.
func (s *Server) watch(r *http.Request) (context.Context, context.CancelCauseFunc, func()) {
	ctx, cancel := context.WithCancelCause(s.ctx)
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(s.hangup)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if hungUp(conn) {
					cancel(errGone)
					return
				}
			}
		}
	})
	return ctx, cancel, func() {
		close(done)
		wg.Wait()
		cancel(nil)
	}
}

// beat calls f again and again until ctx ends. A client that closed its end while our receive window was
// full cannot say so, since its goodbye waits behind its data; but its kernel answers whatever we send with
// a reset, which hungUp sees. So each connection has something harmless to send.
func (s *Server) beat(ctx context.Context, f func()) {
	tick := time.NewTicker(s.heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// hungUp reports whether the peer has closed or broken the connection.
func hungUp(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0
	})
	return gone || err != nil
}

// latest hands on only the newest of the sizes put into it.
type latest chan sandbox.Size

func (l latest) put(z sandbox.Size) {
	select {
	case l <- z:
		return
	default:
	}
	select {
	case <-l:
	default:
	}
	select {
	case l <- z:
	default:
	}
}

// decodeSizes reads sizes until r ends or sends what is none. A single size takes few bytes: more than
// maxSizeBytes is an attack on our memory.
func decodeSizes(r io.Reader, out latest) {
	lim := &io.LimitedReader{R: r, N: maxSizeBytes}
	for dec := json.NewDecoder(lim); ; lim.N = maxSizeBytes {
		var z sandbox.Size
		if err := dec.Decode(&z); err != nil {
			return
		}
		out.put(z)
	}
}

const maxSizeBytes = 4096

// checkUpgrade refuses requests that no protocol of ours can serve.
func checkUpgrade(r *http.Request) error {
	up := strings.ToLower(r.Header.Get("Upgrade"))
	if !headerHas(r, "Connection", "upgrade") || up != "websocket" && !strings.Contains(up, "spdy/3.1") {
		return errors.New("this URL is for a streaming client: the request has no upgrade to SPDY/3.1 or websocket")
	}
	if up != "websocket" && r.Header.Get("X-Stream-Protocol-Version") == "" {
		return errors.New("the request has no X-Stream-Protocol-Version")
	}
	return nil
}

func isWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// headerHas reports whether a comma-separated header has the token, in any case.
func headerHas(r *http.Request, key, token string) bool {
	for _, t := range headerTokens(r, key) {
		if strings.EqualFold(t, token) {
			return true
		}
	}
	return false
}

func headerTokens(r *http.Request, key string) (out []string) {
	for _, line := range r.Header.Values(key) {
		for t := range strings.SplitSeq(line, ",") {
			if t = strings.TrimSpace(t); t != "" {
				out = append(out, t)
			}
		}
	}
	return out
}
