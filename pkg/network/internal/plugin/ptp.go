package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/network/internal/netns"
	"github.com/cri-server/cri-server/pkg/network/internal/nft"
)

// ptp gives every pod a veth pair of its own to the host, which routes: no bridge.
type ptp struct{ r *Runner }

func (p ptp) add(ctx context.Context, c *Call) (types.Result, error) {
	conf, err := parseBridge(c.Config, "")
	if err != nil {
		return nil, err
	}
	conf.mac = nil // the reference plugin takes none
	if conf.IPAM.Type == "" {
		return nil, errs.New(errs.Invalid, "ptp configuration (network %s): it has no IPAM", conf.Name)
	}
	if conf.ptpNeedsReference() {
		return nil, errs.New(errs.Unsupported, "ptp configuration (network %s): the iptables backend is not supported in process. Install the reference plugin \"ptp\" in a plugin directory", conf.Name)
	}
	ns, err := netns.Open(c.Netns)
	if err != nil {
		return nil, err
	}
	if ns == nil {
		return nil, errs.New(errs.NotFound, "attach pod to the host: network namespace %s does not exist", c.Netns)
	}
	defer ns.Close()
	a := &attachment{Runner: p.r, loopback: ctx.Value(loopbackKey{}) != nil, conf: conf, call: c, ns: ns, owner: Owner(c.ContainerID, c.IfName)}
	if a.res, err = p.r.ipamAdd(ctx, conf, c); err != nil {
		return nil, err
	}
	if err = fault.At(FaultLeased); err == nil {
		err = a.makePTP()
	}
	if err != nil {
		return nil, errors.Join(err, a.undo(context.WithoutCancel(ctx)))
	}
	if dnsSet(conf.DNS) {
		a.res.DNS = conf.DNS
	}
	return a.res, nil
}

func (c *bridgeConf) ptpNeedsReference() bool {
	return c.IPMasq && c.IPMasqBackend != nil && *c.IPMasqBackend == "iptables"
}

func (a *attachment) makePTP() error {
	for _, ipc := range a.res.IPs {
		ipc.Interface = current.Int(1)
		if ipc.Gateway == nil {
			return errs.New(errs.Invalid, "attach pod to the host: address management gave no gateway for %s", ipc.Address.String())
		}
		if err := forward(forwarding(ipc.Address.IP)); err != nil {
			return err
		}
	}
	if err := a.makePair(); err != nil {
		return err
	}
	if err := fault.At(FaultPlugged); err != nil {
		return err
	}
	if err := a.visits.Do(a.ns, a.configurePTP); err != nil {
		return err
	}
	if err := a.routeToPod(); err != nil {
		return err
	}
	if err := fault.At(FaultConfigured); err != nil {
		return err
	}
	rules, err := a.masquerading()
	if err == nil {
		err = a.rules.Add(a.owner, rules...)
	}
	if err != nil {
		return err
	}
	host, err := a.host.LinkByIndex(a.veth.Attrs().Index)
	if err != nil {
		return fmt.Errorf("look up %s: %w", a.veth.Attrs().Name, err)
	}
	a.res.Interfaces = []*current.Interface{
		{Name: host.Attrs().Name, Mac: host.Attrs().HardwareAddr.String()},
		{Name: a.call.IfName, Mac: a.peer.String(), Sandbox: a.call.Netns},
	}
	return nil
}

// configurePTP runs in the pod's namespace. The pod has its address with the network's mask, but everything
// but the gateway itself goes through the gateway.
func (a *attachment) configurePTP() error {
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
	link, err := h.LinkByName(a.call.IfName)
	if err != nil {
		return fmt.Errorf("look up %s in the pod: %w", a.call.IfName, err)
	}
	a.peer = link.Attrs().HardwareAddr
	if err := a.addressAndUp(h, link); err != nil {
		return err
	}
	for _, ipc := range a.res.IPs {
		network := &net.IPNet{IP: ipc.Address.IP.Mask(ipc.Address.Mask), Mask: ipc.Address.Mask}
		index := link.Attrs().Index
		if err := h.RouteDel(&netlink.Route{LinkIndex: index, Dst: network, Scope: netlink.SCOPE_NOWHERE}); err != nil {
			return fmt.Errorf("remove route %s from the pod: %w", network, err)
		}
		for _, r := range []netlink.Route{
			{LinkIndex: index, Dst: single(ipc.Gateway), Scope: netlink.SCOPE_LINK, Src: ipc.Address.IP},
			{LinkIndex: index, Dst: network, Scope: netlink.SCOPE_UNIVERSE, Gw: ipc.Gateway, Src: ipc.Address.IP},
		} {
			if err := h.RouteAdd(&r); err != nil {
				return fmt.Errorf("add route %s to the pod: %w", r.Dst, err)
			}
		}
	}
	return nil
}

