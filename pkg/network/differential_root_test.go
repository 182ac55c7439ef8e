//go:build root

package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// One network configuration, run by the plugins in process and by the reference plugins.
type differential struct {
	name  string
	list  string // the plugins of the list, SUBNET4 and SUBNET6 as ipam ranges, DIR as a private directory
	ver   string // "" is 1.1.0
	ports []PortMapping
	setup [][]string // commands on the host before
	fails bool       // ADD fails in both
	stuck bool       // and the reference's DEL too
}

const (
	range4   = `[{"subnet":"10.77.1.0/24"}]`
	range6   = `[{"subnet":"fd77:1::/64"}]`
	ipam4    = `"ipam":{"type":"host-local","dataDir":"DIR/leases","ranges":[` + range4 + `],"routes":[{"dst":"10.99.0.0/16"},{"dst":"10.98.0.0/16","gw":"10.77.1.9","priority":7}]}`
	ipamDual = `"ipam":{"type":"host-local","dataDir":"DIR/leases","ranges":[` + range4 + `,` + range6 + `]}`
	// as clusters that use ptp have it
	ipamDefault = `"ipam":{"type":"host-local","dataDir":"DIR/leases","ranges":[` + range4 + `],"routes":[{"dst":"0.0.0.0/0"}]}`
	br          = `{"type":"bridge","bridge":"diff0",`
	chain       = `,{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}`
)

var allPorts = []PortMapping{
	{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 5353, ContainerPort: 53, Protocol: "udp"}, {HostPort: 9000, ContainerPort: 90, Protocol: "sctp"},
	{HostPort: 8081, ContainerPort: 80, Protocol: "TCP", HostIP: "127.0.0.1"}, {HostPort: 8082, ContainerPort: 80, Protocol: "tcp", HostIP: "::1"},
	{HostPort: 8083, ContainerPort: 80, Protocol: "tcp", HostIP: "0.0.0.0"}, {HostPort: 8084, ContainerPort: 80, Protocol: "tcp", HostIP: "::"}, {HostPort: 0, ContainerPort: 81, Protocol: "tcp"},
}

