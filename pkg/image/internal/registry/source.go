package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/cri-server/cri-server/pkg/errs"
)

const (
	userAgent     = "cri-server"
	rounds        = 3 // how often the list of hosts is gone through
	backoff       = 200 * time.Millisecond
	maxRetryAfter = 10 * time.Second
)

// Options say where a repository is and how to get in.
type Options struct {
	Domain, Repo string
	Hosts        []Host // from Lookup
	Credentials  *Credentials
	AuthFiles    []string
	Stall        Stall
	Backoff      time.Duration // before the first repetition, growing from there; 0 is the default
}

// Stall says when a transfer counts as stuck: less than Bytes in Interval. The zero value is the default.
type Stall struct {
	Interval time.Duration
	Bytes    int64
}

// Source reads one repository from the hosts that have it. It is for one pull: tokens live as long as it
// does. Its methods may be called from several goroutines.
type Source struct {
	opts Options
	ends []*endpoint
}

type endpoint struct {
	Host
	auth *auth.Client
	raw  *http.Client // of the same transport, no credentials
	bad  atomic.Bool  // gave bytes with a wrong digest: not asked again

	once   sync.Once // settles EitherHTTP
	scheme string
}

// Open prepares to read. It asks nothing of the network. Malformed credentials are errs.Invalid.
func (p *Pool) Open(opts Options) (*Source, error) {
	given, haveGiven, err := opts.Credentials.credential(opts.Domain)
	if err != nil {
		return nil, err
	}
	if opts.Stall.Interval == 0 {
		opts.Stall = Stall{30 * time.Second, 32 << 10}
	}
	if opts.Backoff == 0 {
		opts.Backoff = backoff
	}
	s := &Source{opts: opts}
	for _, h := range opts.Hosts {
		t, err := p.transport(&h)
		if err != nil {
			return nil, errs.New(errs.Invalid, "registry host %w", err)
		}
		c := client(newRealms(t, h.Base.Host), h.Header)
		e := &endpoint{Host: h, raw: c, scheme: h.Base.Scheme}
		e.auth = &auth.Client{Client: c, Cache: auth.NewCache(), ClientID: userAgent, Credential: func(ctx context.Context, host string) (auth.Credential, error) {
			switch {
			case host != h.Base.Host:
				return auth.EmptyCredential, nil
			case h.Upstream && haveGiven:
				return given, nil
			}
			return fromFiles(ctx, opts.AuthFiles, host, h.repository(opts.Repo))
		}}
		s.ends = append(s.ends, e)
	}
	return s, nil
}

// settle finds out, once, what a loopback registry speaks: plain HTTP, unless a TLS server answers there.
// Nothing secret is in the question.
func (e *endpoint) settle(ctx context.Context) {
	if !e.EitherHTTP {
		return
	}
	e.once.Do(func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.Base.Host+"/v2/", nil)
		if err != nil {
			return
		}
		resp, err := e.raw.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest {
				return
			}
		} else if !strings.Contains(err.Error(), "malformed HTTP") && !errors.Is(err, io.EOF) {
			return
		}
		if req, err = http.NewRequestWithContext(ctx, http.MethodGet, "https://"+e.Base.Host+"/v2/", nil); err != nil {
			return
		}
		resp, err = e.raw.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		if err == nil || strings.Contains(err.Error(), "tls: failed to verify") {
			e.scheme = "https"
		}
	})
}

