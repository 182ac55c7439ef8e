package registry

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// tlsFiles reads what a host table names.
func tlsFiles(dir string, t hostTable) (TLS, error) {
	out := TLS{SkipVerify: t.SkipVerify != nil && *t.SkipVerify}
	cas, err := stringList(t.CA)
	if err != nil {
		return out, fmt.Errorf("ca: %w", err)
	}
	for _, name := range cas {
		pem, err := readSmall(inDir(dir, name))
		if err != nil {
			return out, fmt.Errorf("ca: %w", err)
		}
		out.CAs = append(out.CAs, string(pem))
	}
	pairs, err := clientPairs(t.Client)
	if err != nil {
		return out, fmt.Errorf("client: %w", err)
	}
	for _, p := range pairs {
		if err := out.addClient(inDir(dir, p[0]), inDir(dir, p[1])); err != nil {
			return out, fmt.Errorf("client: %w", err)
		}
	}
	return out, nil
}

func (t *TLS) addClient(cert, key string) error {
	c, err := readSmall(cert)
	if err != nil {
		return err
	}
	k, err := readSmall(key)
	if err != nil {
		return err
	}
	t.Clients = append(t.Clients, [2]string{string(c), string(k)})
	return nil
}

// clientPairs understands the three ways to name client certificates: one file with certificate and key,
// a list of such, a list of [certificate, key].
func clientPairs(v any) ([][2]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return [][2]string{{v, v}}, nil
	case []any:
		var out [][2]string
		for _, e := range v {
			switch e := e.(type) {
			case string:
				out = append(out, [2]string{e, e})
			case []any:
				p, err := stringList(e)
				if err != nil || len(p) < 1 || len(p) > 2 {
					return nil, errors.New("want [certificate, key]")
				}
				if len(p) == 1 || p[1] == "" {
					p = []string{p[0], p[0]}
				}
				out = append(out, [2]string{p[0], p[1]})
			default:
				return nil, errors.New("want a path or [certificate, key]")
			}
		}
		return out, nil
	}
	return nil, errors.New("want a path or a list")
}

// readCertsDir is docker's layout, for a directory without hosts.toml: *.crt are authorities, *.cert with
// *.key client certificates.
func readCertsDir(dir, domain string) ([]Host, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	h := defaultHost(domain)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch filepath.Ext(name) {
		case ".crt":
			pem, err := readSmall(name)
			if err != nil {
				return nil, err
			}
			h.TLS.CAs = append(h.TLS.CAs, string(pem))
		case ".cert":
			if err := h.TLS.addClient(name, strings.TrimSuffix(name, ".cert")+".key"); err != nil {
				return nil, err
			}
		}
	}
	return []Host{h}, nil
}

func inDir(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// readSmall reads a configuration file of at most a mebibyte.
func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name) //nolint:forbidigo // a file the operator configured
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxHostsFile+1))
	if err == nil && len(data) > maxHostsFile {
		err = fmt.Errorf("%s is larger than a mebibyte", name)
	}
	return data, err
}