var differentials = []differential{
	{name: "gateway", list: br + `"isGateway":true,` + ipam4 + `}`},
	{name: "no gateway", list: br + ipam4 + `}`},
	{name: "default gateway, masquerade, hairpin, mtu", list: br + `"isDefaultGateway":true,"ipMasq":true,"ipMasqBackend":"nftables","hairpinMode":true,"mtu":1400,` + ipam4 + `}`},
	{name: "dual stack", list: br + `"isDefaultGateway":true,"ipMasq":true,"ipMasqBackend":"nftables",` + ipamDual + `}`},
	{name: "duplicate address detection", list: br + `"isDefaultGateway":true,"enabledad":true,` + ipamDual + `}`},
	{name: "promiscuous", list: br + `"isGateway":true,"promiscMode":true,` + ipam4 + `}`},
	{name: "layer 2", list: br + `"mtu":1300}`},
	{name: "disabled interface", list: br + `"disableContainerInterface":true}`},
	{name: "MAC spoof check", list: br + `"isGateway":true,"macspoofchk":true,` + ipam4 + `}`},
	{name: "isolated port", list: br + `"isGateway":true,"portIsolation":true,` + ipam4 + `}`},
	{name: "MAC address and dns", list: br + `"isGateway":true,"args":{"cni":{"mac":"02:11:22:33:44:55"}},"dns":{"nameservers":["1.2.3.4"],"search":["x.y"]},` + ipam4 + `}`},
	{name: "taken bridge address", list: br + `"isGateway":true,` + ipam4 + `}`, fails: true,
		setup: [][]string{{"ip", "link", "add", "diff0", "type", "bridge"}, {"ip", "addr", "add", "10.1.1.1/24", "dev", "diff0"}}},
	{name: "forced bridge address", list: br + `"isGateway":true,"forceAddress":true,` + ipam4 + `}`,
		setup: [][]string{{"ip", "link", "add", "diff0", "type", "bridge"}, {"ip", "addr", "add", "10.1.1.1/24", "dev", "diff0"}}},
	{name: "not a bridge", list: br + `"isGateway":true,` + ipam4 + `}`, fails: true, setup: [][]string{{"ip", "link", "add", "diff0", "type", "veth", "peer", "name", "diff1"}}},
	{name: "hairpin and promiscuous", list: br + `"hairpinMode":true,"promiscMode":true}`, fails: true},
	{name: "IPAM and disabled interface", list: br + `"disableContainerInterface":true,` + ipam4 + `}`, fails: true},
	{name: "ports", list: br + `"isDefaultGateway":true,"hairpinMode":true,` + ipamDual + `}` + chain + `}`, ports: allPorts},
	{name: "ports without snat", list: br + `"isDefaultGateway":true,` + ipam4 + `}` + chain + `,"snat":false}`, ports: allPorts},
	{name: "portmap without ports", list: br + `"isDefaultGateway":true,` + ipam4 + `}` + chain + `}`},
	{name: "portmap alone", list: `{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}`, fails: true},
	{name: "portmap bad port", list: br + ipam4 + `},{"type":"portmap","backend":"nftables","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":0,"protocol":"tcp"}]}}`, fails: true, stuck: true},
	{name: "portmap bad backend", list: br + ipam4 + `},{"type":"portmap","backend":"pf","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]}}`, fails: true, stuck: true},
	{name: "loopback in the list", list: br + `"isGateway":true,` + ipam4 + `},{"type":"loopback"}`},
	{name: "resolv.conf", list: br + `"isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR/leases","subnet":"10.77.1.0/24","resolvConf":"DIR/resolv.conf"}}`},
	{name: "ranges", list: br + `"isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR/leases","ranges":[[{"subnet":"10.77.1.0/24","rangeStart":"10.77.1.20","rangeEnd":"10.77.1.30","gateway":"10.77.1.254"},{"subnet":"10.77.2.0/24"}],[{"subnet":"fd77:9::/64","rangeStart":"fd77:9::40"}]]}}`},
	{name: "wanted address", list: br + `"isGateway":true,"args":{"cni":{"ips":["10.77.1.77"]}},` + ipam4 + `}`},
	{name: "wanted address out of range", list: br + `"isGateway":true,"args":{"cni":{"ips":["10.55.1.77"]}},` + ipam4 + `}`, fails: true},
	{name: "wanted gateway", list: br + `"isGateway":true,"args":{"cni":{"ips":["10.77.1.1"]}},` + ipam4 + `}`, fails: true},
	{name: "overlapping ranges", list: br + `"ipam":{"type":"host-local","dataDir":"DIR/leases","ranges":[` + range4 + `,` + range4 + `]}}`, fails: true, stuck: true},
	{name: "exhausted", list: br + `"ipam":{"type":"host-local","dataDir":"DIR/leases","ranges":[[{"subnet":"10.77.1.0/24","rangeStart":"10.77.1.5","rangeEnd":"10.77.1.5"}]]}}`, fails: true,
		setup: [][]string{{"sh", "-c", "mkdir -p DIR/leases/diff && echo other > DIR/leases/diff/10.77.1.5"}}},
	{name: "round robin", list: br + `"isGateway":true,` + ipam4 + `}`, setup: [][]string{{"sh", "-c", "mkdir -p DIR/leases/diff && printf 10.77.1.99 > DIR/leases/diff/last_reserved_ip.0 && echo other > DIR/leases/diff/10.77.1.100"}}},
	{name: "ptp", list: `{"type":"ptp",` + ipam4 + `}`},
	{name: "ptp, masquerade, mtu, dns", list: `{"type":"ptp","ipMasq":true,"ipMasqBackend":"nftables","mtu":1400,"dns":{"nameservers":["1.2.3.4"]},` + ipamDefault + `}` + chain + `}`, ports: allPorts},
	{name: "ptp dual stack", list: `{"type":"ptp","ipMasq":true,"ipMasqBackend":"nftables",` + ipamDual + `}`},
	{name: "ptp without IPAM", list: `{"type":"ptp"}`, fails: true, stuck: true},
	{name: "CNI 0.2.0", ver: "0.2.0", list: br + `"isGateway":true,` + ipam4 + `}`},
	{name: "CNI 0.3.1", ver: "0.3.1", list: br + `"isDefaultGateway":true,` + ipamDual + `}` + chain + `}`, ports: allPorts},
	{name: "CNI 0.4.0", ver: "0.4.0", list: br + `"isDefaultGateway":true,` + ipamDual + `}` + chain + `}`, ports: allPorts},
	{name: "CNI 1.0.0", ver: "1.0.0", list: br + `"isDefaultGateway":true,` + ipamDual + `}` + chain + `}`, ports: allPorts},
}

