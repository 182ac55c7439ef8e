package registry

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// realms lets a registry inside a private network have its token service inside it too.
//
// The auth library refuses token services at private addresses, since a hostile registry could name one to
// have this machine ask it, with credentials. That is right for a registry on the internet. One that is
// itself at a private address was chosen by the operator, and its token service commonly is a sibling (a
// GitLab beside its registry). For those, and never for link-local addresses, where clouds keep their
// metadata, the challenge is rewritten to name the registry itself, and the token request is sent on to
// where the challenge pointed.
type realms struct {
	next   http.RoundTripper
	host   string                                                       // of the registry
	lookup func(ctx context.Context, host string) ([]netip.Addr, error) // of tests

	mu    sync.Mutex
	known []*url.URL
}

const realmPath = "/.cri-server/realm/"

func newRealms(next http.RoundTripper, host string) *realms {
	return &realms{next: next, host: host, lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}}
}

// RoundTrip implements http.RoundTripper.
func (r *realms) RoundTrip(req *http.Request) (*http.Response, error) {
	if to := r.behind(req.URL); to != nil {
		out := req.Clone(req.Context())
		out.URL, out.Host = to, ""
		return r.next.RoundTrip(out)
	}
	resp, err := r.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized && req.URL.Host == r.host {
		r.rewrite(req, resp)
	}
	return resp, err
}

// behind is where a rewritten realm pointed; nil for every other URL.
func (r *realms) behind(u *url.URL) *url.URL {
	number, ok := strings.CutPrefix(u.Path, realmPath)
	if !ok || u.Host != r.host {
		return nil
	}
	n, err := strconv.Atoi(number)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || n < 0 || n >= len(r.known) {
		return nil
	}
	to := *r.known[n]
	query := to.Query()
	for k, v := range u.Query() {
		query[k] = v
	}
	to.RawQuery = query.Encode()
	return &to
}

func (r *realms) rewrite(req *http.Request, resp *http.Response) {
	const key = `realm="`
	challenge := resp.Header.Get("Www-Authenticate")
	start := strings.Index(challenge, key)
	if start < 0 || !strings.HasPrefix(strings.ToLower(challenge), "bearer ") {
		return
	}
	start += len(key)
	end := strings.IndexByte(challenge[start:], '"')
	if end < 0 {
		return
	}
	realm, err := url.Parse(challenge[start : start+end])
	if err != nil || realm.Hostname() == req.URL.Hostname() || realm.Scheme != "https" && (realm.Scheme != "http" || req.URL.Scheme == "https") {
		return // the library says what is wrong with it
	}
	if !r.private(req.Context(), req.URL.Hostname()) || !r.private(req.Context(), realm.Hostname()) {
		return
	}
	r.mu.Lock()
	n := -1
	for i, k := range r.known {
		if k.String() == realm.String() {
			n = i
		}
	}
	if n < 0 && len(r.known) < 16 {
		n = len(r.known)
		r.known = append(r.known, realm)
	}
	r.mu.Unlock()
	if n >= 0 {
		fake := url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: realmPath + strconv.Itoa(n)}
		resp.Header.Set("Www-Authenticate", challenge[:start]+fake.String()+challenge[start+end:])
	}
}

var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// private reports whether all addresses of a host are loopback or of a private network.
func (r *realms) private(ctx context.Context, host string) bool {
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, a)
	} else if addrs, err = r.lookup(ctx, host); err != nil {
		return false
	}
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsLoopback() && !a.IsPrivate() && !(carrierNAT.Contains(a) && a.String() != "100.100.100.200") {
			return false
		}
	}
	return len(addrs) > 0
}
