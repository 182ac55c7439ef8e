package network

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

func testManager(t *testing.T) (*Manager, string) {
	t.Helper()
	dir := t.TempDir()
	m, err := Open(Config{ConfDir: dir + "/net.d", BinDirs: []string{dir + "/bin"}, CacheDir: dir + "/cache", StateDir: dir + "/state", NetnsDir: dir + "/netns", Suffix: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{"net.d", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m, dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const loopbackList = `{"cniVersion":"1.0.0","name":"NAME","plugins":[{"type":"loopback"}]}`

func list(name string) string { return strings.ReplaceAll(loopbackList, "NAME", name) }

// The directory's state after each step, and the network that is chosen or what the reason must say.
func TestChoice(t *testing.T) {
	m, dir := testManager(t)
	conf := dir + "/net.d/"
	for _, step := range []struct {
		do   func()
		name string
		says string
	}{
		{func() {}, "", "enable-default"},
		{func() { os.RemoveAll(conf) }, "", "is empty"},
		{func() { write(t, conf+"readme.txt", "x") }, "", "is empty"},
		{func() { write(t, conf+"50-b.conflist", list("b")) }, "b", ""},
		{func() { write(t, conf+"60-c.conflist", list("c")) }, "b", ""},
		{func() { write(t, conf+"10-a.conf", `{"cniVersion":"0.4.0","name":"a","type":"bridge"}`) }, "a", ""},
		{func() { write(t, conf+"10-a.conf", list("list-in-conf")) }, "list-in-conf", ""},
		{func() { write(t, conf+"10-a.conf", `{"cniVersion":"0.4.0","name":"a`) }, "", "10-a.conf"},
		{func() { write(t, conf+"10-a.conf", "") }, "", "10-a.conf"},
		{func() { os.Remove(conf + "10-a.conf") }, "b", ""},
		{func() { write(t, conf+"50-b.conflist", list("b2")) }, "b2", ""},
		{func() { write(t, conf+"new", list("b3")); os.Rename(conf+"new", conf+"50-b.conflist") }, "b3", ""},
		{func() { write(t, conf+"50-b.conflist", list("../b")) }, "", "name"},
		{func() { write(t, conf+"50-b.conflist", strings.ReplaceAll(list("b"), "loopback", "../../bin/sh")) }, "", "../../bin/sh"},
		{func() { write(t, conf+"50-b.conflist", strings.ReplaceAll(list("b"), "1.0.0", "9.0.0")) }, "", "9.0.0"},
		{func() { write(t, conf+"50-b.conflist", `{"cniVersion":"1.0.0","name":"b","plugins":[]}`) }, "", "plugins"},
		{func() { write(t, conf+"50-b.conflist", `{"cniVersion":"1.0.0","name":"b"}`) }, "", "plugins"},
		{func() { write(t, conf+"b/1.conf", `{"type":"loopback"}`) }, "b", ""},
		{func() { write(t, conf+"b/1.conf", `{"type":"no-such"}`) }, "", "no-such"},
		{func() { write(t, conf+"b/1.conf", `{"type":"lo/../x"}`) }, "", "lo/../x"},
		{func() { os.RemoveAll(conf); os.Mkdir(conf, 0o755) }, "", "is empty"},
		{func() { os.Mkdir(conf+"00.conflist", 0o755); write(t, conf+"50-b.conflist", list("b")) }, "b", ""},
		{func() { os.Symlink("/dev/zero", conf+"00.conf") }, "", "regular"},
		{func() { os.Remove(conf + "00.conf"); os.Symlink("50-b.conflist", conf+"01.conflist") }, "b", ""},
		{func() { os.Symlink("nowhere", conf+"00.conf") }, "", "00.conf"},
	} {
		step.do()
		status := m.Status(context.Background())
		got, err := m.network()
		switch {
		case step.says != "":
			if status.Ready || status.Reason != reasonNotReady || !strings.Contains(status.Message, step.says) {
				t.Errorf("want a reason with %q, got %+v", step.says, status)
			}
		case err != nil || got.Name != step.name || !status.Ready:
			t.Errorf("want network %q, got %v, %v, %+v", step.name, got, err, status)
		}
	}
}

// What was taken from files of its own is part of what is recorded with a pod.
func TestPluginDirectoryIsInlined(t *testing.T) {
	m, dir := testManager(t)
	write(t, dir+"/net.d/1.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","mtu":1234567890123}]}`)
	write(t, dir+"/net.d/n/1.conf", `{"type":"loopback"}`)
	got, err := m.network()
	if err != nil {
		t.Fatal(err)
	}
	var c struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(got.Bytes, &c); err != nil || len(c.Plugins) != 2 || c.Plugins[1].Type != "loopback" {
		t.Errorf("%s, %v", got.Bytes, err)
	}
}

func TestAttachNeedsANetwork(t *testing.T) {
	m, _ := testManager(t)
	if _, err := m.Attach(context.Background(), Pod{ID: "a", Netns: "/proc/self/ns/net"}); !errs.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	if err := m.Detach(context.Background(), Pod{ID: "a"}); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("x", 300)} {
		if _, err := m.Attach(context.Background(), Pod{ID: id}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", id, err)
		}
		if err := m.Detach(context.Background(), Pod{ID: id}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestFreeSubnet(t *testing.T) {
	p := netip.MustParsePrefix
	for _, c := range []struct {
		from, want string
		taken      []string
	}{
		{"10.209.0.0/16", "10.209.0.0/24", nil},
		{"10.209.0.0/16", "10.209.1.0/24", []string{"10.209.0.0/24"}},
		{"10.209.0.0/16", "10.209.4.0/24", []string{"10.209.0.0/23", "10.209.2.7/32", "10.209.3.128/25"}},
		{"10.209.0.0/16", "", []string{"10.0.0.0/8"}},
		{"10.209.255.0/24", "10.209.255.0/24", nil},
		{"10.209.255.0/24", "", []string{"10.209.255.9/32"}},
		{"10.209.254.0/23", "10.209.255.0/24", []string{"10.209.254.0/24"}},
		{"255.255.254.0/23", "", []string{"255.255.254.0/23"}},
		{"10.1.2.64/26", "10.1.2.64/26", []string{"10.1.2.0/26"}},
		{"fd00::/48", "fd00:0:0:1::/64", []string{"fd00::/64", "10.0.0.0/8"}},
		{"fd00::/48", "fd00:0:0:100::/64", []string{"fd00::/56"}},
		{"ffff:ffff:ffff:ffff::/64", "", []string{"ffff::/16"}},
	} {
		var taken []netip.Prefix
		for _, s := range c.taken {
			taken = append(taken, p(s))
		}
		got, err := freeSubnet(p(c.from), taken)
		if c.want == "" {
			if !errs.Is(err, errs.Exhausted) {
				t.Errorf("%s without %v: %v, %v", c.from, c.taken, got, err)
			}
		} else if err != nil || got != p(c.want) {
			t.Errorf("%s without %v: %v, %v; want %s", c.from, c.taken, got, err, c.want)
		}
	}
}
