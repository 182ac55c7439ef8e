package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-server/cri-server/pkg/errs"
)

// server is a registry with one blob at /v2/r/blobs/…, one document at /v2/r/manifests/v1, and a record
// of what it was asked.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
	blob []byte
	do   func(w http.ResponseWriter, r *http.Request) bool // may answer itself
}

func newServer(t testing.TB, tls bool, do func(http.ResponseWriter, *http.Request) bool) *server {
	s := &server{do: do, blob: make([]byte, 300<<10)}
	for i := range s.blob {
		s.blob[i] = byte(rand.Uint32())
	}
	h := http.HandlerFunc(s.serve)
	if tls {
		s.Server = httptest.NewTLSServer(h)
	} else {
		s.Server = httptest.NewServer(h)
	}
	s.Server.Config.ErrorLog = nil
	t.Cleanup(s.Close)
	return s
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r.Clone(context.Background()))
	s.mu.Unlock()
	if s.do != nil && s.do(w, r) {
		return
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/v2/r/blobs/"):
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.blob))
	case r.URL.Path == "/v2/r/manifests/v1":
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		fmt.Fprint(w, `{"hello":1}`)
	case r.URL.Path == "/v2/":
	default:
		http.NotFound(w, r)
	}
}

func (s *server) requests(part string) (out []*http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.seen {
		if strings.Contains(r.URL.Path, part) {
			out = append(out, r)
		}
	}
	return out
}

func (s *server) host(t testing.TB, upstream bool) Host {
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return Host{Base: url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/v2"}, Pull: true, Resolve: true, Upstream: upstream}
}

func digestOf(b []byte) string { return string(digest.FromBytes(b)) }

func open(t testing.TB, opts Options) *Source {
	t.Helper()
	pool := new(Pool)
	t.Cleanup(pool.Close)
	opts.Repo, opts.Backoff = "r", time.Millisecond
	if opts.Domain == "" {
		opts.Domain = opts.Hosts[len(opts.Hosts)-1].Base.Host
	}
	s, err := pool.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func manifest(s *Source) (*Document, error) {
	return s.Manifest(context.Background(), "v1", "", -1, []string{"application/json"}, 1<<20)
}

func readAll(s *Source, blob []byte) ([]byte, error) {
	st := s.Stream(context.Background(), digestOf(blob), int64(len(blob)))
	defer st.Close()
	return io.ReadAll(st)
}

func TestManifest(t *testing.T) {
	s := newServer(t, false, nil)
	doc, err := manifest(open(t, Options{Hosts: []Host{s.host(t, true)}}))
	if err != nil || string(doc.Body) != `{"hello":1}` || doc.MediaType != "application/json" {
		t.Errorf("%+v, %v", doc, err)
	}
	if q := s.requests("manifests")[0].URL.RawQuery; q != "" {
		t.Errorf("the registry itself was asked with %q", q)
	}
}

func TestErrorsHaveKinds(t *testing.T) {
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	for name, c := range map[string]struct {
		do     func(http.ResponseWriter, *http.Request) bool
		kind   errs.Kind
		prefix string
	}{
		"404":       {status(404), errs.NotFound, ""},
		"401":       {status(401), errs.Unknown, "read the manifest"},
		"403":       {status(403), errs.Unknown, "read the manifest"},
		"500":       {status(500), errs.Unknown, Unavailable + ": "},
		"503":       {status(503), errs.Unknown, Unavailable + ": "},
		"429":       {status(429), errs.Unknown, Unavailable + ": "},
		"418":       {status(418), errs.Unknown, "read the manifest"},
		"hangs up":  {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, errs.Unknown, Unavailable + ": "},
		"too large": {func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(make([]byte, 2<<20)); return true }, errs.Invalid, ""},
		"wrong digest": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Docker-Content-Digest", digestOf(nil))
			return false
		}, errs.Invalid, ""},
		"strange digest": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Docker-Content-Digest", "md5:../x")
			return false
		}, errs.Invalid, ""},
		"redirect loop": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}, errs.Invalid, ""},
		"basic, but no credentials": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Www-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return true
		}, errs.Unknown, "read the manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, false, c.do)
			_, err := manifest(open(t, Options{Hosts: []Host{s.host(t, true)}}))
			if err == nil || errs.KindOf(err) != c.kind || !strings.HasPrefix(err.Error(), c.prefix) {
				t.Errorf("%v (%v), want %v and %q at the start", err, errs.KindOf(err), c.kind, c.prefix)
			}
		})
	}
	s := newServer(t, false, nil)
	h := s.host(t, true)
	s.Close()
	if _, err := manifest(open(t, Options{Hosts: []Host{h}})); err == nil || !strings.HasPrefix(err.Error(), Unavailable+": ") || errs.KindOf(err) != errs.Unknown {
		t.Errorf("connection refused: %v", err)
	}
}

