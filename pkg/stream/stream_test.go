package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a Runtime whose command copies its input to its outputs, and whose ports echo.
type fake struct {
	exit    int
	err     error
	sizes   chan sandbox.Size
	started chan struct{} // one element per call that waits
	ended   chan error    // why a call that waits ended
	mu      sync.Mutex
	cmd     []string
	ports   []int32
}

func newFake() *fake {
	return &fake{sizes: make(chan sandbox.Size, 8), started: make(chan struct{}, 8), ended: make(chan error, 8)}
}

func (f *fake) Exec(ctx context.Context, _ string, s sandbox.ExecStreams) (int, error) {
	f.mu.Lock()
	f.cmd = s.Cmd
	f.mu.Unlock()
	switch s.Cmd[0] {
	case "wait": // for nothing but the end of ctx
		f.started <- struct{}{}
		<-ctx.Done()
		f.ended <- context.Cause(ctx)
		return 0, ctx.Err()
	case "flood": // until the client is gone
		f.started <- struct{}{}
		for {
			if _, err := s.Stdout.Write(make([]byte, 64<<10)); err != nil {
				f.ended <- err
				return 0, err
			}
		}
	case "size":
		f.sizes <- <-s.Resize
		return 0, nil
	}
	if s.Stdin != nil {
		if _, err := io.Copy(s.Stdout, s.Stdin); err != nil {
			return 0, err
		}
	}
	if s.Stderr != nil {
		fmt.Fprint(s.Stderr, "err")
	}
	if s.Stdin == nil && s.Stdout != nil {
		fmt.Fprint(s.Stdout, "hello")
	}
	return f.exit, f.err
}

func (f *fake) Attach(ctx context.Context, id string, s sandbox.AttachStreams) error {
	_, err := f.Exec(ctx, id, sandbox.ExecStreams{Cmd: []string{"cat"}, Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr})
	return err
}

func (f *fake) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	f.mu.Lock()
	f.ports = append(f.ports, port)
	f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	_, err := io.Copy(stream, stream)
	return err
}

