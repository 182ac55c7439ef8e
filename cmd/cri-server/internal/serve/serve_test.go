package serve

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cri-server/cri-server/pkg/oci"
)

func TestSemver(t *testing.T) {
	for in, want := range map[string]string{
		"v1.2.3": "1.2.3", "1.2.3-rc.1+b": "1.2.3-rc.1+b", "v1.2.3-4-gabc123-dirty": "1.2.3-4-gabc123-dirty",
		"unknown": "0.0.0-dev+unknown", "abc123": "0.0.0-dev+abc123", "a b_c": "0.0.0-dev+a-b-c",
	} {
		if got := semver(in); got != want || !semantic.MatchString(got) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestMissing(t *testing.T) {
	if got := missing(&oci.HostFacts{}); got != nil {
		t.Errorf("all capabilities, but %v are missing", got)
	}
	if got := missing(&oci.HostFacts{Capabilities: map[string]bool{"CAP_SYS_ADMIN": true, "CAP_NET_ADMIN": true, "CAP_SYS_PTRACE": true, "CAP_MKNOD": true}}); len(got) != 1 || got[0] != "CAP_SYS_RESOURCE" {
		t.Errorf("missing %v", got)
	}
}

func TestDebug(t *testing.T) {
	off, err := serveDebug("", nil)
	if err != nil || off.addr() != "off" || off.Close() != nil {
		t.Errorf("off: %v", err)
	}
	reg := prometheus.NewRegistry()
	stepMetrics(reg)("RunPodSandbox", "network", 0, io.EOF)
	s, err := serveDebug("127.0.0.1:0", reg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for path, want := range map[string]string{"/metrics": `cri_server_step_failures_total{job="RunPodSandbox",step="network"} 1`, "/debug/pprof/": "goroutine"} {
		resp, err := http.Get("http://" + s.addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %v, no %q", path, err, want)
		}
	}
}

func TestSeccompProfile(t *testing.T) {
	if p, err := seccompProfile(""); p != nil || err != nil {
		t.Errorf("got %v, %v", p, err)
	}
	if _, err := seccompProfile("/does/not/exist"); err == nil {
		t.Error("a file that is not there was taken")
	}
}
