package reference

import (
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

var hex64 = strings.Repeat("0123456789abcdef", 4)

func TestParse(t *testing.T) {
	d := "sha256:" + hex64
	for in, want := range map[string]string{
		"busybox":                         "docker.io/library/busybox:latest",
		"busybox:1.36":                    "docker.io/library/busybox:1.36",
		"user/app":                        "docker.io/user/app:latest",
		"index.docker.io/busybox":         "docker.io/library/busybox:latest",
		"docker.io/busybox":               "docker.io/library/busybox:latest",
		"localhost/a":                     "localhost/a:latest",
		"localhost:5000/a:b":              "localhost:5000/a:b",
		"127.0.0.1:5000/a/b/c":            "127.0.0.1:5000/a/b/c:latest",
		"[::1]:5000/a":                    "[::1]:5000/a:latest",
		"[fd00::1]/a:1":                   "[fd00::1]/a:1",
		"registry.k8s.io/pause:3.9@" + d:  "registry.k8s.io/pause@" + d,
		"busybox@" + d:                    "docker.io/library/busybox@" + d,
		"Host/app":                        "Host/app:latest",
		"a.b/c__d/e-f---g/h.i":            "a.b/c__d/e-f---g/h.i:latest",
		"x@sha512:" + hex64 + hex64:       "docker.io/library/x@sha512:" + hex64 + hex64,
		"gcr.io/k8s-staging/test_1:v1_.-": "gcr.io/k8s-staging/test_1:v1_.-",
	} {
		r, err := Parse(in)
		if err != nil {
			t.Errorf("Parse(%q): %v", in, err)
		} else if r.String() != want {
			t.Errorf("Parse(%q) = %s, want %s", in, r, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		"", ":", "@", "a:", "a@", "/a", "a/", "a//b", "UPPER", "a:b:c", "a b", " a", "a\n", "a/../b", "../a", "a/./b", "a..b", "a___b", "-a", "a-", "_a",
		"a@sha256:" + strings.ToUpper(hex64), "a@sha256:" + hex64[1:], "a@sha256:" + hex64 + "0", "a@md5:" + hex64[:32], "a@sha256:../../" + hex64[6:], "a@sha256:" + hex64 + "@sha256:" + hex64,
		"a@sha512:" + hex64, "a:.tag", "a:-tag", "a:" + strings.Repeat("t", 129), strings.Repeat("a", 256), strings.Repeat("a", 2000), hex64, "host:port/a", "host:123456/a", "-h.x/a", "h..x/a", "[::1/a", "[]/a", "[::1]x/a", "a\x00b", "http://a.b/c",
	} {
		r, err := Parse(in)
		if err == nil {
			t.Errorf("Parse(%q) = %s, want an error", in, r)
		} else if !errs.Is(err, errs.Invalid) {
			t.Errorf("Parse(%q): kind %v, want invalid", in, errs.KindOf(err))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"busybox", "a.b:5/c:d@sha256:" + hex64, "[::1]:5/a", "a/b/c:tag"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(r.String())
		if err != nil || again != r {
			t.Fatalf("%q -> %+v -> %+v, %v: the normal form is not stable", s, r, again, err)
		}
		if strings.Contains(r.String(), "..") || strings.ContainsAny(r.String(), "\x00\n \\") || (r.Tag == "") == (r.Digest == "") {
			t.Fatalf("%q -> %+v", s, r)
		}
	})
}
