package registry

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// TestCredentialKeys: the longest path that a repository begins with counts, and none that it does not.
func TestCredentialKeys(t *testing.T) {
	for name, c := range map[string]struct {
		auths      string // keys, whose user is the key itself
		host, repo string
		want       string
	}{
		"the repository":           {"reg.example reg.example/org reg.example/org/app", "reg.example", "org/app", "reg.example/org/app"},
		"what is above it":         {"reg.example reg.example/org reg.example/other", "reg.example", "org/app", "reg.example/org"},
		"the host":                 {"reg.example reg.example/other", "reg.example", "org/app", "reg.example"},
		"another repository's":     {"reg.example/other reg.example/org/app/deep", "reg.example", "org/app", ""},
		"half a component":         {"reg.example/or reg.example/org/ap", "reg.example", "org/app", ""},
		"another host's":           {"other.example/org/app", "reg.example", "org/app", ""},
		"with a port":              {"reg.example/org reg.example:5000", "reg.example:5000", "org/app", "reg.example:5000"},
		"a URL is a host":          {"https://reg.example/v1/", "reg.example", "org/app", "https://reg.example/v1/"},
		"a URL is no repository":   {"https://reg.example/org/app reg.example", "reg.example", "org/app", "reg.example"},
		"Docker's by its old name": {"https://index.docker.io/v1/", "registry-1.docker.io", "library/busybox", "https://index.docker.io/v1/"},
		"Docker's repository":      {"https://index.docker.io/v1/ docker.io/library", "registry-1.docker.io", "library/busybox", "docker.io/library"},
		"slash at the end":         {"reg.example/org/", "reg.example", "org/app", "reg.example/org/"},
	} {
		t.Run(name, func(t *testing.T) {
			auths := map[string]any{}
			for key := range strings.FieldsSeq(c.auths) {
				auths[key] = map[string]string{"username": key, "password": "p"}
			}
			b, err := json.Marshal(map[string]any{"auths": auths})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "auth.json")
			write(t, file, string(b))
			for range 10 { // maps have no order
				cred, err := fromFiles(t.Context(), []string{filepath.Join(t.TempDir(), "none"), file}, c.host, c.repo)
				if err != nil || cred.Username != c.want {
					t.Fatalf("%q, %v; want %q", cred.Username, err, c.want)
				}
			}
		})
	}
}

func TestHelperKeys(t *testing.T) {
	f := authFile{CredHelpers: map[string]string{"reg.example": "a", "reg.example/org": "b"}, CredsStore: "c"}
	if got, want := f.keys("reg.example", "org/app"), []string{"reg.example/org", "reg.example", "https://reg.example"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestBadAuthFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "auth.json")
	for _, text := range []string{`{"auths": "c2VjcmV0"}`, `{"auths": {c2VjcmV0`, `{"auths": {"reg.example": "c2VjcmV0"}}`} {
		write(t, file, text)
		cred, err := fromFiles(t.Context(), []string{file}, "reg.example", "a")
		if err == nil || cred != auth.EmptyCredential || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: %v, %v", text, cred, err)
		}
	}
}

func TestHostRepository(t *testing.T) {
	for base, want := range map[string]string{"/v2": "a/b", "/proxy/v2": "proxy/a/b", "/v2/proxy": "proxy/a/b", "/own": "own/a/b"} {
		h := Host{Base: url.URL{Path: base}}
		if got := h.repository("a/b"); got != want {
			t.Error(fmt.Sprint(base, ": ", got, ", want ", want))
		}
	}
}
