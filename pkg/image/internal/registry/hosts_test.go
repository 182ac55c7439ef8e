package registry

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// line says what a host is, in short.
func line(h Host) string {
	s := h.Base.String()
	if h.Pull {
		s += " pull"
	}
	if h.Resolve {
		s += " resolve"
	}
	if h.Upstream {
		s += " upstream"
	}
	if h.EitherHTTP {
		s += " either"
	}
	if h.TLS.SkipVerify {
		s += " skip"
	}
	if len(h.Header) > 0 {
		s += fmt.Sprint(" ", h.Header)
	}
	if h.Timeout > 0 {
		s += " " + h.Timeout.String()
	}
	for _, ca := range h.TLS.CAs {
		s += " ca=" + ca
	}
	for _, c := range h.TLS.Clients {
		s += " client=" + c[0] + "+" + c[1]
	}
	return s
}

func TestLookup(t *testing.T) {
	const all = " pull resolve"
	for name, c := range map[string]struct {
		domain string
		files  map[string]string
		want   []string
	}{
		"nothing":         {"registry.k8s.io", nil, []string{"https://registry.k8s.io/v2" + all + " upstream"}},
		"docker.io":       {"docker.io", nil, []string{"https://registry-1.docker.io/v2" + all + " upstream"}},
		"loopback":        {"127.0.0.1:5000", nil, []string{"http://127.0.0.1:5000/v2" + all + " upstream either"}},
		"localhost":       {"localhost", nil, []string{"http://localhost/v2" + all + " upstream either"}},
		"ipv6 loopback":   {"[::1]:5000", nil, []string{"http://[::1]:5000/v2" + all + " upstream either"}},
		"loopback on 443": {"127.0.0.1:443", nil, []string{"https://127.0.0.1:443/v2" + all + " upstream"}},
		"server": {"docker.io", map[string]string{"docker.io/hosts.toml": `server = "https://mirror.example"`},
			[]string{"https://mirror.example/v2" + all}},
		"server is the registry": {"docker.io", map[string]string{"docker.io/hosts.toml": `server = "https://registry-1.docker.io"`},
			[]string{"https://registry-1.docker.io/v2" + all + " upstream"}},
		"the registry as a host": {"x.y:5000", map[string]string{"x.y:5000/hosts.toml": "server = \"https://x.y:5000\"\n[host.\"http://x.y:5000\"]\n[host.\"http://x.y\"]"},
			[]string{"http://x.y:5000/v2" + all + " upstream", "http://x.y/v2" + all, "https://x.y:5000/v2" + all + " upstream"}},
		"the registry with its port": {"x.y", map[string]string{"x.y/hosts.toml": "server = \"https://x.y:443\"\n[host.\"http://x.y\"]\n[host.\"https://x.y:444\"]"},
			[]string{"http://x.y/v2" + all + " upstream", "https://x.y:444/v2" + all, "https://x.y:443/v2" + all + " upstream"}},
		"docker.io by its name": {"docker.io", map[string]string{"docker.io/hosts.toml": `server = "https://docker.io"`}, []string{"https://registry-1.docker.io/v2" + all + " upstream"}},
		"hosts in the file's order": {"a.b", map[string]string{"a.b/hosts.toml": `
[host."https://z.example"]
  capabilities = ["pull"]
[host."http://a.example:5000"]
  capabilities = ["pull", "resolve", "push"]
[host."https://m.example".header]
  x-one = "1"
  x-two = ["2", "3"]
`}, []string{"https://z.example/v2 pull", "http://a.example:5000/v2" + all, "https://m.example/v2" + all + " map[X-One:[1] X-Two:[2 3]]", "https://a.b/v2" + all + " upstream"}},
		"paths": {"a.b", map[string]string{"a.b/hosts.toml": `
server = "https://s.example/x/"
[host."https://one.example/v2/proj"]
override_path = true
[host."https://two.example/proj"]
[host."https://three.example/v2"]
[host."four.example"]
`}, []string{"https://one.example/v2/proj" + all, "https://two.example/proj/v2" + all, "https://three.example/v2" + all, "https://four.example/v2" + all, "https://s.example/x/v2" + all}},
		"root table without server": {"a.b", map[string]string{"a.b/hosts.toml": `
capabilities = ["pull"]
skip_verify = true
dial_timeout = "5s"
`}, []string{"https://a.b/v2 pull upstream skip 5s"}},
		"default":               {"x.y", map[string]string{"_default/hosts.toml": `[host."https://m.example"]`}, []string{"https://m.example/v2" + all, "https://x.y/v2" + all + " upstream"}},
		"own before default":    {"x.y", map[string]string{"_default/hosts.toml": `[host."https://m.example"]`, "x.y/hosts.toml": ``}, []string{"https://x.y/v2" + all + " upstream"}},
		"port with underscores": {"x.y:5000", map[string]string{"x.y_5000_/hosts.toml": `skip_verify = true`, "x.y:5000/hosts.toml": ``}, []string{"https://x.y:5000/v2" + all + " upstream skip"}},
		"port":                  {"x.y:5000", map[string]string{"x.y:5000/hosts.toml": `skip_verify = true`}, []string{"https://x.y:5000/v2" + all + " upstream skip"}},
		"unknown keys pass":     {"x.y", map[string]string{"x.y/hosts.toml": "future = 1\n[host.\"https://m.example\"]\nother = true\n"}, []string{"https://m.example/v2" + all, "https://x.y/v2" + all + " upstream"}},
		"certificates": {"x.y", map[string]string{"x.y/ca.pem": "CA", "x.y/c.pem": "C", "x.y/k.pem": "K", "x.y/hosts.toml": `
[host."https://m.example"]
ca = "ca.pem"
client = [["c.pem", "k.pem"]]
[host."https://n.example"]
ca = ["ca.pem", "c.pem"]
client = "c.pem"
`}, []string{"https://m.example/v2" + all + " ca=CA client=C+K", "https://n.example/v2" + all + " ca=CA ca=C client=C+C", "https://x.y/v2" + all + " upstream"}},
		"docker's certificates": {"x.y", map[string]string{"x.y/a.crt": "CA", "x.y/b.cert": "C", "x.y/b.key": "K", "x.y/notes.txt": ""},
			[]string{"https://x.y/v2" + all + " upstream ca=CA client=C+K"}},
		"inline tables": {"x.y", map[string]string{"x.y/hosts.toml": `host = { "https://m.example" = { capabilities = ["resolve"] } }`},
			[]string{"https://m.example/v2 resolve", "https://x.y/v2" + all + " upstream"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for f, text := range c.files {
				write(t, filepath.Join(dir, f), text)
			}
			hosts, err := Lookup([]string{filepath.Join(dir, "absent"), dir}, "", c.domain)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, h := range hosts {
				got = append(got, line(h))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestLookupRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"not toml":           "server = ",
		"capability":         `capabilities = ["fly"]`,
		"a number as ca":     `ca = 5`,
		"missing ca":         `ca = "none.pem"`,
		"missing client":     `client = "none.pem"`,
		"three in a pair":    `client = [["a", "b", "c"]]`,
		"header with a line": "[header]\nx = \"a\\r\\nb\"",
		"header a number":    "[header]\nx = 5",
		"user in the URL":    `server = "https://me:secret@h.example"`,
		"query in the URL":   `server = "https://h.example/?a=b"`,
		"no host":            `server = "https://"`,
		"bad host table":     "[host.\"https://a b\"]\n",
		"timeout":            `dial_timeout = "soon"`,
		"timeout below zero": `dial_timeout = "-1s"`,
		"huge":               "# " + strings.Repeat("x", maxHostsFile),
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "a.b/hosts.toml"), text)
		hosts, err := Lookup([]string{dir}, "", "a.b")
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "hosts.toml") {
			t.Errorf("%s: %v, %v; want an error that names the file", name, hosts, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: a secret is in the text: %v", name, err)
		}
	}
}

func TestMirrorOverrules(t *testing.T) {
	hosts, err := Lookup(nil, "http://127.0.0.1:5055", "registry.k8s.io")
	if err != nil || len(hosts) != 1 || line(hosts[0]) != "http://127.0.0.1:5055/v2 pull resolve" {
		t.Errorf("%v, %v", hosts, err)
	}
}

func FuzzHosts(f *testing.F) {
	f.Add(`server = "https://a"` + "\n[host.\"http://b\".header]\nx = [\"y\"]\n")
	f.Add(`host = { "https://m.example" = { capabilities = ["resolve"] } }`)
	f.Fuzz(func(t *testing.T, text string) {
		hosts, err := parseHosts([]byte(text), "/nonexistent", "x.y")
		if err != nil {
			return
		}
		if len(hosts) == 0 {
			t.Fatal("no host")
		}
		for _, h := range hosts {
			if h.Base.Host == "" || h.Base.Scheme != "http" && h.Base.Scheme != "https" || h.Base.User != nil || strings.HasSuffix(h.Base.Path, "/") {
				t.Fatalf("%+v", h)
			}
		}
	})
}