func TestDifferential(t *testing.T) {
	plugins := referencePlugins(t)
	for _, d := range differentials {
		t.Run(d.name, func(t *testing.T) {
			var got [2]map[string]any
			for i, side := range []string{"in process", "reference"} {
				t.Run(side, func(t *testing.T) { got[i] = observe(t, d, plugins, side == "reference") })
			}
			if diff := cmp.Diff(got[1], got[0]); diff != "" {
				t.Errorf("reference (-) and in process (+) differ:\n%s", diff)
			}
		})
	}
}

// observe attaches one pod and returns everything that can be seen of it, without what is random.
func observe(t *testing.T, d differential, plugins string, reference bool) map[string]any {
	pod := newNamedPod(t, d.ports...)
	h := newHost(t, func(c *Config) {
		if reference {
			c.BinDirs, c.ExecTypes = []string{plugins}, []string{"loopback", "bridge", "ptp", "host-local", "portmap"}
		}
	})
	cleanHost(t)
	t.Cleanup(func() { cleanHost(t) })
	ver := d.ver
	if ver == "" {
		ver = "1.1.0"
	}
	os.WriteFile(h.dir+"/resolv.conf", []byte("# x\nnameserver 9.9.9.9\nsearch a.b c.d\noptions ndots:3\ndomain e.f\n"), 0o644)
	h.conf("10-diff.conflist", strings.ReplaceAll(`{"cniVersion":"`+ver+`","name":"diff","plugins":[`+d.list+`]}`, "DIR", h.dir))
	for _, c := range d.setup {
		for i := range c {
			c[i] = strings.ReplaceAll(c[i], "DIR", h.dir)
		}
		sh(t, c...)
		for i := range c {
			c[i] = strings.ReplaceAll(c[i], h.dir, "DIR")
		}
	}
	seen := map[string]any{}
	res, err := h.Attach(context.Background(), pod.Pod)
	if d.fails {
		if err == nil {
			t.Error("ADD did not fail")
		}
		if seen["leases after failure"] = tree(t, h.dir+"/leases"); d.stuck && reference {
			seen["leases after failure"] = map[string]string{}
			if strings.Contains(d.list, "portmap") {
				seen["leases after failure"] = map[string]string{"/diff/last_reserved_ip.0": "10.77.1.2 -rw-------"}
			}
			os.Remove(h.dir + "/leases/diff/10.77.1.2")
			if err := errors.Join(h.unbind(pod.Pod.ID), h.forget(pod.Pod.ID)); err != nil {
				t.Error(err)
			}
		}
		return seen
	}
	bare := err != nil && strings.Contains(err.Error(), "gave the pod no address") && !strings.Contains(d.list, "ipam")
	if bare { // a layer 2 network is no network for a pod: look at what the plugins themselves leave
		rt, _ := runtimeConf(&pod.Pod, pod.Pod.Netns)
		list, _ := h.network()
		if _, err = h.cni.AddNetworkList(context.Background(), list, rt); err == nil {
			t.Cleanup(func() { h.cni.DelNetworkList(context.Background(), list, rt) })
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	seen["addresses"] = res.IPs
	observeCache(t, h, seen)
	seen["leases"] = tree(t, h.dir+"/leases")
	observePod(t, pod, seen)
	observeHost(t, h, reference, seen)
	if bare {
		return seen
	}
	if err := h.CheckPod(context.Background(), pod.Pod); err != nil && d.ver != "0.2.0" {
		t.Errorf("CHECK: %v", err)
	}
	h.detach(pod)
	h.detach(pod)
	seen["leases after DEL"] = tree(t, h.dir+"/leases")
	seen["rules after DEL"] = rules(t, h, reference)
	if out, err := pod.try("ip", "link", "show", "eth0"); err == nil {
		t.Errorf("eth0 is there after DEL: %s", out)
	}
	return seen
}

func cleanHost(t *testing.T) {
	t.Helper()
	sh(t, "nft", "flush", "ruleset")
	if _, err := net.InterfaceByName("diff0"); err == nil {
		sh(t, "ip", "link", "del", "diff0")
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links { // of an attachment that failed: the kernel removes it some time after its namespace
		if vethName.MatchString(l.Name) {
			_ = exec.Command("ip", "link", "del", l.Name).Run() // it may have gone just now
		}
	}
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		os.WriteFile("/proc/sys/net/"+f, []byte("0"), 0o644)
	}
}

var (
	macAddr  = regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`)
	vethName = regexp.MustCompile(`\bveth[0-9a-f]+\b`)
	nsPath   = regexp.MustCompile(`/[^" ]*/(cri-)?[0-9a-f]{64}|/run/netns/[a-z0-9]+`)
)

// plain removes from a JSON text what differs from run to run.
func plain(h *host, data string) any {
	data = nsPath.ReplaceAllString(vethName.ReplaceAllString(data, "VETH"), "NETNS")
	data = macAddr.ReplaceAllStringFunc(data, func(m string) string {
		if m == "00:00:00:00:00:00" || m == "02:11:22:33:44:55" {
			return m
		}
		return "MAC"
	})
	var v any
	if err := json.Unmarshal([]byte(strings.ReplaceAll(data, h.dir, "DIR")), &v); err != nil {
		h.t.Fatal(err, data)
	}
	return v
}

func observeCache(t *testing.T, h *host, seen map[string]any) {
	files, _ := filepath.Glob(h.dir + "/cache/results/*")
	if len(files) != 1 {
		t.Fatalf("cached results: %v", files)
	}
	data, _ := os.ReadFile(files[0])
	cached := plain(h, string(data)).(map[string]any)
	for _, random := range []string{"containerId", "config", "cniArgs"} {
		delete(cached, random)
	}
	seen["cached result"] = cached
}

func tree(t *testing.T, dir string) map[string]string {
	all := map[string]string{}
	filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() && fi.Name() != "lock" {
			data, _ := os.ReadFile(path)
			all[strings.TrimPrefix(path, dir)] = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(string(data), "POD") + " " + fi.Mode().String()
		}
		return nil
	})
	return all
}

// fields keeps some fields of a list of JSON objects.
func fields(v any, keep ...string) any {
	switch v := v.(type) {
	case []any:
		out := []any{}
		for _, e := range v {
			out = append(out, fields(e, keep...))
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if slices.Contains(keep, k) {
				out[k] = fields(e, keep...)
			}
		}
		return out
	}
	return v
}

func jsonOf(t *testing.T, text string) any {
	t.Helper()
	var v any
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err, text)
	}
	return v
}

