package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// lockedBridge runs a change to the bridge while no other one runs.
func (a *attachment) lockedBridge(change func() error) error {
	a.bridges.Lock()
	defer a.bridges.Unlock()
	return change()
}

// gateways gives the bridge its addresses and lets the host forward.
func (a *attachment) gateways() error {
	for _, gw := range a.gws {
		if err := a.ensureAddr(gw); err != nil {
			return err
		}
		if err := forward(forwarding(gw.IP)); err != nil {
			return err
		}
	}
	return nil
}

// forwarding is the file that switches forwarding for the address's family.
func forwarding(addr net.IP) string {
	if addr.To4() == nil {
		return "/proc/sys/net/ipv6/conf/all/forwarding"
	}
	return "/proc/sys/net/ipv4/ip_forward"
}

func forward(file string) error {
	if b, err := os.ReadFile(file); err == nil && string(bytes.TrimSpace(b)) == "1" {
		return nil
	}
	if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("let the host forward packets: %w", err)
	}
	return nil
}

func (a *attachment) ensureBridge() error {
	name := a.conf.Bridge
	l, err := a.host.LinkByName(name)
	if notFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, a.conf.MTU
		if err = a.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make bridge %s: %w", name, err)
		}
		l, err = a.host.LinkByName(name)
	}
	if err != nil {
		return fmt.Errorf("look up bridge %s: %w", name, err)
	}
	br, ok := l.(*netlink.Bridge)
	if !ok {
		return errs.New(errs.Conflict, "use bridge %s: an interface of that name is there already and is a %s", name, l.Type())
	}
	a.br = br
	if a.conf.PromiscMode && br.Promisc == 0 {
		if err := a.host.SetPromiscOn(br); err != nil {
			return fmt.Errorf("set promiscuous mode of %s: %w", name, err)
		}
	}
	_ = writeSysctl("net/ipv6/conf/"+name+"/accept_ra", "0") // absent without IPv6
	if br.Flags&net.FlagUp == 0 {
		if err := a.host.LinkSetUp(br); err != nil {
			return fmt.Errorf("set bridge %s up: %w", name, err)
		}
	}
	return nil
}

// ensureAddr gives the bridge a gateway address. Another address of the same family in IPv4, or of an
// overlapping network in IPv6, is an error unless forceAddress is set.
func (a *attachment) ensureAddr(gw *net.IPNet) error {
	family := netlink.FAMILY_V6
	if gw.IP.To4() != nil {
		family = netlink.FAMILY_V4
	}
	addrs, err := Again(func() ([]netlink.Addr, error) { return a.host.AddrList(a.br, family) })
	if err != nil {
		return fmt.Errorf("list addresses of bridge %s: %w", a.conf.Bridge, err)
	}
	for _, have := range addrs {
		if have.IPNet.String() == gw.String() {
			return nil
		}
		if family == netlink.FAMILY_V4 || have.Contains(gw.IP) || gw.Contains(have.IP) {
			if !a.conf.ForceAddress {
				return errs.New(errs.Conflict, "bridge %s already has an IP address different from %s (%s). Remove it, or set forceAddress", a.conf.Bridge, gw, have.IPNet)
			}
			if err := a.host.AddrDel(a.br, &netlink.Addr{IPNet: have.IPNet}); err != nil {
				return fmt.Errorf("remove address %s of bridge %s: %w", have.IPNet, a.conf.Bridge, err)
			}
		}
	}
	if err := a.host.AddrAdd(a.br, &netlink.Addr{IPNet: gw}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to bridge %s: %w", gw, a.conf.Bridge, err)
	}
	// A bridge takes the lowest MAC address of its ports until it was given one.
	if err := a.host.LinkSetHardwareAddr(a.br, a.br.HardwareAddr); err != nil {
		return fmt.Errorf("keep the MAC address of bridge %s: %w", a.conf.Bridge, err)
	}
	return nil
}

