package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

func write(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestDefault(t *testing.T) {
	c, err := Load(write(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	c.Runtime = "/bin/true"
	if err := c.Finish(); err != nil {
		t.Fatal(err)
	}
	if c.Socket != "/run/cri-server/cri-server.sock" || c.CgroupRoot != "/cri-server" || time.Duration(c.Stream.TokenTTL) != time.Minute {
		t.Errorf("got %+v", c)
	}
}

func TestOverride(t *testing.T) {
	a := write(t, "root = \"/a\"\n[image]\nmirror = \"http://m\"\npinned = [\"x\"]\n[network.default]\nsubnets = [\"10.1.0.0/16\"]")
	b := write(t, "root = \"/b\"\n[network.default]\nenabled = true")
	c, err := Load(a, b)
	if err != nil {
		t.Fatal(err)
	}
	c.Runtime = "/bin/true"
	if err := c.Finish(); err != nil {
		t.Fatal(err)
	}
	if c.Root != "/b" || c.Image.Mirror != "http://m" || !c.Network.Default.Enabled || c.Network.Default.Subnets[0].String() != "10.1.0.0/16" || c.Network.ConfDir != "/etc/cni/net.d" {
		t.Errorf("got %+v", c)
	}
	if c.CgroupRoot != "/cri-server-"+c.Suffix() || len(c.Suffix()) != 8 {
		t.Errorf("cgroup root %q", c.CgroupRoot)
	}
}

func TestRefusals(t *testing.T) {
	for text, words := range map[string][]string{
		"root = \"/a\"\nrot = 1":                      {"line 2", "rot", "unknown key"},
		"\n\n[image]\nmirorr = \"x\"":                 {"line 4", "image.mirorr"},
		"root = 7":                                    {"line 1"},
		"root = \"":                                   {"line 1"},
		"[stream]\ntoken_ttl = \"soon\"":              {"soon"},
		"[stream]\ntoken_ttl = \"-1s\"":               {"negative"},
		"[network.default]\nsubnets = [\"10.0.0.0\"]": {"10.0.0.0"},
		"[debug]\naddress = \"0.0.0.0:1\"":            {"loopback", "0.0.0.0:1"},
		"[debug]\naddress = \"nonsense\"":             {"nonsense"},
		"runtime_handlers = [\"\"]":                   {"runtime_handlers"},
		"root = \"\"":                                 {"root"},
		"cgroup_root = \"/a/../../b\"":                {"cgroup_root"},
	} {
		f := write(t, text)
		c, err := Load(f)
		if err == nil {
			c.Runtime = "/bin/true"
			err = c.Finish()
		}
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v, want an invalid configuration", text, err)
			continue
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %q does not say %q", text, err, w)
			}
		}
	}
	if _, err := Load("/does/not/exist.toml"); err == nil {
		t.Error("a named file that is not there was taken for empty")
	}
}
