package image

import (
	"strings"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image/internal/reference"
)

// Get finds an image by tag ("busybox", "registry.k8s.io/pause:3.9"), by repository digest, by id or by a
// prefix of the id that only one image has. It takes no disk access. No such image is errs.NotFound, a
// text that can be none of these errs.Invalid.
func (s *Store) Get(ref string) (*Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	return s.shown[id], nil
}

// resolve finds the id that ref names. Caller holds mu.
func (s *Store) resolve(ref string) (string, error) {
	if ref == "" {
		return "", errs.New(errs.Invalid, "image reference: it is empty")
	}
	for _, id := range []string{ref, "sha256:" + ref} {
		if s.images[id] != nil {
			return id, nil
		}
	}
	r, err := reference.Parse(ref)
	if err == nil {
		if id := s.tags[r.String()]; id != "" {
			return id, nil
		}
	}
	prefix, hadAlg := strings.CutPrefix(ref, "sha256:")
	if !isHex(prefix) || len(prefix) > 64 {
		if err != nil {
			return "", err
		}
		return "", notFound(ref)
	}
	if !hadAlg && len(prefix) < 3 {
		return "", notFound(ref)
	}
	found := ""
	for id := range s.images {
		if !strings.HasPrefix(hexOf(id), prefix) {
			continue
		}
		if found != "" {
			return "", errs.New(errs.Invalid, "image %q: several ids begin like this. Give more digits", ref)
		}
		found = id
	}
	if found == "" {
		return "", notFound(ref)
	}
	return found, nil
}

func notFound(ref string) error {
	return errs.New(errs.NotFound, "image %.300q: not in the store. Pull it first", ref)
}

func isHex(s string) bool { return s != "" && strings.Trim(s, "0123456789abcdef") == "" }

// Normalize gives a reference its full form: "busybox" is "docker.io/library/busybox:latest". A malformed
// one is errs.Invalid.
func Normalize(ref string) (string, error) {
	r, err := reference.Parse(ref)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}
