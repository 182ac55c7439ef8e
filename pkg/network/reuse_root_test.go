//go:build root

package network

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPTP(t *testing.T) {
	h := newHost(t, nil)
	h.conf("1.conflist", strings.ReplaceAll(`{"cniVersion":"1.1.0","name":"ptp","plugins":[{"type":"ptp","ipMasq":true,"ipam":{"type":"host-local","dataDir":"DIR/leases",
		"ranges":[[{"subnet":"10.55.0.0/24"}],[{"subnet":"fd55::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},{"type":"portmap","capabilities":{"portMappings":true}}]}`, "DIR", h.dir))
	a, b := newPod(t, onePort...), newPod(t)
	ra, rb := h.attach(a), h.attach(b)
	serve(t, a, "tcp", ":80")
	if got := ask(t, b, "tcp", ra.IPs[0]+":80"); got != rb.IPs[0] {
		t.Errorf("pod to pod: seen as %q", got)
	}
	if got := ask(t, nil, "tcp", "["+ra.IPs[1]+"]:80"); got != "fd55::1" { // IPv6 from pod to pod fails with the reference plugin too
		t.Errorf("host to pod over IPv6: seen as %q", got)
	}
	for from, p := range map[string]*holder{"itself": a, "another pod": b} {
		if got := ask(t, p, "tcp", "10.55.0.1:8080"); got == "" {
			t.Errorf("no answer through the host port to %s", from)
		}
	}
	if got := ask(t, nil, "tcp", "127.0.0.1:8080"); got != "10.55.0.1" {
		t.Errorf("127.0.0.1's host port: seen as %q", got)
	}
	// A new pod may get the address at once, though the old one's namespace still lives.
	h.detach(a)
	os.WriteFile(h.dir+"/leases/ptp/last_reserved_ip.0", []byte("10.55.0.1"), 0o600)
	os.WriteFile(h.dir+"/leases/ptp/last_reserved_ip.1", []byte("fd55::1"), 0o600)
	c := newPod(t)
	if rc := h.attach(c); !slices.Equal(rc.IPs, ra.IPs) {
		t.Fatal(rc)
	}
	serve(t, c, "tcp", ":81")
	if got := ask(t, b, "tcp", ra.IPs[0]+":81"); got != rb.IPs[0] {
		t.Errorf("pod with a used address: seen as %q", got)
	}
	if got := ask(t, nil, "tcp", "["+ra.IPs[1]+"]:81"); got != "fd55::1" {
		t.Errorf("pod with a used address: seen as %q", got)
	}
}

// The same on a bridge: the old pod is silent.
func TestAddressIsUsedAgain(t *testing.T) {
	h := newHost(t, dualStack)
	a, b := newPod(t), newPod(t)
	ra, rb := h.attach(a), h.attach(b)
	serve(t, a, "tcp", ":80")
	for _, ip := range ra.IPs {
		ask(t, b, "tcp", net.JoinHostPort(ip, "80"))
	}
	h.detach(a)
	os.WriteFile(filepath.Join(h.cfg.StateDir, leasesDir, h.cfg.DefaultNetwork.BridgeName, "last_reserved_ip.0"), []byte("10.209.0.1"), 0o600)
	os.WriteFile(filepath.Join(h.cfg.StateDir, leasesDir, h.cfg.DefaultNetwork.BridgeName, "last_reserved_ip.1"), []byte(strings.TrimSuffix(ra.IPs[1], "2")+"1"), 0o600)
	c := newPod(t)
	if rc := h.attach(c); !slices.Equal(rc.IPs, ra.IPs) {
		t.Fatal(rc)
	}
	serve(t, c, "tcp", ":81")
	for i := range ra.IPs {
		if got := ask(t, b, "tcp", net.JoinHostPort(ra.IPs[i], "81")); got != rb.IPs[i] {
			t.Errorf("pod with a used address: seen as %q", got)
		}
	}
}
