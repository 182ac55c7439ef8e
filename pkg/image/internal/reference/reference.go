// Package reference parses image references into their normal form.
//
// The grammar is that of the distribution project: [domain[:port]/]path[:tag][@digest]. A name without a
// domain belongs to docker.io, one without a namespace there to docker.io/library, one with neither tag
// nor digest means the tag latest. Digests are held to the strict form that SafeDigest describes, since
// their text becomes part of file names.
package reference

import (
	"strings"

	"github.com/cri-server/cri-server/pkg/errs"
)

const (
	dockerDomain = "docker.io"
	dockerLegacy = "index.docker.io"
	dockerSpace  = "library/"
	defaultTag   = "latest"

	maxName = 255
	maxTag  = 128
	maxRef  = 1024
)

// Reference is a normalised image reference. Exactly one of Tag and Digest is set: a digest overrules a
// tag beside it, as it does everywhere else.
type Reference struct {
	Domain string // "registry.k8s.io", "127.0.0.1:5000"
	Path   string // "library/busybox"
	Tag    string
	Digest string // "sha256:<64 hex>" or "sha512:<128 hex>"
}

// Parse reads a reference. The error is errs.Invalid and names the part that is wrong.
func Parse(s string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, errs.New(errs.Invalid, "image reference %q: %s", clip(s), why)
	}
	if s == "" {
		return bad("it is empty")
	}
	if len(s) > maxRef {
		return bad("it is longer than 1024 bytes")
	}
	var r Reference
	rest := s
	if i := strings.IndexByte(rest, '@'); i >= 0 {
		rest, r.Digest = rest[:i], rest[i+1:]
		if !SafeDigest(r.Digest) {
			return bad("the digest is not sha256:<64 hexadecimal digits> or sha512:<128>")
		}
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, r.Tag = rest[:i], rest[i+1:]
		if !validTag(r.Tag) {
			return bad("the tag is malformed")
		}
	}
	r.Domain, r.Path = split(rest)
	switch {
	case !validDomain(r.Domain):
		return bad("the registry host is malformed")
	case !validPath(r.Path):
		return bad("the repository name must be lower case letters, digits and separators")
	case len(r.Domain)+1+len(r.Path) > maxName:
		return bad("the repository name is longer than 255 bytes")
	case isHex(rest) && len(rest) == 64:
		return bad("a repository cannot be named like an image id")
	}
	switch {
	case r.Digest != "":
		r.Tag = ""
	case r.Tag == "":
		r.Tag = defaultTag
	}
	return r, nil
}

// Name is the repository with its domain.
func (r Reference) Name() string { return r.Domain + "/" + r.Path }

// String is the normal form: name:tag or name@digest.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest
	}
	return r.Name() + ":" + r.Tag
}

// Object is what a registry calls the manifest: the digest or the tag.
func (r Reference) Object() string {
	if r.Digest != "" {
		return r.Digest
	}
	return r.Tag
}

// SafeDigest reports whether d is a digest in the one form this project takes: sha256 or sha512, a colon,
// and exactly the right number of lower case hexadecimal digits. Nothing else ever becomes a file name.
func SafeDigest(d string) bool {
	alg, hex, ok := strings.Cut(d, ":")
	if !ok || !isHex(hex) {
		return false
	}
	return alg == "sha256" && len(hex) == 64 || alg == "sha512" && len(hex) == 128
}

// split separates the domain from the path the way docker does: the first part is a domain only when it
// looks like a host.
func split(s string) (domain, path string) {
	first, rest, found := strings.Cut(s, "/")
	if !found || !strings.ContainsAny(first, ".:") && first != "localhost" && strings.ToLower(first) == first {
		domain, path = dockerDomain, s
	} else {
		domain, path = first, rest
	}
	if domain == dockerLegacy {
		domain = dockerDomain
	}
	if domain == dockerDomain && !strings.Contains(path, "/") {
		path = dockerSpace + path
	}
	return domain, path
}

func validTag(t string) bool {
	if t == "" || len(t) > maxTag || t[0] == '.' || t[0] == '-' {
		return false
	}
	for i := range len(t) {
		if c := t[i]; !alnum(c) && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

func validDomain(d string) bool {
	host, port := d, ""
	if strings.HasPrefix(d, "[") {
		end := strings.IndexByte(d, ']')
		if end < 2 {
			return false
		}
		for _, c := range []byte(d[1:end]) {
			if !hexDigit(c) && (c < 'A' || c > 'F') && c != ':' && c != '.' {
				return false
			}
		}
		tail := d[end+1:]
		if tail == "" {
			return true
		}
		return tail[0] == ':' && validPort(tail[1:])
	}
	if i := strings.IndexByte(d, ':'); i >= 0 {
		host, port = d[:i], d[i+1:]
		if !validPort(port) {
			return false
		}
	}
	for _, label := range strings.Split(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !alnum(c) && c != '-' {
				return false
			}
		}
	}
	return true
}

func validPort(p string) bool {
	if p == "" || len(p) > 5 {
		return false
	}
	for i := range len(p) {
		if p[i] < '0' || p[i] > '9' {
			return false
		}
	}
	return true
}

func validPath(p string) bool {
	for _, part := range strings.Split(p, "/") {
		if !validComponent(part) {
			return false
		}
	}
	return true
}

// validComponent takes runs of lower case letters and digits joined by ".", "_", "__" or any number of "-".
func validComponent(s string) bool {
	lower := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	if s == "" || !lower(s[0]) || !lower(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if lower(s[i]) {
			i++
			continue
		}
		j := i
		for !lower(s[j]) { // ends: the last byte is lower
			j++
		}
		sep := s[i:j]
		if sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
		i = j
	}
	return true
}

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func hexDigit(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }

func isHex(s string) bool {
	for i := range len(s) {
		if !hexDigit(s[i]) {
			return false
		}
	}
	return s != ""
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
