//go:build root

package network

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/network/internal/netns"
)

// serve answers every connection to the port in the pod with the caller's address.
func serve(t testing.TB, p *holder, network, addr string) {
	t.Helper()
	ns, err := os.Open(p.Pod.Netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if strings.HasPrefix(network, "udp") {
		var c net.PacketConn
		if err := netns.Do(ns, func() error { c, err = net.ListenPacket(network, addr); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				c.WriteTo([]byte(from.String()+"\n"), from)
			}
		}()
		return
	}
	var l net.Listener
	if err := netns.Do(ns, func() error { l, err = net.Listen(network, addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, c.RemoteAddr())
			c.Close()
		}
	}()
}

// ask connects from the host, or from a pod, and returns the address that the other side saw.
func ask(t testing.TB, from *holder, network, addr string) string {
	t.Helper()
	var c net.Conn
	dial := func() (err error) { c, err = (&net.Dialer{Timeout: dialTimeout}).Dial(network, addr); return err }
	var err error
	if from == nil {
		err = dial()
	} else {
		ns, oerr := os.Open(from.Pod.Netns)
		if oerr != nil {
			t.Fatal(oerr)
		}
		defer ns.Close()
		err = netns.Do(ns, dial)
	}
	if err != nil {
		t.Errorf("dial %s %s: %v", network, addr, err)
		return ""
	}
	defer c.Close()
	if strings.HasPrefix(network, "udp") {
		fmt.Fprintln(c, "hello")
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Errorf("read from %s %s: %v", network, addr, err)
	}
	seen, _, _ := net.SplitHostPort(strings.TrimSpace(line))
	return seen
}

// With br_netfilter the packets between ports of the bridge pass the packet rules, without it they do not.
func TestDefaultNetwork(t *testing.T) {
	const callRules = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	before, err := os.ReadFile(callRules)
	if err != nil {
		t.Run("without br_netfilter", testDefaultNetwork)
		return
	}
	t.Cleanup(func() { os.WriteFile(callRules, before, 0o644) })
	for _, v := range []string{"0", "1"} {
		if err := os.WriteFile(callRules, []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Run("bridge-nf-call-iptables "+v, testDefaultNetwork)
	}
}

func testDefaultNetwork(t *testing.T) {
	h := newHost(t, defaultNetwork)
	a := newPod(t, PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, PortMapping{HostPort: 5353, ContainerPort: 53, Protocol: "udp"})
	b := newPod(t)
	ra, rb := h.attach(a), h.attach(b)
	t.Log(ra, rb, sh(t, "nft", "list", "ruleset"), a.run(t, "ip", "addr"), a.run(t, "ip", "route"))
	serve(t, a, "tcp", ":80")
	serve(t, a, "udp", ra.IPs[0]+":53")
	gw := strings.TrimSuffix(ra.IPs[0], ".2") + ".1"
	if got := ask(t, b, "tcp", ra.IPs[0]+":80"); got != rb.IPs[0] {
		t.Errorf("pod to pod: seen as %q, want %q", got, rb.IPs[0])
	}
	if got := ask(t, nil, "tcp", ra.IPs[0]+":80"); got != gw {
		t.Errorf("host to pod: seen as %q, want %q", got, gw)
	}
	if got := ask(t, nil, "tcp", "127.0.0.1:8080"); got != gw {
		t.Errorf("127.0.0.1's host port: seen as %q, want %q", got, gw)
	}
	if got := ask(t, nil, "udp", "127.0.0.1:5353"); got != gw {
		t.Errorf("127.0.0.1's udp host port: seen as %q, want %q", got, gw)
	}
	if got := ask(t, nil, "tcp", gw+":8080"); got != gw {
		t.Errorf("host address's host port: seen as %q, want %q", got, gw)
	}
	if got := ask(t, b, "tcp", gw+":8080"); got != gw { // a would answer b directly, past the host
		t.Errorf("host port from another pod: seen as %q, want %q", got, gw)
	}
	if got := ask(t, a, "tcp", gw+":8080"); got != gw {
		t.Errorf("hairpin: seen as %q, want %q", got, gw)
	}
	if err := h.CheckPod(context.Background(), a.Pod); err != nil {
		t.Error(err)
	}
}
