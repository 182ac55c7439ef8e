package nft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Kind is a group of sets that are added and removed together.
type Kind uint8

// The kinds of elements.
const (
	HostPorts  Kind = iota // host ports, and the masquerading of hairpins and of localhost
	Masquerade             // addresses masqueraded outside of their subnet
	Spoof                  // interfaces held to one MAC address
)

const (
	ports4, ports4IP   = "hostports4", "hostports4_ip"
	ports6, ports6IP   = "hostports6", "hostports6_ip"
	hairpin4, hairpin6 = "hairpin4", "hairpin6"
	localnet           = "localnet"
	spoofIfs, spoofOK  = "guarded", "allowed"
)

func kindOf(set string) Kind {
	switch {
	case strings.HasPrefix(set, masqPrefix):
		return Masquerade
	case set == spoofIfs || set == spoofOK:
		return Spoof
	}
	return HostPorts
}

func kindIn(set string, kinds []Kind) bool {
	for _, k := range kinds {
		if kindOf(set) == k {
			return true
		}
	}
	return false
}

// exclusive says whether an element of the set is refused to a second owner instead of handed over.
func exclusive(set string) bool {
	return set == ports4 || set == ports4IP || set == ports6 || set == ports6IP
}

// HostPort sends a port of the host to a port of a pod. hostIP may be invalid or unspecified: then it is
// every address of the host. The families of hostIP and pod must be the same.
func HostPort(protocol string, hostIP netip.Addr, hostPort uint16, pod netip.Addr, podPort uint16) (Element, error) {
	proto, err := protocolNumber(protocol)
	if err != nil {
		return Element{}, err
	}
	every := !hostIP.IsValid() || hostIP.IsUnspecified()
	e := Element{val: string(pod.AsSlice()) + port(podPort), key: proto + port(hostPort)}
	host := "*"
	switch {
	case every && pod.Is4():
		e.set = ports4
	case every:
		e.set = ports6
	case pod.Is4():
		e.set = ports4IP
	default:
		e.set = ports6IP
	}
	if !every {
		e.key = string(hostIP.AsSlice()) + e.key
		host = hostIP.String()
	}
	e.text = fmt.Sprintf("%s %s to %s", strings.ToLower(protocol), net.JoinHostPort(host, strconv.Itoa(int(hostPort))), netip.AddrPortFrom(pod, podPort))
	return e, nil
}

// Hairpin masquerades what from sends to the pod through a host port: the pod itself, or 127.0.0.1.
func Hairpin(from, pod netip.Addr) Element {
	set := hairpin4
	if pod.Is6() {
		set = hairpin6
	}
	return Element{set: set, key: string(from.AsSlice()) + string(pod.AsSlice()), text: fmt.Sprintf("masquerade %s to %s", from, pod)}
}

// Mapped masquerades what others of the pod's network send to the pod through a host port. The pod would
// answer them directly, past the host, and they do not know it by its own address.
func Mapped(pod netip.Prefix) Element {
	return Element{set: subnetSet(mappedPrefix, pod.Masked()), key: string(pod.Addr().AsSlice()), text: fmt.Sprintf("masquerade host ports of %s for %s", pod.Addr(), pod.Masked())}
}

// Masq masquerades what the address of the prefix sends outside of the prefix's network.
func Masq(pod netip.Prefix) Element {
	return Element{set: subnetSet(masqPrefix, pod.Masked()), key: string(pod.Addr().AsSlice()), text: fmt.Sprintf("masquerade %s outside of %s", pod.Addr(), pod.Masked())}
}

// Localnet keeps what arrives on the interface away from 127.0.0.0/8: the price of route_localnet.
func Localnet(ifname string) Element {
	return Element{set: localnet, key: ifkey(ifname), text: "no 127.0.0.0/8 from " + ifname}
}

// OnlyMAC holds what the bridge port sends to one source MAC address.
func OnlyMAC(ifname string, mac net.HardwareAddr) []Element {
	return []Element{
		{set: spoofIfs, key: ifkey(ifname), text: "guard " + ifname},
		{set: spoofOK, key: ifkey(ifname) + string(mac) + "\x00\x00", text: fmt.Sprintf("allow %s on %s", mac, ifname)},
	}
}

func protocolNumber(p string) (string, error) {
	switch strings.ToLower(p) {
	case "tcp":
		return "\x06\x00\x00\x00", nil
	case "udp":
		return "\x11\x00\x00\x00", nil
	case "sctp":
		return "\x84\x00\x00\x00", nil
	}
	return "", errs.New(errs.Invalid, "map host port: protocol %q: want tcp, udp or sctp", p)
}

// port is a port number as one nftables register holds it.
func port(p uint16) string {
	return string(binary.BigEndian.AppendUint16(nil, p)) + "\x00\x00"
}

func ifkey(name string) string {
	return name + strings.Repeat("\x00", 16-len(name))
}

