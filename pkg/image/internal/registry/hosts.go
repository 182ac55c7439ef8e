// Package registry reads manifests and blobs from OCI distribution registries and their mirrors.
//
// Where to ask comes from hosts.toml files as containerd reads them (hosts.go), how to prove who asks from
// the request or docker's credential files (auth.go). Everything a registry says is hostile: bodies are
// bounded, digests are checked, and credentials go to the one host they were given for.
package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Host is one place that may serve a repository, in the order in which they are asked.
type Host struct {
	Base       url.URL // scheme, host and path up to and with /v2
	Pull       bool    // may serve blobs, and manifests by digest
	Resolve    bool    // may say what a tag means
	Upstream   bool    // the registry that the reference names, not a mirror of it
	EitherHTTP bool    // loopback without a scheme: plain HTTP, or TLS where that is what answers
	Header     http.Header
	TLS        TLS
	Timeout    time.Duration // of dialing; 0 is the default
}

// TLS says how to trust a host and how to be trusted by it. The values are file contents, so that two
// equal ones may share connections.
type TLS struct {
	CAs        []string    // PEM, added to the system's
	Clients    [][2]string // PEM certificate and key
	SkipVerify bool
}

const (
	dockerDomain   = "docker.io"
	dockerRegistry = "registry-1.docker.io"
	maxHostsFile   = 1 << 20
)

type hostsFile struct {
	Server string `toml:"server"`
	hostTable
	Host map[string]hostTable `toml:"host"`
}

type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // path or list of paths
	Client       any            `toml:"client"` // path, list of paths, list of [certificate, key]
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // value or list of values
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// Lookup lists the hosts to ask for a repository of domain. Dirs are searched for <domain>/hosts.toml and
// _default/hosts.toml; the files are read at every call, so that an edit is in force at the next pull. With
// mirror, a plain or TLS base URL, that alone is asked. A malformed file is errs.Invalid and names it.
func Lookup(dirs []string, mirror, domain string) ([]Host, error) {
	if mirror != "" {
		h, err := parseHost(mirror, "", hostTable{})
		if err != nil {
			return nil, err
		}
		return []Host{h}, nil
	}
	for _, dir := range dirs {
		for _, name := range dirNames(domain) {
			sub := filepath.Join(dir, name)
			if fi, err := os.Stat(sub); err != nil || !fi.IsDir() {
				continue
			}
			return readDir(sub, domain)
		}
	}
	return []Host{defaultHost(domain)}, nil
}

// dirNames are the directories that may configure domain, best first. The second is for filesystems and
// tools that cannot have a colon in a name.
func dirNames(domain string) []string {
	names := []string{domain, "_default"}
	if i := strings.LastIndexByte(domain, ':'); i > 0 {
		names = []string{domain[:i] + "_" + domain[i+1:] + "_", domain, "_default"}
	}
	return names
}

func readDir(dir, domain string) ([]Host, error) {
	file := filepath.Join(dir, "hosts.toml")
	data, err := readSmall(file)
	if errors.Is(err, fs.ErrNotExist) {
		return readCertsDir(dir, domain)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "registry configuration %s: %w", file, err)
	}
	hosts, err := parseHosts(data, dir, domain)
	if err != nil {
		return nil, errs.New(errs.Invalid, "registry configuration %s: %w. Correct the file; it is read at every pull", file, err)
	}
	return hosts, nil
}

// parseHosts reads the text of a hosts.toml; relative paths in it are below dir.
func parseHosts(data []byte, dir, domain string) ([]Host, error) {
	var f hostsFile
	if err := toml.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	var hosts []Host
	last := defaultHost(domain)
	for _, name := range hostOrder(data, f.Host) {
		h, err := parseHost(name, dir, f.Host[name])
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", withoutSecret(name), err)
		}
		h.Upstream = sameHost(h, last)
		hosts = append(hosts, h)
	}
	if f.Server != "" {
		h, err := parseHost(f.Server, dir, f.hostTable)
		if err != nil {
			return nil, fmt.Errorf("server %q: %w", withoutSecret(f.Server), err)
		}
		h.Upstream = sameHost(h, last)
		return append(hosts, h), nil
	}
	h, err := parseHost(last.Base.Scheme+"://"+last.Base.Host, dir, f.hostTable)
	if err != nil {
		return nil, err
	}
	h.Upstream, h.EitherHTTP = true, last.EitherHTTP
	return append(hosts, h), nil
}

