package registry

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	dialTimeout     = 15 * time.Second
	headerTimeout   = 30 * time.Second
	maxRedirects    = 10
	keptTransports  = 64
	idleConnTimeout = 90 * time.Second
)

// Pool keeps connections between pulls. Its zero value is ready. Hosts with equal trust settings share a
// transport; a change of a certificate file makes another one.
type Pool struct {
	mu   sync.Mutex
	kept map[[32]byte]*http.Transport
}

// Close drops idle connections.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.kept {
		t.CloseIdleConnections()
	}
	p.kept = nil
}

func (p *Pool) transport(h *Host) (*http.Transport, error) {
	key := sha256.Sum256(fmt.Appendf(nil, "%q %q %t %d", h.TLS.CAs, h.TLS.Clients, h.TLS.SkipVerify, h.Timeout))
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.kept[key]; t != nil {
		return t, nil
	}
	conf, err := h.TLS.config()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Base.Host, err)
	}
	timeout := h.Timeout
	if timeout == 0 {
		timeout = dialTimeout
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   timeout,
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       idleConnTimeout,
		MaxIdleConnsPerHost:   8,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // digests are of the bytes as they are
	}
	if len(p.kept) >= keptTransports {
		for _, old := range p.kept {
			old.CloseIdleConnections()
		}
		p.kept = nil
	}
	if p.kept == nil {
		p.kept = map[[32]byte]*http.Transport{}
	}
	p.kept[key] = t
	return t, nil
}

func (t *TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.SkipVerify} //nolint:gosec // skip_verify is the operator's word
	if len(t.CAs) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, pem := range t.CAs {
			if !pool.AppendCertsFromPEM([]byte(pem)) {
				return nil, errors.New("ca holds no certificate")
			}
		}
		c.RootCAs = pool
	}
	for _, p := range t.Clients {
		cert, err := tls.X509KeyPair([]byte(p[0]), []byte(p[1]))
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		c.Certificates = append(c.Certificates, cert)
	}
	return c, nil
}

// client follows redirects carefully: never from TLS to plain HTTP, and without the configured headers,
// which may be secrets, once the chain has left the origin it was sent to.
func client(t http.RoundTripper, configured http.Header) *http.Client {
	return &http.Client{Transport: t, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return badf("stopped after %d redirects", maxRedirects)
		}
		first := via[0].URL
		left := false
		for _, r := range append(slices.Clone(via[1:]), req) {
			if r.URL.Scheme != first.Scheme || r.URL.Host != first.Host {
				left = true
			}
			if first.Scheme == "https" && r.URL.Scheme != "https" {
				return badf("refused a redirect from TLS to %s", r.URL.Redacted())
			}
		}
		if left {
			req.Header.Del("Authorization")
			req.Header.Del("Cookie")
			for k := range configured {
				req.Header.Del(k)
			}
		}
		return nil
	}}
}
