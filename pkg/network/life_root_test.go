//go:build root

package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/network/internal/netns"
)

var ctx = context.Background()

func (h *host) leftovers(live ...Pod) []string {
	h.t.Helper()
	left, err := h.Leftovers(ctx, live)
	if err != nil {
		h.t.Error(err)
	}
	return left
}

// reopen is the server's restart.
func (h *host) reopen() {
	h.t.Helper()
	cfg := h.cfg
	if err := h.Manager.Close(); err != nil {
		h.t.Error(err)
	}
	m, err := Open(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.Manager = m
}

func TestDualStack(t *testing.T) {
	h := newHost(t, dualStack)
	a := newPod(t, PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, PortMapping{HostPort: 8081, ContainerPort: 80, Protocol: "tcp", HostIP: "::1"})
	b := newPod(t)
	ra, rb := h.attach(a), h.attach(b)
	if len(ra.IPs) != 2 || !netip.MustParseAddr(ra.IPs[0]).Is4() || !netip.MustParseAddr(ra.IPs[1]).Is6() {
		t.Fatal(ra)
	}
	serve(t, a, "tcp", ":80")
	gw6 := strings.TrimSuffix(ra.IPs[1], "2") + "1"
	if got := ask(t, b, "tcp", "["+ra.IPs[1]+"]:80"); got != rb.IPs[1] {
		t.Errorf("pod to pod: seen as %q, want %q", got, rb.IPs[1])
	}
	if got := ask(t, nil, "tcp", "["+ra.IPs[1]+"]:80"); got != gw6 {
		t.Errorf("host to pod: seen as %q, want %q", got, gw6)
	}
	if got := ask(t, nil, "tcp", "["+gw6+"]:8080"); got != gw6 {
		t.Errorf("host port: seen as %q, want %q", got, gw6)
	}
	if got := ask(t, a, "tcp", "["+gw6+"]:8080"); got != gw6 {
		t.Errorf("hairpin: seen as %q, want %q", got, gw6)
	}
	if got := ask(t, nil, "tcp", "127.0.0.1:8080"); got == "" {
		t.Error("no answer over IPv4")
	}
	if err := h.CheckPod(ctx, a.Pod); err != nil {
		t.Error(err)
	}
}

// A third namespace is the world outside: it knows no route to the pods.
func TestOutsideSeesTheHost(t *testing.T) {
	h := newHost(t, dualStack)
	world, pod := newNamedPod(t), newPod(t, PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	sh(t, "ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1", "netns", world.Pod.Name)
	t.Cleanup(func() { exec.Command("ip", "link", "del", "out0").Run() })
	for _, c := range [][]string{{"ip", "addr", "add", "192.0.2.1/24", "dev", "out0"}, {"ip", "addr", "add", "2001:db8::1/64", "dev", "out0", "nodad"}, {"ip", "link", "set", "out0", "up"}} {
		sh(t, c...)
	}
	for _, c := range [][]string{{"ip", "addr", "add", "192.0.2.2/24", "dev", "out1"}, {"ip", "addr", "add", "2001:db8::2/64", "dev", "out1", "nodad"}, {"ip", "link", "set", "out1", "up"}} {
		world.run(t, c...)
	}
	serve(t, world, "tcp", ":80")
	h.attach(pod)
	serve(t, pod, "tcp", ":80")
	if got := ask(t, pod, "tcp", "192.0.2.2:80"); got != "192.0.2.1" {
		t.Errorf("IPv4: seen as %q", got)
	}
	if got := ask(t, pod, "tcp", "[2001:db8::2]:80"); got != "2001:db8::1" {
		t.Errorf("IPv6: seen as %q", got)
	}
	if got := ask(t, world, "tcp", "192.0.2.1:8080"); got != "192.0.2.2" {
		t.Errorf("host port from outside: seen as %q", got)
	}
	if got := ask(t, world, "tcp", "[2001:db8::1]:8080"); got != "2001:db8::2" {
		t.Errorf("host port from outside: seen as %q", got)
	}
}

// With route_localnet a pod could reach what listens on the host's 127.0.0.1 (CVE-2020-8558).
func TestPodDoesNotReachLoopback(t *testing.T) {
	h := newHost(t, defaultNetwork)
	pod := newPod(t, PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	r := h.attach(pod)
	gw := strings.TrimSuffix(r.IPs[0], ".2") + ".1"
	if v, _ := os.ReadFile("/proc/sys/net/ipv4/conf/" + h.cfg.DefaultNetwork.BridgeName + "/route_localnet"); strings.TrimSpace(string(v)) != "1" {
		t.Fatalf("route_localnet is %q", v)
	}
	pod.run(t, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via "+gw)
	before := drops(t, h)
	pod.try("sh", "-c", "echo x | timeout 1 busybox nc -u -w1 127.0.0.1 9999; timeout 1 bash -c 'echo x > /dev/udp/127.0.0.1/9999'")
	if after := drops(t, h); after == before {
		t.Error("the pod's packets to 127.0.0.1 were not dropped")
	}
}

// drops replaces the guard's rule by one that counts, and reads the count.
func drops(t *testing.T, h *host) string {
	t.Helper()
	name := "cri_" + h.cfg.Suffix
	out := sh(t, "nft", "list", "chain", "inet", name, "guard")
	if !strings.Contains(out, "counter") {
		sh(t, "nft", "insert", "rule", "inet", name, "guard", "ip daddr 127.0.0.0/8 iifname @localnet counter drop")
		out = sh(t, "nft", "list", "chain", "inet", name, "guard")
	}
	_, count, _ := strings.Cut(out, "counter")
	count, _, _ = strings.Cut(count, "drop")
	return count
}

func TestDetachWithoutNamespace(t *testing.T) {
	h := newHost(t, defaultNetwork)
	for _, how := range []string{"path is gone", "no path", "after a restart"} {
		p := newPod(t, onePort...)
		h.attach(p)
		if left := h.leftovers(p.Pod); len(left) > 0 {
			t.Error(left)
		}
		if left := h.leftovers(); len(left) < 5 {
			t.Errorf("%s: a live pod's things: %v", how, left)
		}
		p.stop()
		pod := p.Pod
		switch how {
		case "no path":
			pod.Netns = ""
		case "after a restart":
			h.reopen()
		}
		for range 2 {
			if err := h.Detach(ctx, pod); err != nil {
				t.Errorf("%s: %v", how, err)
			}
		}
		if left := h.leftovers(); len(left) > 0 {
			t.Errorf("%s: %v", how, left)
		}
	}
}

func TestGC(t *testing.T) {
	h := newHost(t, defaultNetwork)
	a, b, c := newPod(t, onePort...), newPod(t, PortMapping{HostPort: 81, ContainerPort: 80, Protocol: "tcp"}), newPod(t)
	h.attach(a)
	h.attach(b)
	h.attach(c)
	b.stop()
	os.WriteFile(h.attachmentFile(c.Pod.ID), []byte("{torn"), 0o600)
	os.WriteFile(filepath.Join(h.cfg.StateDir, leasesDir, h.cfg.DefaultNetwork.BridgeName, "10.209.0.200"), []byte("nobody\r\neth0"), 0o600)
	h.reopen()
	if err := h.GC(ctx, []Pod{a.Pod}); err != nil {
		t.Error(err)
	}
	if left := h.leftovers(a.Pod); len(left) > 0 {
		t.Error(left)
	}
	if err := h.CheckPod(ctx, a.Pod); err != nil {
		t.Errorf("the live pod: %v", err)
	}
	if err := h.CheckPod(ctx, b.Pod); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
}

func TestHostPortConflict(t *testing.T) {
	h := newHost(t, defaultNetwork)
	a, b := newPod(t, onePort...), newPod(t, onePort...)
	h.attach(a)
	if _, err := h.Attach(ctx, b.Pod); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "8080") {
		t.Errorf("a taken host port: %v", err)
	}
	if left := h.leftovers(a.Pod); len(left) > 0 {
		t.Error(left)
	}
	if _, err := h.Attach(ctx, a.Pod); !errs.Is(err, errs.Exists) {
		t.Errorf("attached twice: %v", err)
	}
	if err := h.CheckPod(ctx, a.Pod); err != nil {
		t.Error(err)
	}
	h.detach(a)
	b2 := newPod(t, onePort...)
	h.attach(b2)
}

// A firewall's reload flushes the whole ruleset: the next Status puts ours back.
func TestFlushedRuleset(t *testing.T) {
	h := newHost(t, defaultNetwork)
	a, b := newPod(t, onePort...), newPod(t, PortMapping{HostPort: 81, ContainerPort: 80, Protocol: "tcp"})
	h.attach(a)
	serve(t, a, "tcp", ":80")
	sh(t, "nft", "flush", "ruleset")
	if err := h.CheckPod(ctx, a.Pod); !errs.Is(err, errs.NotFound) {
		t.Errorf("CHECK without rules: %v", err)
	}
	if s := h.Status(ctx); !s.Ready || s.Message != "" {
		t.Error(s)
	}
	if err := h.CheckPod(ctx, a.Pod); err != nil {
		t.Error(err)
	}
	ask(t, nil, "tcp", "127.0.0.1:8080")
	sh(t, "nft", "flush", "ruleset") // and so does the next pod
	h.attach(b)
	ask(t, nil, "tcp", "127.0.0.1:8080")
	sh(t, "nft", "flush", "ruleset") // and a pod that goes needs none
	h.detach(a)
	if err := h.CheckPod(ctx, b.Pod); err != nil {
		t.Error(err)
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	h := newHost(t, defaultNetwork)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for i := range 24 {
		p := newPod(t, PortMapping{HostPort: int32(9000 + i), ContainerPort: 80, Protocol: "tcp"})
		wg.Go(func() {
			for range 3 {
				r, err := h.Attach(ctx, p.Pod)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[r.IPs[0]] = true
				mu.Unlock()
				if err := h.CheckPod(ctx, p.Pod); err != nil {
					t.Error(err)
				}
				if err := h.Detach(ctx, p.Pod); err != nil {
					t.Error(err)
				}
				p.run(t, "ip", "link", "del", "eth0") // as if it were a new namespace
			}
		})
	}
	wg.Wait()
	if len(seen) != 72 {
		t.Errorf("%d addresses were given to 72 pods one after the other", len(seen))
	}
}

// Servers that start at the same moment take different subnets, and a restart keeps what was taken.
func TestServersSideBySide(t *testing.T) {
	sh(t, "ip", "route", "add", "blackhole", "10.209.1.0/24")
	t.Cleanup(func() { sh(t, "ip", "route", "del", "blackhole", "10.209.1.0/24") })
	hosts := make([]*host, 4)
	for i := range hosts {
		hosts[i] = newHost(t, func(c *Config) { c.Suffix = fmt.Sprintf("side%d", i) })
	}
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(func() {
			if err := h.EnableDefault(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var subnets []string
	for _, h := range hosts {
		before := subnetsOf(h.defNet)[0].String()
		subnets = append(subnets, before)
		h.reopen()
		if after := subnetsOf(h.defNet)[0].String(); after != before {
			t.Errorf("%s became %s", before, after)
		}
		h.attach(newPod(t))
	}
	slices.Sort(subnets)
	if want := []string{"10.209.0.0/24", "10.209.2.0/24", "10.209.3.0/24", "10.209.4.0/24"}; !slices.Equal(subnets, want) {
		t.Errorf("%v, want %v", subnets, want)
	}
	if err := hosts[0].RemoveDefault(ctx); !errs.Is(err, errs.Conflict) {
		t.Errorf("removed with a pod: %v", err)
	}
}

func TestDefaultNetworkFollowsTheUplinksMTU(t *testing.T) {
	for _, c := range [][]string{{"ip", "link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1"}, {"ip", "link", "set", "up0", "up"},
		{"ip", "addr", "add", "192.0.2.1/24", "dev", "up0"}, {"ip", "route", "add", "default", "via", "192.0.2.2"}} {
		sh(t, c...)
	}
	t.Cleanup(func() { sh(t, "ip", "link", "del", "up0") })
	h := newHost(t, defaultNetwork)
	p := newPod(t)
	h.attach(p)
	if out := p.run(t, "ip", "link", "show", "eth0"); !strings.Contains(out, "mtu 1400") {
		t.Error(out)
	}
}

// A list with a program that is not there is refused before anything is made: DEL could not undo it.
func TestMissingPlugin(t *testing.T) {
	h := newHost(t, nil)
	h.conf("1.conflist", strings.NewReplacer("BRIDGE", "hostile0", "DIR", h.dir).Replace(hostileList))
	if _, err := h.Attach(ctx, newPod(t).Pod); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), `"fake"`) {
		t.Error(err)
	}
	if left := h.leftovers(); len(left) > 0 {
		t.Error(left)
	}
}

// After a reboot somebody else may have the subnet.
func TestSubnetTakenAfterReboot(t *testing.T) {
	h := newHost(t, defaultNetwork)
	sh(t, "ip", "link", "del", h.cfg.DefaultNetwork.BridgeName)
	sh(t, "ip", "route", "add", "blackhole", "10.209.0.0/25")
	t.Cleanup(func() { sh(t, "ip", "route", "del", "blackhole", "10.209.0.0/25") })
	h.reopen()
	if got := subnetsOf(h.defNet)[0].String(); got != "10.209.1.0/24" {
		t.Error(got)
	}
}

func TestForeignForwardDrop(t *testing.T) {
	h := newHost(t, defaultNetwork)
	if s := h.Status(ctx); !s.Ready || s.Message != "" {
		t.Error(s)
	}
	sh(t, "nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
	t.Cleanup(func() { sh(t, "nft", "delete", "table", "ip", "filter") })
	h.forwardAt = time.Time{}
	if s := h.Status(ctx); !s.Ready || !strings.Contains(s.Message, "FORWARD") {
		t.Error(s)
	}
}

// A datagram's connection that was tracked before the host port was there must not go on past the pod.
func TestUDPConntrackIsFlushed(t *testing.T) {
	h := newHost(t, defaultNetwork)
	warm := newPod(t, PortMapping{HostPort: 1, ContainerPort: 1, Protocol: "tcp"}) // connections are tracked once there are rules
	gw := strings.TrimSuffix(h.attach(warm).IPs[0], ".2") + ".1"
	client, server := newPod(t), newPod(t, PortMapping{HostPort: 5353, ContainerPort: 53, Protocol: "udp"})
	h.attach(client)
	send := func() (string, error) {
		ns, err := os.Open(client.Pod.Netns)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		var c net.Conn
		if err := netns.Do(ns, func() (err error) {
			c, err = (&net.Dialer{LocalAddr: &net.UDPAddr{Port: 4444}}).Dial("udp", gw+":5353")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintln(c, "hello")
		c.SetReadDeadline(time.Now().Add(dialTimeout))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	if got, err := send(); err == nil {
		t.Fatalf("somebody answers already: %q", got)
	}
	r := h.attach(server)
	serve(t, server, "udp", r.IPs[0]+":53")
	if got, err := send(); err != nil || !strings.HasPrefix(got, gw+":") {
		t.Errorf("no answer through the host port: %q, %v", got, err)
	}
}

const hostileList = `{"cniVersion":"1.1.0","name":"hostile","plugins":[{"type":"bridge","bridge":"BRIDGE","isGateway":true,"ipMasq":true,"ipMasqBackend":"nftables",
	"ipam":{"type":"host-local","dataDir":"DIR/leases","subnet":"10.66.0.0/24"}},{"type":"fake"}]}`

func (h *host) fake(add, del string) {
	h.t.Helper()
	text := "#!/bin/sh\necho \"$CNI_COMMAND $CNI_NETNS\" >> " + h.dir + "/calls\ncase $CNI_COMMAND in ADD) " + add + ";; DEL) " + del + ";; esac\n"
	if err := os.WriteFile(h.dir+"/bin/fake.new", []byte(text), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Rename(h.dir+"/bin/fake.new", h.dir+"/bin/fake"); err != nil {
		h.t.Fatal(err)
	}
}

// A plugin of the list fails in every way: the pod's attachment fails, nothing is left, and others go on.
func TestHostilePlugin(t *testing.T) {
	h := newHost(t, func(c *Config) { c.PluginTimeout = 5 * time.Second })
	h.conf("1.conflist", strings.NewReplacer("BRIDGE", "hostile0", "DIR", h.dir).Replace(hostileList))
	t.Cleanup(func() { exec.Command("ip", "link", "del", "hostile0").Run() })
	passOn := `sed -n 's/.*"prevResult":\(.*\),"type.*/\1/p'`
	h.fake(passOn, "cat >/dev/null")
	good := newPod(t)
	h.attach(good)
	for name, add := range map[string]string{
		"hangs": "sleep 1000", "fails": `echo '{"code":99,"msg":"no way"}'; exit 1`, "crashes": "kill -SEGV $$", "floods": "exec cat /dev/zero", "prints no JSON": "echo hello",
		"prints nothing": "true", "prints null": "echo null", "prints no address": `echo '{"cniVersion":"1.1.0"}'`, "names a wrong interface": `echo '{"cniVersion":"1.1.0","ips":[{"interface":9,"address":"10.1.1.1/24"}]}'`,
	} {
		h.fake(add, "cat >/dev/null")
		p := newPod(t)
		if _, err := h.Attach(ctx, p.Pod); err == nil {
			t.Errorf("%s: attached", name)
		}
		if left := h.leftovers(good.Pod); len(left) > 0 {
			t.Errorf("%s: %v", name, left)
		}
		if _, err := os.Lstat(h.bindPath(p.Pod.ID)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.CheckPod(ctx, good.Pod); err != nil {
		t.Error(err)
	}
}

// DEL is asked again until it works: with the namespace's own name while that lives, and without one after.
func TestDelIsRetried(t *testing.T) {
	h := newHost(t, func(c *Config) { c.PluginTimeout = time.Minute })
	h.conf("1.conflist", strings.NewReplacer("BRIDGE", "hostile0", "DIR", h.dir).Replace(hostileList))
	t.Cleanup(func() { exec.Command("ip", "link", "del", "hostile0").Run() })
	h.fake(`sed -n 's/.*"prevResult":\(.*\),"type.*/\1/p'`, "exit 1")
	p := newPod(t)
	h.attach(p)
	os.Remove(filepath.Join(h.dir, "net.d/1.conflist")) // the record is all that is left of it
	for range 3 {
		if err := h.Detach(ctx, p.Pod); err == nil {
			t.Error("no error")
		}
	}
	p.stop()
	h.reopen()
	os.Remove(h.dir + "/calls")
	gone := Pod{ID: p.Pod.ID}
	if err := h.Detach(ctx, gone); err == nil {
		t.Error("no error")
	}
	calls, _ := os.ReadFile(h.dir + "/calls")
	if string(calls) != "DEL "+h.bindPath(p.Pod.ID)+"\n" { // the name keeps the namespace for the plugin
		t.Errorf("%q", calls)
	}
	h.fake("true", "cat >/dev/null")
	if err := h.Detach(ctx, gone); err != nil {
		t.Error(err)
	}
	if left := h.leftovers(); len(left) > 0 {
		t.Error(left)
	}
}

// The network namespace of a pod with a user namespace belongs to that.
func TestUserNamespacedPod(t *testing.T) {
	h := newHost(t, dualStack)
	p, other := newPodIn(t, []string{"unshare", "--user", "--map-root-user", "--net"}, onePort...), newPod(t)
	r := h.attach(p)
	h.attach(other)
	serve(t, p, "tcp", ":80")
	if got := ask(t, other, "tcp", r.IPs[0]+":80"); got == "" {
		t.Error("no answer")
	}
	if got := ask(t, nil, "tcp", "127.0.0.1:8080"); got == "" {
		t.Error("no answer through the host port")
	}
	if err := h.CheckPod(ctx, p.Pod); err != nil {
		t.Error(err)
	}
}