// The sets that there is one of for every subnet, with a rule each, and the chain of their rules.
const (
	masqPrefix, masqChain     = "masq_", "masquerade"
	mappedPrefix, mappedChain = "mapped_", "mapped"
)

func subnetSet(prefix string, p netip.Prefix) string {
	return fmt.Sprintf("%s%s_%d", prefix, hex.EncodeToString(p.Addr().AsSlice()), p.Bits())
}

func isSubnetSet(name string) bool {
	return strings.HasPrefix(name, masqPrefix) || strings.HasPrefix(name, mappedPrefix)
}

// parseSubnetSet is the inverse of subnetSet.
func parseSubnetSet(name string) (netip.Prefix, error) {
	rest := strings.TrimPrefix(strings.TrimPrefix(name, masqPrefix), mappedPrefix)
	h, bits, ok := strings.Cut(rest, "_")
	raw, err := hex.DecodeString(h)
	n, err2 := strconv.Atoi(bits)
	addr, ok2 := netip.AddrFromSlice(raw)
	p := netip.PrefixFrom(addr, n)
	if !ok || !ok2 || err != nil || err2 != nil || !p.IsValid() {
		return netip.Prefix{}, fmt.Errorf("nftables set %q: not a name of ours", name)
	}
	return p, nil
}

var (
	proto     = nftables.TypeInetProto
	service   = nftables.TypeInetService
	v4, v6    = nftables.TypeIPAddr, nftables.TypeIP6Addr
	ifname    = nftables.TypeIFName
	etherAddr = nftables.TypeEtherAddr
)

func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// fixedSets are the sets of the inet table that are there whatever pods there are. IDs are unique within a
// transaction, which is all the kernel asks.
func fixedSets(t *nftables.Table) []*nftables.Set {
	return []*nftables.Set{
		{Table: t, ID: 1, Name: ports4, IsMap: true, Concatenation: true, KeyType: concat(proto, service), DataType: concat(v4, service)},
		{Table: t, ID: 2, Name: ports4IP, IsMap: true, Concatenation: true, KeyType: concat(v4, proto, service), DataType: concat(v4, service)},
		{Table: t, ID: 3, Name: ports6, IsMap: true, Concatenation: true, KeyType: concat(proto, service), DataType: concat(v6, service)},
		{Table: t, ID: 4, Name: ports6IP, IsMap: true, Concatenation: true, KeyType: concat(v6, proto, service), DataType: concat(v6, service)},
		{Table: t, ID: 5, Name: hairpin4, Concatenation: true, KeyType: concat(v4, v4)},
		{Table: t, ID: 6, Name: hairpin6, Concatenation: true, KeyType: concat(v6, v6)},
		{Table: t, ID: 7, Name: localnet, KeyType: ifname, KeyByteOrder: binaryutil.NativeEndian},
	}
}

func bridgeSets(t *nftables.Table) []*nftables.Set {
	return []*nftables.Set{
		{Table: t, ID: 8, Name: spoofIfs, KeyType: ifname, KeyByteOrder: binaryutil.NativeEndian},
		{Table: t, ID: 9, Name: spoofOK, Concatenation: true, KeyType: concat(ifname, etherAddr)},
	}
}

func newSubnetSet(t *nftables.Table, name string, id uint32) (*nftables.Set, netip.Prefix, error) {
	p, err := parseSubnetSet(name)
	typ := v4
	if p.Addr().Is6() {
		typ = v6
	}
	return &nftables.Set{Table: t, ID: id, Name: name, KeyType: typ}, p, err
}

// describe makes an element read from the kernel readable again.
func describe(set, key, val string) string {
	addrLen := 4
	if set == ports6 || set == ports6IP || set == hairpin6 {
		addrLen = 16
	}
	addr := func(s string) netip.Addr { a, _ := netip.AddrFromSlice([]byte(s)); return a }
	switch {
	case exclusive(set) && len(val) >= addrLen+4 && len(key) >= 8:
		var host netip.Addr
		if len(key) > 8 {
			host = addr(key[:len(key)-8])
		}
		k := key[len(key)-8:]
		name := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[k[0]]
		e, _ := HostPort(name, host, binary.BigEndian.Uint16([]byte(k[4:6])), addr(val[:addrLen]), binary.BigEndian.Uint16([]byte(val[addrLen:addrLen+2])))
		return e.text
	case (set == hairpin4 || set == hairpin6) && len(key) == 2*addrLen:
		return Hairpin(addr(key[:addrLen]), addr(key[addrLen:])).text
	case isSubnetSet(set):
		p, err := parseSubnetSet(set)
		pod := netip.PrefixFrom(addr(key), p.Bits())
		switch {
		case err != nil || !pod.IsValid():
		case strings.HasPrefix(set, mappedPrefix):
			return Mapped(pod).text
		default:
			return Masq(pod).text
		}
	case set == localnet:
		return Localnet(strings.TrimRight(key, "\x00")).text
	}
	return fmt.Sprintf("%s %x", set, key)
}