// TestMirrors asks mirrors first, tells them which registry is meant, and gives them no credentials of
// the registry.
func TestMirrors(t *testing.T) {
	challenge := func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("Www-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	down := newServer(t, false, nil)
	dead := down.host(t, false)
	down.Close()
	mirror, upstream := newServer(t, false, challenge), newServer(t, false, challenge)
	noResolve := newServer(t, false, nil)
	pullOnly := noResolve.host(t, false)
	pullOnly.Resolve = false
	src := open(t, Options{Domain: "reg.example", Hosts: []Host{dead, pullOnly, mirror.host(t, false), upstream.host(t, true)}, Credentials: &Credentials{Username: "u", Password: "p"}})
	if _, err := manifest(src); err != nil {
		t.Fatal(err)
	}
	if n := len(noResolve.seen); n != 0 {
		t.Errorf("a host without the capability was asked %d times", n)
	}
	for _, r := range mirror.requests("") {
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("the mirror got %q", a)
		}
		if q := r.URL.RawQuery; q != "ns=reg.example" {
			t.Errorf("the mirror was asked with %q", q)
		}
	}
	got := upstream.requests("manifests")
	if u, p, ok := got[len(got)-1].BasicAuth(); !ok || u != "u" || p != "p" {
		t.Errorf("the registry got %q %q", u, p)
	}
}

func TestCredentials(t *testing.T) {
	basic := func(u, p string) string { return base64.StdEncoding.EncodeToString([]byte(u + ":" + p)) }
	for name, c := range map[string]struct {
		cred *Credentials
		file string
		want string // Authorization after a Basic challenge
	}{
		"user and password":  {&Credentials{Username: "u", Password: "p"}, "", "Basic " + basic("u", "p")},
		"auth":               {&Credentials{Auth: basic("u", "p:q")}, "", "Basic " + basic("u", "p:q")},
		"for this server":    {&Credentials{Username: "u", Password: "p", ServerAddress: "https://HOST/v2/"}, "", "Basic " + basic("u", "p")},
		"for another server": {&Credentials{Username: "u", Password: "p", ServerAddress: "other.example"}, "", ""},
		"file":               {nil, fmt.Sprintf(`{"auths":{"HOST":{"auth":%q}}}`, basic("f", "p")), "Basic " + basic("f", "p")},
		"file, with scheme":  {nil, fmt.Sprintf(`{"auths":{"https://HOST":{"auth":%q}}}`, basic("f", "p")), "Basic " + basic("f", "p")},
		"request first":      {&Credentials{Username: "u", Password: "p"}, fmt.Sprintf(`{"auths":{"HOST":{"auth":%q}}}`, basic("f", "p")), "Basic " + basic("u", "p")},
		"file of another":    {nil, fmt.Sprintf(`{"auths":{"other.example":{"auth":%q}}}`, basic("f", "p")), ""},
		"helper":             {nil, `{"credHelpers":{"HOST":"test"}}`, "Basic " + basic("helped", "secret")},
		"store":              {nil, `{"credsStore":"test"}`, "Basic " + basic("helped", "secret")},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			write(t, filepath.Join(bin, "docker-credential-test"), "#!/bin/sh\nread host; echo '{\"ServerURL\":\"x\",\"Username\":\"helped\",\"Secret\":\"secret\"}'\n")
			if err := os.Chmod(filepath.Join(bin, "docker-credential-test"), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			s := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Authorization") == "" {
					w.Header().Set("Www-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				return false
			})
			h := s.host(t, true)
			file := filepath.Join(t.TempDir(), "config.json")
			if c.file != "" {
				write(t, file, strings.ReplaceAll(c.file, "HOST", h.Base.Host))
			}
			if c.cred != nil {
				c.cred.ServerAddress = strings.ReplaceAll(c.cred.ServerAddress, "HOST", h.Base.Host)
			}
			_, err := manifest(open(t, Options{Hosts: []Host{h}, Credentials: c.cred, AuthFiles: []string{file}}))
			seen := s.requests("manifests")
			if got := seen[len(seen)-1].Header.Get("Authorization"); got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
	if _, err := new(Pool).Open(Options{Credentials: &Credentials{Auth: "%%%"}}); !errs.Is(err, errs.Invalid) {
		t.Errorf("malformed auth: %v", err)
	}
}

// TestTokens goes through the token service: anonymous, with a password, with an identity token, and with a
// registry token that needs none.
func TestTokens(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		u, p, _ := r.BasicAuth()
		mu.Lock()
		asked = append(asked, fmt.Sprintf("%s user=%s:%s scope=%s service=%s grant=%s refresh=%s", r.Method, u, p, r.Form.Get("scope"), r.Form.Get("service"), r.Form.Get("grant_type"), r.Form.Get("refresh_token")))
		mu.Unlock()
		if p == "wrong" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "good", "access_token": "good"})
	}))
	defer tokens.Close()
	for name, c := range map[string]struct {
		cred *Credentials
		want string
		ok   bool
	}{
		"anonymous":      {nil, "GET user=: scope=repository:r:pull service=svc grant= refresh=", true},
		"password":       {&Credentials{Username: "u", Password: "p"}, "GET user=u:p scope=repository:r:pull service=svc grant= refresh=", true},
		"wrong password": {&Credentials{Username: "u", Password: "wrong"}, "GET user=u:wrong scope=repository:r:pull service=svc grant= refresh=", false},
		"identity token": {&Credentials{IdentityToken: "id"}, "POST user=: scope=repository:r:pull service=svc grant=refresh_token refresh=id", true},
		"registry token": {&Credentials{RegistryToken: "good"}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			mu.Lock()
			asked = nil
			mu.Unlock()
			s := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Authorization") != "Bearer good" {
					w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="svc",scope="repository:r:pull"`, tokens.URL))
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				return false
			})
			src := open(t, Options{Hosts: []Host{s.host(t, true)}, Credentials: c.cred})
			_, err := manifest(src)
			if (err == nil) != c.ok {
				t.Fatal(err)
			}
			if !c.ok && (errs.KindOf(err) != errs.Unknown || !strings.Contains(err.Error(), "access denied") || strings.Contains(err.Error(), "wrong")) {
				t.Errorf("refused credentials: %v", err)
			}
			if c.ok {
				if _, err := readAll(src, s.blob); err != nil {
					t.Error(err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(asked, "; "); got != c.want {
				t.Errorf("the token service was asked %q, want %q", got, c.want)
			}
		})
	}
}

// TestRedirects follows blobs to another host and gives that host nothing but the request
// (CVE-2020-15157).
func TestRedirects(t *testing.T) {
	blobs := newServer(t, false, nil)
	s := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("Www-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		http.Redirect(w, r, blobs.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	h := s.host(t, true)
	h.Header = http.Header{"X-Secret": {"s"}}
	src := open(t, Options{Hosts: []Host{h}, Credentials: &Credentials{Username: "u", Password: "p"}})
	if b, err := readAll(src, blobs.blob); err != nil || !bytes.Equal(b, blobs.blob) {
		t.Fatal(err)
	}
	if r := s.requests("blobs"); r[0].Header.Get("X-Secret") != "s" {
		t.Error("the registry did not get the configured header")
	}
	for _, r := range blobs.requests("") {
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Secret") != "" {
			t.Errorf("the other host got %v", r.Header)
		}
	}
}

func TestRedirectChallenge(t *testing.T) {
	evil := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Www-Authenticate", `Basic realm="give me all"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	s := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, evil.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	src := open(t, Options{Hosts: []Host{s.host(t, true)}, Credentials: &Credentials{Username: "u", Password: "p"}})
	if _, err := manifest(src); err == nil {
		t.Error("it worked")
	}
	for _, r := range evil.requests("") {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials went to the host of a redirect")
		}
	}
}