// configure runs in the pod's namespace: addresses, up, routes.
func (a *attachment) configure() error {
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	if a.loopback {
		if err := loopbackUp(h); err != nil {
			return err
		}
	}
	name := a.call.IfName
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up %s in the pod: %w", name, err)
	}
	a.peer = link.Attrs().HardwareAddr
	if a.conf.IPAM.Type == "" {
		if a.conf.DisableContainerInterface {
			return a.hostUp()
		}
		if err := a.bothUp(h, link); err != nil {
			return err
		}
		_, err := linkUp(h, link, true)
		return err
	}
	a.podSysctls(name)
	if err := a.addressAndUp(h, link); err != nil {
		return err
	}
	if err := a.waitUp(); err != nil {
		return err
	}
	// The kernel announced the addresses when the interface came up, but the bridge may not have forwarded
	// yet. Neighbours that knew the address's last owner must hear it. Setting the MAC address announces
	// (inetdev_event, ndisc_netdev_event), even the same one.
	if err := h.LinkSetHardwareAddr(link, a.peer); err != nil {
		return fmt.Errorf("announce the addresses of %s: %w", name, err)
	}
	return nil
}

// addressAndUp gives the pod's interface its addresses and routes and sets it up.
func (a *attachment) addressAndUp(h *netlink.Handle, link netlink.Link) error {
	name := link.Attrs().Name
	v6, err := a.addAddresses(h, link)
	if err != nil {
		return err
	}
	if err := a.bothUp(h, link); err != nil { // announces the addresses, by arp_notify
		return err
	}
	if _, err := linkUp(h, link, true); err != nil { // until then there is no IPv6
		return fmt.Errorf("look up %s in the pod: %w", name, err)
	}
	if v6 {
		if err := settle(h, link); err != nil {
			return err
		}
	}
	return a.addRoutes(h, link)
}

// bothUp sets the pair up: the pod's end, and then the host's, which gives both their carrier.
func (a *attachment) bothUp(h *netlink.Handle, link netlink.Link) error {
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
	}
	return a.hostUp()
}

// hostUp sets the host's end up. The host's socket works on any thread.
func (a *attachment) hostUp() error {
	if err := a.host.LinkSetUp(a.veth); err != nil {
		return fmt.Errorf("set %s up: %w", a.veth.Attrs().Name, err)
	}
	return nil
}

// podSysctls are the settings of the pod's interface. A kernel without one of them is left as it is.
func (a *attachment) podSysctls(name string) {
	dad := "0"
	if a.conf.EnableDad {
		dad = "1"
		_ = writeSysctl("net/ipv6/conf/"+name+"/enhanced_dad", "1")
	}
	_ = writeSysctl("net/ipv6/conf/"+name+"/accept_dad", dad)
	_ = writeSysctl("net/ipv4/conf/"+name+"/arp_notify", "1")
	_ = writeSysctl("net/ipv6/conf/"+name+"/ndisc_notify", "1")
}

func (a *attachment) addAddresses(h *netlink.Handle, link netlink.Link) (v6 bool, err error) {
	name := link.Attrs().Name
	for _, ipc := range a.res.IPs {
		if ipc.Address.IP.To4() == nil && !v6 {
			v6 = true
			if err := enableIPv6(name); err != nil {
				return v6, err
			}
		}
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: &ipc.Address}); err != nil {
			return v6, fmt.Errorf("add address %s to %s: %w", ipc.Address.String(), name, err)
		}
	}
	return v6, nil
}

// enableIPv6 switches IPv6 on for lo and the interface, and keeps its addresses over a down.
func enableIPv6(name string) error {
	for _, i := range []string{"lo", name} {
		file := "/proc/sys/net/ipv6/conf/" + i + "/disable_ipv6"
		b, err := os.ReadFile(file)
		if err != nil || string(bytes.TrimSpace(b)) == "0" {
			continue // without the file the address will fail by itself, with the better reason
		}
		if err := os.WriteFile(file, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("enable IPv6 on %s: %w", i, err)
		}
	}
	if err := writeSysctl("net/ipv6/conf/"+name+"/keep_addr_on_down", "1"); err != nil {
		return fmt.Errorf("keep IPv6 addresses of %s: %w", name, err)
	}
	return nil
}