// routeToPod gives the host's end the gateway's address, and the host the way to the pod.
func (a *attachment) routeToPod() error {
	for _, ipc := range a.res.IPs {
		addr := &netlink.Addr{IPNet: single(ipc.Gateway)}
		if ipc.Gateway.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD // there is only the pod on the link, which waits for its gateway
		}
		if err := a.host.AddrAdd(a.veth, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", ipc.Gateway, a.veth.Attrs().Name, err)
		}
		route := &netlink.Route{LinkIndex: a.veth.Attrs().Index, Scope: netlink.SCOPE_HOST, Dst: single(ipc.Address.IP)}
		if err := a.host.RouteReplace(route); err != nil { // there may be one to the address's last owner
			return fmt.Errorf("add route to %s: %w", ipc.Address.IP, err)
		}
	}
	return nil
}

func single(addr net.IP) *net.IPNet {
	if v4 := addr.To4(); v4 != nil {
		return &net.IPNet{IP: v4, Mask: net.CIDRMask(32, 32)}
	}
	return &net.IPNet{IP: addr, Mask: net.CIDRMask(128, 128)}
}

func (p ptp) del(ctx context.Context, c *Call) error {
	conf, err := parseBridge(c.Config, "")
	if err != nil {
		return err
	}
	if err := p.unroute(c); err != nil {
		return err
	}
	if err := bridge(p).unplug(c); err != nil {
		return err
	}
	if err := fault.At(FaultSilenced); err != nil {
		return err
	}
	if err := p.r.ipamDel(ctx, conf, c); err != nil {
		return err
	}
	return p.r.rules.Remove(Owner(c.ContainerID, c.IfName), nft.Masquerade)
}

// unroute removes the host's routes to the pod: their scope makes them outlive a link that is set down.
func (p ptp) unroute(c *Call) error {
	link, err := p.r.host.LinkByName(VethName(p.r.suffix, c.ContainerID, c.IfName))
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up the pod's link: %w", err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := Again(func() ([]netlink.Route, error) { return p.r.host.RouteList(link, family) })
		if err != nil {
			return fmt.Errorf("list routes of %s: %w", link.Attrs().Name, err)
		}
		for _, r := range routes {
			if err := p.r.host.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove route %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

func (p ptp) check(ctx context.Context, c *Call) error {
	conf, err := parseBridge(c.Config, "")
	if err != nil {
		return err
	}
	if err := bridge(p).ipamCheck(ctx, conf, c); err != nil {
		return err
	}
	prev, err := previous(&conf.NetConf)
	if err != nil {
		return err
	}
	if prev == nil {
		return errs.New(errs.Invalid, "check ptp: required prevResult missing")
	}
	for _, i := range prev.Interfaces {
		if i.Name != c.IfName || i.Sandbox == "" { // not c.Netns: see the bridge's
			continue
		}
		return p.r.visit(c.Netns, func(h *netlink.Handle) error {
			if _, err := checkLink(h, i, "veth"); err != nil {
				return fmt.Errorf("check ptp: %w", err)
			}
			if err := ip.ValidateExpectedInterfaceIPs(c.IfName, prev.IPs); err != nil {
				return fmt.Errorf("check ptp: %w", err)
			}
			return ip.ValidateExpectedRoute(prev.Routes)
		})
	}
	return errs.New(errs.NotFound, "check ptp: prevResult names no %s in %s", c.IfName, c.Netns)
}