func TestTLS(t *testing.T) {
	s := newServer(t, true, nil)
	h := s.host(t, true)
	if _, err := manifest(open(t, Options{Hosts: []Host{h}})); err == nil || strings.HasPrefix(err.Error(), Unavailable) {
		t.Errorf("an unknown authority: %v", err)
	}
	h.TLS.SkipVerify = true
	if _, err := manifest(open(t, Options{Hosts: []Host{h}})); err != nil {
		t.Errorf("skip_verify: %v", err)
	}
	dir := t.TempDir()
	pem := pemOf(s.Certificate().Raw)
	write(t, filepath.Join(dir, "ca.pem"), pem)
	write(t, filepath.Join(dir, h.Base.Host, "hosts.toml"), fmt.Sprintf("server = %q\nca = %q\n", s.URL, filepath.Join(dir, "ca.pem")))
	hosts, err := Lookup([]string{dir}, "", h.Base.Host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manifest(open(t, Options{Hosts: hosts})); err != nil {
		t.Errorf("ca: %v", err)
	}
	plain := newServer(t, true, func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, "http://"+r.Host+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	h = plain.host(t, true)
	h.TLS.SkipVerify = true
	if _, err := manifest(open(t, Options{Hosts: []Host{h}})); err == nil || !strings.Contains(err.Error(), "refused a redirect") {
		t.Errorf("redirect to plain HTTP: %v", err)
	}
}

// TestLoopbackSpeaksEither finds out whether a loopback registry speaks TLS.
func TestLoopbackSpeaksEither(t *testing.T) {
	for _, tls := range []bool{false, true} {
		s := newServer(t, tls, nil)
		h := s.host(t, true)
		h.Base.Scheme, h.EitherHTTP, h.TLS.SkipVerify = "http", true, true
		if _, err := manifest(open(t, Options{Hosts: []Host{h}})); err != nil {
			t.Errorf("tls %t: %v", tls, err)
		}
	}
}

var errTest = errors.New("test")
