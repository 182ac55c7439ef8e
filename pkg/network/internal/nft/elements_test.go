package nft

import (
	"net"
	"net/netip"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

// An element that is read back from the kernel says what it said when it was made.
func TestDescribe(t *testing.T) {
	a := netip.MustParseAddr
	port := func(proto, host string, hp uint16, pod string, pp uint16) Element {
		t.Helper()
		var h netip.Addr
		if host != "" {
			h = a(host)
		}
		e, err := HostPort(proto, h, hp, a(pod), pp)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for _, c := range []struct {
		e    Element
		text string
	}{
		{port("TCP", "", 80, "10.0.0.2", 8080), "tcp *:80 to 10.0.0.2:8080"},
		{port("udp", "0.0.0.0", 53, "10.0.0.2", 53), "udp *:53 to 10.0.0.2:53"},
		{port("sctp", "127.0.0.1", 65535, "10.0.0.2", 1), "sctp 127.0.0.1:65535 to 10.0.0.2:1"},
		{port("tcp", "::", 80, "fd00::2", 8080), "tcp *:80 to [fd00::2]:8080"},
		{port("tcp", "::1", 80, "fd00::2", 8080), "tcp [::1]:80 to [fd00::2]:8080"},
		{Hairpin(a("127.0.0.1"), a("10.0.0.2")), "masquerade 127.0.0.1 to 10.0.0.2"},
		{Hairpin(a("fd00::2"), a("fd00::2")), "masquerade fd00::2 to fd00::2"},
		{Masq(netip.MustParsePrefix("10.0.0.2/24")), "masquerade 10.0.0.2 outside of 10.0.0.0/24"},
		{Masq(netip.MustParsePrefix("fd00::2/64")), "masquerade fd00::2 outside of fd00::/64"},
		{Mapped(netip.MustParsePrefix("10.0.0.2/24")), "masquerade host ports of 10.0.0.2 for 10.0.0.0/24"},
		{Mapped(netip.MustParsePrefix("fd00::2/64")), "masquerade host ports of fd00::2 for fd00::/64"},
		{Localnet("cni0"), "no 127.0.0.0/8 from cni0"},
	} {
		if c.e.String() != c.text {
			t.Errorf("%q, want %q", c.e, c.text)
		}
		if got := describe(c.e.set, c.e.key, c.e.val); got != c.text {
			t.Errorf("read back: %q, want %q", got, c.text)
		}
	}
	for _, e := range OnlyMAC("veth0123456789a", net.HardwareAddr{2, 0, 0, 0, 0, 1}) {
		if len(e.key) != 16 && len(e.key) != 24 {
			t.Errorf("%s: a key of %d bytes", e, len(e.key))
		}
	}
	if _, err := HostPort("icmp", netip.Addr{}, 1, a("10.0.0.2"), 1); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

// Whatever a foreign element looks like, describing it does not panic.
func FuzzDescribe(f *testing.F) {
	f.Add(ports4, "\x06\x00\x00\x00\x00\x50\x00\x00", "\x0a\x00\x00\x02\x1f\x90\x00\x00")
	f.Add("masq_0a000000_24", "\x0a\x00\x00\x02", "")
	f.Add("masq_0a000000_99", "", "")
	f.Fuzz(func(t *testing.T, set, key, val string) { describe(set, key, val) })
}