func (a *attachment) addRoutes(h *netlink.Handle, link netlink.Link) error {
	gateway := map[bool]net.IP{}
	for _, ipc := range a.res.IPs {
		if is4 := ipc.Gateway.To4() != nil; ipc.Gateway != nil && gateway[is4] == nil {
			gateway[is4] = ipc.Gateway
		}
	}
	for _, r := range a.res.Routes {
		gw := r.GW
		if gw == nil {
			gw = gateway[r.Dst.IP.To4() != nil]
		}
		route := netlink.Route{Dst: &r.Dst, LinkIndex: link.Attrs().Index, Gw: gw, Priority: r.Priority}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = netlink.Scope(*r.Scope)
		}
		if err := h.RouteAddEcmp(&route); err != nil {
			return fmt.Errorf("add route %s via %s on %s: %w", r.Dst.String(), gw, link.Attrs().Name, err)
		}
	}
	return nil
}

const (
	settleTimeout = 5 * time.Second
	upTimeout     = 2500 * time.Millisecond
	firstPoll     = 50 * time.Microsecond // a link is up when a kernel worker has run, in a fraction of a millisecond
	longestPoll   = 10 * time.Millisecond
)

// poll sleeps between two looks at the kernel, longer every time.
type poll time.Duration

func (p *poll) wait() {
	if *p == 0 {
		*p = poll(firstPoll)
	}
	time.Sleep(time.Duration(*p))
	*p = min(*p*2, poll(longestPoll))
}

// settle waits until no IPv6 address of the link is tentative: duplicate address detection, where it is on,
// takes a second or two.
func settle(h *netlink.Handle, link netlink.Link) error {
	deadline := time.Now().Add(settleTimeout)
	for p := poll(0); ; p.wait() {
		addrs, err := Again(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_V6) })
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
		}
		tentative := false
		for _, addr := range addrs {
			if addr.Flags&unix.IFA_F_DADFAILED != 0 {
				return errs.New(errs.Conflict, "add address %s to %s: another node answers for it (duplicate address detection)", addr.IPNet, link.Attrs().Name)
			}
			tentative = tentative || addr.Flags&unix.IFA_F_TENTATIVE != 0
		}
		if !tentative {
			return nil
		}
		if time.Now().After(deadline) {
			l, err := h.LinkByIndex(link.Attrs().Index)
			if err == nil && l.Attrs().OperState != netlink.OperUp {
				return nil // without carrier detection cannot end; the link says so itself
			}
			return errs.New(errs.Timeout, "add addresses to %s: still tentative after %s", link.Attrs().Name, settleTimeout)
		}
	}
}

// linkUp returns the link as it is once it is operationally up, or after upTimeout. Without wait it returns
// the link as it is.
func linkUp(h *netlink.Handle, link netlink.Link, wait bool) (netlink.Link, error) {
	deadline := time.Now().Add(upTimeout)
	for p := poll(0); ; p.wait() {
		l, err := h.LinkByIndex(link.Attrs().Index)
		if err != nil || !wait || l.Attrs().OperState == netlink.OperUp || time.Now().After(deadline) {
			return l, err
		}
	}
}

// MakeBridge makes the bridge of a bridge plugin's configuration with the gateway address of every range,
// before any pod is attached to it.
func (r *Runner) MakeBridge(ctx context.Context, c *Call) error {
	conf, err := parseBridge(c.Config, "")
	if err == nil {
		err = conf.validate()
	}
	if err != nil {
		return err
	}
	ipam, _, err := allocator.LoadIPAMConfig(c.Config, "")
	if err != nil {
		return errs.New(errs.Invalid, "read host-local configuration: %w", err)
	}
	a := &attachment{Runner: r, conf: conf, call: c}
	for _, set := range ipam.Ranges {
		for _, rg := range set {
			a.gws = append(a.gws, &net.IPNet{IP: rg.Gateway, Mask: rg.Subnet.Mask})
		}
	}
	return a.lockedBridge(func() error {
		if err := a.ensureBridge(); err != nil {
			return err
		}
		// Nobody else has this subnet: without detection pods reach the gateway at once.
		_ = writeSysctl("net/ipv6/conf/"+conf.Bridge+"/accept_dad", "0")
		return a.gateways()
	})
}
