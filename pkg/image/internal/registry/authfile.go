package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/cri-server/cri-server/pkg/errs"
)

// authFile is what a credential file in Docker's format says about whom it knows. Its secrets, and those that the
// helpers keep, are the library's to read.
type authFile struct {
	Auths       map[string]json.RawMessage `json:"auths"`
	CredHelpers map[string]string          `json:"credHelpers"`
	CredsStore  string                     `json:"credsStore"`
}

// fromFiles asks credential files, and the helpers they name, for the credentials of a repository on a host. A key
// names a host, or a host and the beginning of a repository's path ("registry.example/org", in whole components); the
// longest that fits counts (containers-auth.json(5)), and one for another repository of the host does not. A file that
// does not exist is skipped. Helpers are programs the operator named.
func fromFiles(ctx context.Context, files []string, host, repo string) (auth.Credential, error) {
	var failed error
	for _, file := range files {
		cred, err := fromFile(ctx, file, host, repo)
		if cred != auth.EmptyCredential {
			return cred, nil
		}
		if err != nil {
			failed = err
		}
	}
	return auth.EmptyCredential, failed
}

func fromFile(ctx context.Context, file, host, repo string) (auth.Credential, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return auth.EmptyCredential, nil
	}
	var known authFile
	if err == nil && len(raw) > 0 {
		err = json.Unmarshal(raw, &known)
	}
	var store credentials.Store
	if err == nil {
		store, err = credentials.NewStore(file, credentials.StoreOptions{DetectDefaultNativeStore: false})
	}
	if err != nil {
		return auth.EmptyCredential, errs.New(errs.Unknown, "credential file %s: %w", file, plain(err))
	}
	var failed error
	for _, key := range known.keys(host, repo) {
		cred, err := store.Get(ctx, key)
		if err != nil {
			failed = errs.New(errs.Unknown, "credentials for %s (%s): %w", key, file, err)
		} else if cred != auth.EmptyCredential {
			return cred, nil
		}
	}
	return auth.EmptyCredential, failed
}

// plain keeps what a file holds out of the text about it.
func plain(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("it is no JSON at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Errorf("its %s is no %s", kind.Field, kind.Type)
	}
	return err
}

// repository is the path by which a credential file knows a repository on the host: without the API's own part.
func (h *Host) repository(repo string) string {
	path := strings.TrimSuffix(h.Base.Path, "/v2")
	if rest, ok := strings.CutPrefix(path, "/v2/"); ok {
		path = rest
	}
	return strings.Trim(path+"/"+repo, "/")
}

// keys are the names under which the file may have the repository's credentials, the most specific first.
func (f *authFile) keys(host, repo string) []string {
	var out []string
	for path := repo; ; {
		for _, h := range hostNames(host) {
			want := h
			if path != "" {
				want += "/" + path
			}
			var fits []string
			for key := range f.Auths {
				if normalKey(key) == want {
					fits = append(fits, key)
				}
			}
			slices.SortFunc(fits, func(a, b string) int { // a plain key before a URL
				return cmp.Or(strings.Count(a, "://")-strings.Count(b, "://"), strings.Compare(a, b))
			})
			out = append(out, fits...)
			if _, ok := f.CredHelpers[want]; ok && !slices.Contains(out, want) {
				out = append(out, want)
			}
		}
		if path == "" {
			break
		}
		path = path[:max(0, strings.LastIndexByte(path, '/'))]
	}
	if f.CredsStore != "" {
		for _, key := range helperKeys(host) {
			if !slices.Contains(out, key) {
				out = append(out, key)
			}
		}
	}
	return out
}

// normalKey is what a key means. Old tools wrote URLs, whose path was the API's and not a repository's.
func normalKey(key string) string {
	_, rest, isURL := strings.Cut(key, "://")
	if !isURL {
		rest = key
	}
	host, path, _ := strings.Cut(rest, "/")
	host = strings.ToLower(strings.TrimSuffix(host, ":443"))
	if path = strings.Trim(path, "/"); isURL || path == "" {
		return host
	}
	return host + "/" + path
}

// hostNames are the names of a host.
func hostNames(host string) []string {
	host = strings.ToLower(host)
	if host == dockerRegistry || host == dockerDomain {
		return []string{dockerDomain, "index.docker.io", dockerRegistry}
	}
	return []string{strings.TrimSuffix(host, ":443")}
}

// helperKeys are the names under which tools have given a host's credentials to helpers.
func helperKeys(host string) []string {
	if host == dockerRegistry || host == dockerDomain {
		return []string{"https://index.docker.io/v1/", "index.docker.io", dockerDomain, dockerRegistry}
	}
	return []string{host, "https://" + host}
}