// get asks one endpoint for a path below the repository and returns the answer when its status is one of
// ok; the caller closes the body.
func (s *Source) get(ctx context.Context, e *endpoint, path string, header http.Header, ok ...int) (*http.Response, error) {
	e.settle(ctx)
	u := e.Base
	u.Scheme = e.scheme
	u.Path += "/" + s.opts.Repo + path
	if !e.Upstream {
		u.RawQuery = url.Values{"ns": {s.opts.Domain}}.Encode()
	}
	req, err := http.NewRequestWithContext(auth.AppendScopesForHost(ctx, e.Base.Host, auth.ScopeRepository(s.opts.Repo, auth.ActionPull)), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent)
	for k, v := range e.Header {
		req.Header[k] = v
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := e.auth.Do(req)
	if err != nil {
		return nil, e.classify(err)
	}
	for _, code := range ok {
		if resp.StatusCode == code {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	return nil, newStatusError(resp)
}

// classify tells a failure of the network from a refusal while proving who asks.
func (e *endpoint) classify(err error) error {
	var ue *url.Error
	var er *errcode.ErrorResponse
	switch {
	case errors.As(err, &ue):
		return redact(err)
	case errors.As(err, &er):
		return &statusError{Code: er.StatusCode, Host: e.Base.Host, Detail: "its token service refused: " + printable(er.Errors.Error(), 200)}
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return &statusError{Code: http.StatusUnauthorized, Host: e.Base.Host, Detail: "no credentials for it are known"}
	}
	return &statusError{Code: http.StatusUnauthorized, Host: e.Base.Host, Detail: printable(err.Error(), 300)}
}

// redact drops the query of a URL in an error: token servers and signed redirects carry secrets there.
func redact(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		if u, perr := url.Parse(ue.URL); perr == nil {
			u.RawQuery, u.User = "", nil
			return fmt.Errorf("%s %s: %w", ue.Op, u.String(), ue.Err)
		}
		return ue.Err
	}
	return err
}

// each asks the endpoints that can, in order, until one works, and goes through the list again while what
// failed last may pass.
func (s *Source) each(ctx context.Context, what, subject string, can func(*endpoint) bool, ask func(*endpoint) error) error {
	var failures []error
	for round := range rounds {
		failures = failures[:0]
		var wait time.Duration
		for _, e := range s.ends {
			if !can(e) || e.bad.Load() {
				continue
			}
			err := ask(e)
			if err == nil {
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s (%s): %w", what, subject, context.Cause(ctx))
			}
			var se *statusError
			if errors.As(err, &se) {
				wait = max(wait, se.Wait)
			}
			failures = append(failures, err)
		}
		if len(failures) == 0 || !transient(failures[len(failures)-1]) || round == rounds-1 {
			break
		}
		if err := sleep(ctx, max(wait, s.opts.Backoff<<(2*round))); err != nil {
			return fmt.Errorf("%s (%s): %w", what, subject, err)
		}
	}
	return explain(what, subject, failures)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// Document is a manifest or index as a registry gave it.
type Document struct {
	Body      []byte
	MediaType string // of the Content-Type, without parameters
}

// Manifest reads the document that object, a tag or a digest, names. Bodies over limit are refused. Digest
// may be "", else the body is held to it; size -1 is not known.
func (s *Source) Manifest(ctx context.Context, object, digest string, size int64, accept []string, limit int64) (*Document, error) {
	var doc *Document
	subject := s.opts.Domain + "/" + s.opts.Repo + "@" + object
	if digest == "" {
		subject = s.opts.Domain + "/" + s.opts.Repo + ":" + object
	}
	can := func(e *endpoint) bool { return e.Resolve && digest == "" || e.Pull && digest != "" }
	err := s.each(ctx, "read the manifest", subject, can, func(e *endpoint) error {
		ctx, cancel := context.WithTimeout(ctx, 2*headerTimeout)
		defer cancel()
		resp, err := s.get(ctx, e, "/manifests/"+object, http.Header{"Accept": accept}, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
		if err != nil {
			return redact(err)
		}
		if err := checkDocument(resp, body, digest, size, limit); err != nil {
			return err
		}
		mt, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
		doc = &Document{body, strings.TrimSpace(mt)}
		return nil
	})
	return doc, err
}

func checkDocument(resp *http.Response, body []byte, digest string, size, limit int64) error {
	host := resp.Request.URL.Host
	switch {
	case int64(len(body)) > limit:
		return badf("%s sent a document of more than %d bytes", host, limit)
	case size >= 0 && int64(len(body)) != size:
		return badf("%s sent a document of %d bytes, its descriptor says %d", host, len(body), size)
	}
	for _, want := range []string{digest, resp.Header.Get("Docker-Content-Digest")} {
		if want == "" {
			continue
		}
		v, err := NewVerifier(want)
		if err != nil {
			return badf("%s: %w", host, err)
		}
		_, _ = v.Write(body)
		if !v.Verified() {
			return badf("%s sent a document whose digest is not %s", host, want)
		}
	}
	return nil
}

// Blob reads a small blob (a config) whole and held to its digest and size.
func (s *Source) Blob(ctx context.Context, digest string, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, errs.New(errs.Invalid, "blob %s: its descriptor says %d bytes, more than the %d that are taken", digest, size, limit)
	}
	for {
		r := s.Stream(ctx, digest, size)
		var buf bytes.Buffer
		_, err := io.Copy(&buf, r)
		r.Close()
		if err == nil {
			return buf.Bytes(), nil
		}
		if !r.Retry(err) {
			return nil, err
		}
	}
}
