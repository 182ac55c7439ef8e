package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

// TestRealms: a private registry may have its token service at another private host, a public one may not,
// and nobody may have one where clouds keep their metadata.
func TestRealms(t *testing.T) {
	addrs := map[string]string{"registry.corp": "10.0.0.1", "gitlab.corp": "10.0.0.2", "registry.public": "192.0.2.1", "metadata": "169.254.169.254", "alibaba": "100.100.100.200", "nat": "100.64.0.9"}
	for name, c := range map[string]struct {
		registry, realm string
		through         bool
	}{
		"sibling":          {"https://registry.corp", "https://gitlab.corp/jwt/auth?x=1", true},
		"by address":       {"https://10.0.0.1:5000", "https://10.0.0.2/auth", true},
		"carrier nat":      {"https://nat", "https://gitlab.corp/auth", true},
		"both plain":       {"http://registry.corp", "http://gitlab.corp/auth", true},
		"to plain":         {"https://registry.corp", "http://gitlab.corp/auth", false},
		"public registry":  {"https://registry.public", "https://gitlab.corp/auth", false},
		"metadata":         {"https://registry.corp", "https://metadata/latest", false},
		"metadata literal": {"https://registry.corp", "https://169.254.169.254/latest", false},
		"alibaba":          {"https://registry.corp", "https://alibaba/latest", false},
		"unknown name":     {"https://registry.corp", "https://none/auth", false},
		"a file":           {"https://registry.corp", "file:///etc/passwd", false},
		"public realm":     {"https://registry.corp", "https://registry.public/auth", false},
	} {
		t.Run(name, func(t *testing.T) {
			var sent []string
			next := tripper(func(req *http.Request) (*http.Response, error) {
				sent = append(sent, req.URL.String())
				rec := httptest.NewRecorder()
				rec.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="s"`, c.realm))
				rec.WriteHeader(http.StatusUnauthorized)
				resp := rec.Result()
				resp.Request = req
				return resp, nil
			})
			host := strings.SplitN(c.registry, "://", 2)[1]
			r := newRealms(next, host)
			r.lookup = func(_ context.Context, h string) ([]netip.Addr, error) {
				if a, ok := addrs[h]; ok {
					return []netip.Addr{netip.MustParseAddr(a)}, nil
				}
				return nil, errors.New("no such host")
			}
			req := httptest.NewRequest(http.MethodGet, c.registry+"/v2/", nil)
			for range 2 {
				resp, err := r.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				got := resp.Header.Get("Www-Authenticate")
				want := fmt.Sprintf(`Bearer realm=%q,service="s"`, c.realm)
				if c.through {
					want = fmt.Sprintf(`Bearer realm="%s%s0",service="s"`, c.registry, realmPath)
				}
				if got != want {
					t.Errorf("the challenge became %q, want %q", got, want)
				}
			}
			token := httptest.NewRequest(http.MethodGet, c.registry+realmPath+"0?service=s", nil)
			if _, err := r.RoundTrip(token); err != nil {
				t.Fatal(err)
			}
			went := sent[len(sent)-1]
			if c.through != strings.HasPrefix(went, strings.SplitN(c.realm, "?", 2)[0]) || c.through && !strings.Contains(went, "service=s") {
				t.Errorf("the token request went to %s", went)
			}
		})
	}
}

type tripper func(*http.Request) (*http.Response, error)

func (t tripper) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

// TestSiblingRealm goes the whole way, with the token service at another loopback address.
func TestSiblingRealm(t *testing.T) {
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u == "u" && p == "p" && r.URL.Query().Get("scope") == "repository:r:pull" {
			fmt.Fprint(w, `{"token":"good"}`)
		}
	}))
	defer tokens.Close()
	sibling := strings.Replace(tokens.URL, "127.0.0.1", "localhost", 1)
	s := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="svc"`, sibling))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	if _, err := manifest(open(t, Options{Hosts: []Host{s.host(t, true)}, Credentials: &Credentials{Username: "u", Password: "p"}})); err != nil {
		t.Error(err)
	}
}