// sameHost reports whether a configured host is the registry itself: what is for the registry, credentials
// first of all, is then for it too.
func sameHost(h, registry Host) bool {
	port := func(u url.URL) string {
		if p := u.Port(); p != "" {
			return p
		}
		return map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if !strings.EqualFold(h.Base.Hostname(), registry.Base.Hostname()) {
		return false
	}
	return registry.Base.Port() == "" && h.Base.Port() == "" || port(h.Base) == port(registry.Base)
}

// hostOrder lists the keys of the host tables as the file has them, which a decoded map does not tell.
func hostOrder(data []byte, tables map[string]hostTable) []string {
	var order []string
	note := func(name string) {
		if _, ok := tables[name]; ok && !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	var p unstable.Parser
	p.Reset(data)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		var key []string
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = key
		case unstable.KeyValue:
			key = append(slices.Clone(table), key...)
		default:
			continue
		}
		if len(key) > 1 && key[0] == "host" {
			note(key[1])
		}
	}
	rest := make([]string, 0, len(tables))
	for name := range tables { // written as an inline table
		if !slices.Contains(order, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(order, rest...)
}

func parseHost(server, dir string, t hostTable) (Host, error) {
	if !strings.HasPrefix(server, "http://") && !strings.HasPrefix(server, "https://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return Host{}, err
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Host{}, errors.New("want http[s]://host[:port][/path] and nothing else")
	}
	h := Host{Base: url.URL{Scheme: u.Scheme, Host: u.Host}}
	if u.Host == dockerDomain || u.Host == "index."+dockerDomain { // people write the name; the registry has another
		h.Base.Host = dockerRegistry
	}
	if h.Base.Path = strings.TrimSuffix(path.Clean("/"+u.Path), "/"); !t.OverridePath && !strings.HasSuffix(h.Base.Path, "/v2") {
		h.Base.Path += "/v2"
	}
	if err := h.capabilities(t.Capabilities); err != nil {
		return Host{}, err
	}
	if h.Header, err = headers(t.Header); err != nil {
		return Host{}, err
	}
	if t.DialTimeout != "" {
		if h.Timeout, err = time.ParseDuration(t.DialTimeout); err != nil || h.Timeout <= 0 {
			return Host{}, fmt.Errorf("dial_timeout %q is not a positive duration like \"5s\"", t.DialTimeout)
		}
	}
	h.TLS, err = tlsFiles(dir, t)
	return h, err
}

// withoutSecret shows a URL without the user and password that it should not hold.
func withoutSecret(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return "…" + s[i:]
	}
	return s
}

func (h *Host) capabilities(caps []string) error {
	if len(caps) == 0 {
		h.Pull, h.Resolve = true, true
	}
	for _, c := range caps {
		switch strings.ToLower(c) {
		case "pull":
			h.Pull = true
		case "resolve":
			h.Resolve = true
		case "push", "referrers": // known, of no use to a puller
		default:
			return fmt.Errorf("unknown capability %q, want pull, resolve or push", c)
		}
	}
	return nil
}

func headers(in map[string]any) (http.Header, error) {
	out := http.Header{}
	for k, v := range in {
		values, err := stringList(v)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", k, err)
		}
		for _, s := range values {
			if strings.ContainsAny(k+s, "\r\n\x00") {
				return nil, fmt.Errorf("header %q holds a line break", k)
			}
			out.Add(k, s)
		}
	}
	return out, nil
}

func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var out []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, errors.New("want a string or a list of strings")
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, errors.New("want a string or a list of strings")
}

// defaultHost is what is asked when nothing is configured: the registry by TLS, or, on loopback, by
// whatever it speaks.
func defaultHost(domain string) Host {
	h := Host{Base: url.URL{Scheme: "https", Host: domain, Path: "/v2"}, Pull: true, Resolve: true, Upstream: true}
	if domain == dockerDomain {
		h.Base.Host = dockerRegistry
	}
	if loopback(domain) && h.Base.Port() != "443" {
		h.Base.Scheme, h.EitherHTTP = "http", true
	}
	return h
}

func loopback(domain string) bool {
	u := url.URL{Host: domain}
	name := u.Hostname()
	if name == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.IsLoopback()
}
