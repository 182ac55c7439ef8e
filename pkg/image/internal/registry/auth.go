package registry

import (
	"encoding/base64"
	"net/url"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Credentials are what one request brought.
type Credentials struct {
	Username, Password string
	Auth               string // base64 of username:password
	ServerAddress      string
	IdentityToken      string
	RegistryToken      string
}

// credential gives the request's credentials the form of the auth library. ok is false when there are
// none, or when they are for another server than domain. A malformed Auth is errs.Invalid; no part of a
// secret is in the text.
func (c *Credentials) credential(domain string) (cred auth.Credential, ok bool, err error) {
	if c == nil || c.ServerAddress != "" && !sameServer(c.ServerAddress, domain) {
		return auth.EmptyCredential, false, nil
	}
	cred = auth.Credential{Username: c.Username, Password: c.Password, RefreshToken: c.IdentityToken, AccessToken: c.RegistryToken}
	if c.Auth != "" && cred.Username == "" {
		raw, err := base64.StdEncoding.DecodeString(c.Auth)
		if err != nil {
			raw, err = base64.RawStdEncoding.DecodeString(c.Auth)
		}
		user, pass, found := strings.Cut(string(raw), ":")
		if err != nil || !found {
			return auth.EmptyCredential, false, errs.New(errs.Invalid, "registry credentials: auth is not the base64 of username:password")
		}
		cred.Username, cred.Password = user, strings.TrimRight(pass, "\x00")
	}
	return cred, cred != auth.EmptyCredential, nil
}

// sameServer reports whether a server address of a credential ("https://index.docker.io/v1/",
// "registry.example:5000") names domain.
func sameServer(address, domain string) bool {
	host := address
	if strings.Contains(address, "://") {
		if u, err := url.Parse(address); err == nil {
			host = u.Host
		}
	}
	host, _, _ = strings.Cut(host, "/")
	return canonicalServer(host) == canonicalServer(domain)
}

func canonicalServer(host string) string {
	host = strings.ToLower(host)
	switch host {
	case "index.docker.io", dockerRegistry:
		return dockerDomain
	}
	return strings.TrimSuffix(host, ":443")
}