var linkLocal = regexp.MustCompile(`fe80:[0-9a-f:]+`)

func observePod(t *testing.T, p *holder, seen map[string]any) {
	// The link-local address comes by itself a moment after ADD; the reference does not wait for the link.
	addrs := ""
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		addrs = linkLocal.ReplaceAllString(p.run(t, "ip", "-j", "addr"), "fe80::X")
		if !strings.Contains(addrs, `"tentative"`) && (strings.Contains(addrs, "fe80::X") || !strings.Contains(p.run(t, "ip", "link", "show", "eth0"), "UP")) {
			break
		}
	}
	seen["pod links"] = fields(jsonOf(t, addrs), "ifname", "flags", "mtu", "operstate", "addr_info", "family", "local", "prefixlen", "scope", "broadcast", "nodad", "tentative")
	for _, v := range []string{"-4", "-6"} {
		seen["pod routes "+v] = fields(jsonOf(t, p.run(t, "ip", "-j", v, "route")), "dst", "gateway", "dev", "metric", "prefsrc", "scope", "flags", "protocol")
	}
	var names []string
	for _, i := range []string{"lo", "eth0"} {
		for _, s := range []string{"ipv6/conf/%s/accept_dad", "ipv6/conf/%s/enhanced_dad", "ipv6/conf/%s/disable_ipv6", "ipv6/conf/%s/keep_addr_on_down", "ipv6/conf/%s/accept_ra", "ipv4/conf/%s/arp_notify"} {
			names = append(names, fmt.Sprintf("/proc/sys/net/"+s, i))
		}
	}
	seen["pod sysctls"] = strings.Fields(p.run(t, append([]string{"tail", "-n", "1"}, names...)...)) // with their names
}