func start(t *testing.T, rt Runtime, change ...func(*Config)) *Server {
	t.Helper()
	var cfg Config
	for _, c := range change {
		c(&cfg)
	}
	s, err := Listen(cfg, rt)
	if err != nil {
		t.Fatal(err)
	}
	s.hangup, s.heartbeat, s.linger = 10*time.Millisecond, 20*time.Millisecond, 50*time.Millisecond
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

func execURL(t *testing.T, s *Server, req *cri.ExecRequest) string {
	t.Helper()
	if req.Cmd == nil {
		req.Cmd = []string{"cat"}
	}
	resp, err := s.GetExec(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

func statusOf(t *testing.T, b []byte) status {
	t.Helper()
	var st status
	if err := json.Unmarshal(b, &st); err != nil {
		t.Errorf("status %q: %v", b, err)
	}
	return st
}

func TestURL(t *testing.T) {
	s := start(t, newFake())
	u := execURL(t, s, &cri.ExecRequest{Stdout: true})
	if !strings.HasPrefix(u, "http://127.0.0.1:") || !strings.Contains(u, "/exec/") {
		t.Errorf("url %q", u)
	}
	if n := len(u[strings.LastIndex(u, "/")+1:]); n < 43 {
		t.Errorf("the token of %q has %d characters, fewer than 256 bits take", u, n)
	}
	s = start(t, newFake(), func(c *Config) { c.BaseURL = "https://node:1/base" })
	if u := execURL(t, s, &cri.ExecRequest{}); !strings.HasPrefix(u, "https://node:1/base/exec/") {
		t.Errorf("url %q", u)
	}
}

func TestTokens(t *testing.T) {
	now := time.Unix(0, 0)
	k := newTokens(time.Minute, 2)
	k.now = func() time.Time { return now }
	a, _ := k.add("a")
	if r, ok := k.peek(a); !ok || r != "a" {
		t.Error("peek does not find")
	}
	if r, ok := k.take(a); !ok || r != "a" {
		t.Error("take does not find")
	}
	if _, ok := k.take(a); ok {
		t.Error("a token works twice")
	}
	b, _ := k.add("b")
	now = now.Add(30 * time.Second)
	c, _ := k.add("c")
	if _, err := k.add("d"); !errs.Is(err, errs.Exhausted) {
		t.Errorf("third pending request: %v", err)
	}
	now = now.Add(30 * time.Second)
	if _, ok := k.take(b); ok {
		t.Error("a token outlives its time")
	}
	if _, ok := k.take(c); !ok {
		t.Error("a token ends before its time")
	}
	if len(k.byHash) != 0 || k.byAge.Len() != 0 {
		t.Errorf("%d tokens are left", len(k.byHash))
	}
}

func TestRefusals(t *testing.T) {
	s := start(t, newFake())
	u := execURL(t, s, &cri.ExecRequest{Stdout: true})
	upgrade := map[string]string{"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io"}
	with := func(k, v string) map[string]string {
		out := map[string]string{k: v}
		for k, v := range upgrade {
			if _, ok := out[k]; !ok {
				out[k] = v
			}
		}
		return out
	}
	for _, tc := range []struct {
		name, method, url string
		header            map[string]string
		want              int
	}{
		{"no upgrade", "GET", u, nil, 400},
		{"other upgrade", "GET", u, with("Upgrade", "h2c"), 400},
		{"no protocol", "POST", u, map[string]string{"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}, 400},
		{"method", "PUT", u, upgrade, 405},
		{"wrong verb", "POST", strings.Replace(u, "/exec/", "/attach/", 1), upgrade, 404},
		{"wrong token", "POST", u[:len(u)-1], upgrade, 404},
		{"no token", "POST", u[:strings.LastIndex(u, "/")], upgrade, 404},
		{"unknown protocol", "POST", u, with("X-Stream-Protocol-Version", "v9"), 403}, // uses the token up
		{"used", "POST", u, upgrade, 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, tc.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range tc.header {
			req.Header.Set(k, v)
		}
		tr := &http.Transport{DisableKeepAlives: true}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s: got %d, want %d", tc.name, resp.StatusCode, tc.want)
		}
	}
}

func TestResult(t *testing.T) {
	for _, tc := range []struct {
		st          *status
		json, plain string
	}{
		{result(0, nil), `{"status":"Success"}`, ""},
		{result(7, nil), `{"status":"Failure","message":"command terminated with non-zero exit code: 7","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}`, "command terminated with non-zero exit code: 7"},
		{result(0, errors.New("x")), `{"status":"Failure","message":"Internal error occurred: x","reason":"InternalError","code":500}`, "Internal error occurred: x"},
	} {
		if got := string(tc.st.encode(false)); got != tc.json {
			t.Errorf("got %s, want %s", got, tc.json)
		}
		if got := string(tc.st.encode(true)); got != tc.plain {
			t.Errorf("got %q, want %q", got, tc.plain)
		}
	}
}

func TestSizes(t *testing.T) {
	sizes := make(latest, 1)
	decodeSizes(strings.NewReader(`{"Width":1,"Height":2}`+"\n"+`{"Width":3,"Height":4}`), sizes)
	if z := <-sizes; z != (sandbox.Size{Width: 3, Height: 4}) {
		t.Errorf("got %v, want the newest", z)
	}
	n := &countReader{}
	decodeSizes(n, sizes)
	if n.n > 4*maxSizeBytes {
		t.Errorf("an endless value was read for %d bytes", n.n)
	}
}

// countReader is a JSON string that does not end.
type countReader struct{ n int }

func (c *countReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '"'
		if c.n+i > 0 {
			p[i] = 'a'
		}
	}
	c.n += len(p)
	return len(p), nil
}

func TestCloseWithoutServe(t *testing.T) {
	s, err := Listen(Config{}, newFake())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close()
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/exec/x", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("got %d", w.Code)
	}
}