func observeHost(t *testing.T, h *host, reference bool, seen map[string]any) {
	detail := []string{"ifname", "flags", "mtu", "promiscuity", "linkinfo", "info_data", "info_slave_data", "info_kind", "vlan_filtering",
		"state", "hairpin", "isolated", "guard", "learning", "flood", "addr_info", "family", "local", "prefixlen", "scope"}
	links := linkLocal.ReplaceAllString(sh(t, "ip", "-j", "-d", "addr"), "fe80::X")
	links = strings.ReplaceAll(links, `"NO-CARRIER",`, "") // the kernel tells it up to a second later
	seen["host links"] = fields(plain(h, links), detail...)
	seen["host routes"] = fields(plain(h, sh(t, "ip", "-j", "-4", "route")), "dst", "gateway", "dev", "scope", "prefsrc")
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/diff0/accept_ra", "ipv4/conf/diff0/route_localnet"} {
		data, _ := os.ReadFile("/proc/sys/net/" + s)
		seen["host sysctl "+s] = strings.TrimSpace(string(data))
	}
	veths, _ := filepath.Glob("/proc/sys/net/ipv6/conf/veth*/accept_ra")
	for _, v := range veths {
		data, _ := os.ReadFile(v)
		seen["host sysctl VETH accept_ra"] = strings.TrimSpace(string(data))
	}
	seen["rules"] = rules(t, h, reference)
}

// What the reference's rules say, in the words of ours.
var referenceRules = []struct {
	rule *regexp.Regexp
	text string
}{
	{regexp.MustCompile(`^(tcp|udp|sctp) dport (\d+) dnat to (\S+) comment`), "$1 *:$2 to $3"},
	{regexp.MustCompile(`^ip daddr (\S+) (tcp|udp|sctp) dport (\d+) dnat to (\S+) comment`), "$2 $1:$3 to $4"},
	{regexp.MustCompile(`^ip6 daddr (\S+) (tcp|udp|sctp) dport (\d+) dnat to (\S+) comment`), "$2 [$1]:$3 to $4"},
	{regexp.MustCompile(`^ip6? saddr (\S+) ip6? daddr (\S+) masquerade comment`), "masquerade $1 to $2"},
	{regexp.MustCompile(`^ip6? saddr (\S+) ip6? daddr != (\S+) masquerade comment`), "masquerade $1 outside of $2"},
	{regexp.MustCompile(`^ether saddr (\S+) return comment`), "allow MAC on VETH"},
	{regexp.MustCompile(`^iifname "veth\S+" jump`), "guard VETH"},
}

func rules(t *testing.T, h *host, reference bool) []string {
	all := []string{}
	if !reference {
		owners, err := h.rules.Owners()
		if err != nil {
			t.Fatal(err)
		}
		for _, elems := range owners {
			for _, e := range elems {
				// Two things that the reference does not have: its pods are open to the host's loopback services,
				// and a host port of a pod does not work for others of the same bridge without br_netfilter.
				if !strings.HasPrefix(e.String(), "no 127.0.0.0/8") && !strings.Contains(e.String(), "host ports of") {
					all = append(all, macAddr.ReplaceAllString(vethName.ReplaceAllString(e.String(), "VETH"), "MAC"))
				}
			}
		}
	}
	for _, line := range strings.Split(sh(t, "nft", "list", "ruleset"), "\n") {
		for _, r := range referenceRules {
			if line = strings.TrimSpace(line); reference && r.rule.MatchString(line) {
				m := r.rule.FindStringSubmatchIndex(line)
				all = append(all, string(r.rule.ExpandString(nil, r.text, line, m)))
				break
			}
		}
	}
	sort.Strings(all)
	return all
}
