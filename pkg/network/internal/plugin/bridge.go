package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/network/internal/netns"
	"github.com/cri-server/cri-server/pkg/network/internal/nft"
)

type bridge struct{ r *Runner }

// The places that a test can stop at.
const (
	FaultLeased     = "Attach/leased"
	FaultPlugged    = "Attach/plugged"
	FaultConfigured = "Attach/configured"
	FaultMapped     = "Attach/mapped"
	FaultSilenced   = "Detach/silenced"
)

// attachment is one ADD of the bridge in the making.
type attachment struct {
	*Runner
	loopback bool // set lo up, too
	conf     *bridgeConf
	call     *Call
	ns       *os.File
	br       *netlink.Bridge
	veth     netlink.Link // the host's end
	peer     net.HardwareAddr
	owner    string
	res      *current.Result
	gws      []*net.IPNet
}

func (b bridge) add(ctx context.Context, c *Call) (types.Result, error) {
	conf, err := parseBridge(c.Config, c.Args)
	if err != nil {
		return nil, err
	}
	if err := conf.validate(); err != nil {
		return nil, err
	}
	ns, err := netns.Open(c.Netns)
	if err != nil {
		return nil, err
	}
	if ns == nil {
		return nil, errs.New(errs.NotFound, "attach pod to bridge %s: network namespace %s does not exist", conf.Bridge, c.Netns)
	}
	defer ns.Close()
	a := &attachment{Runner: b.r, loopback: ctx.Value(loopbackKey{}) != nil, conf: conf, call: c, ns: ns, owner: Owner(c.ContainerID, c.IfName), res: &current.Result{CNIVersion: current.ImplementedSpecVersion}}
	if err := a.lockedBridge(a.ensureBridge); err != nil {
		return nil, err
	}
	if conf.IPAM.Type != "" {
		if a.res, err = b.r.ipamAdd(ctx, conf, c); err != nil {
			return nil, err
		}
	}
	err = fault.At(FaultLeased)
	if err == nil {
		err = a.make()
	}
	if err != nil {
		return nil, errors.Join(err, a.undo(context.WithoutCancel(ctx)))
	}
	if dnsSet(conf.DNS) {
		a.res.DNS = conf.DNS
	}
	return a.res, nil
}

// ipamAdd asks address management for addresses: in process or by running its plugin.
func (r *Runner) ipamAdd(ctx context.Context, conf *bridgeConf, c *Call) (*current.Result, error) {
	var got types.Result
	if conf.IPAM.Type == "host-local" {
		res, err := hostLocal{r}.add(ctx, c)
		if err != nil {
			return nil, err
		}
		// As if it had been printed: an old version of the protocol cannot say everything.
		if got, err = res.GetAsVersion(conf.version()); err != nil {
			return nil, errors.Join(err, r.ipamDel(ctx, conf, c))
		}
	} else {
		out, err := r.delegate(ctx, conf.IPAM.Type, c)
		if err != nil {
			return nil, fmt.Errorf("run IPAM plugin %q: %w", conf.IPAM.Type, err)
		}
		if got, err = create.CreateFromBytes(out); err != nil {
			return nil, errors.Join(fmt.Errorf("read the result of IPAM plugin %q: %w", conf.IPAM.Type, err), r.ipamDel(ctx, conf, c))
		}
	}
	ipam, err := current.NewResultFromResult(got)
	if err == nil {
		err = checkAddresses(ipam.IPs)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("IPAM plugin %q: %w", conf.IPAM.Type, err), r.ipamDel(ctx, conf, c))
	}
	return &current.Result{CNIVersion: current.ImplementedSpecVersion, IPs: ipam.IPs, Routes: ipam.Routes, DNS: ipam.DNS}, nil
}

func (r *Runner) ipamDel(ctx context.Context, conf *bridgeConf, c *Call) error {
	del := *c
	del.Command = "DEL"
	switch conf.IPAM.Type {
	case "":
		return nil
	case "host-local":
		return hostLocal{r}.del(ctx, &del)
	}
	_, err := r.delegate(ctx, conf.IPAM.Type, &del)
	return err
}

func (a *attachment) make() error {
	a.gws = a.conf.addressing(a.res)
	if len(a.gws) > 0 {
		if err := a.lockedBridge(a.gateways); err != nil {
			return err
		}
	}
	if err := a.makePair(); err != nil {
		return err
	}
	if err := a.plug(); err != nil {
		return err
	}
	if err := fault.At(FaultPlugged); err != nil {
		return err
	}
	if err := a.visits.Do(a.ns, a.configure); err != nil {
		return err
	}
	if err := fault.At(FaultConfigured); err != nil {
		return err
	}
	var rules []nft.Element
	if a.conf.MacSpoofChk {
		rules = append(rules, nft.OnlyMAC(a.veth.Attrs().Name, a.peer)...)
	}
	masq, err := a.masquerading()
	if err != nil {
		return err
	}
	if err := a.rules.Add(a.owner, append(rules, masq...)...); err != nil {
		return err
	}
	if a.conf.IPAM.Type == "" {
		if err := a.waitUp(); err != nil {
			return err
		}
	}
	br, err := a.host.LinkByName(a.conf.Bridge) // the first port may have changed its MAC address
	if err != nil {
		return fmt.Errorf("look up bridge %s: %w", a.conf.Bridge, err)
	}
	va := a.veth.Attrs()
	a.res.Interfaces = []*current.Interface{
		{Name: a.conf.Bridge, Mac: br.Attrs().HardwareAddr.String()},
		{Name: va.Name, Mac: va.HardwareAddr.String()},
		{Name: a.call.IfName, Mac: a.peer.String(), Sandbox: a.call.Netns},
	}
	return nil
}

// masquerading returns the packet rules that ipMasq asks for.
func (a *attachment) masquerading() ([]nft.Element, error) {
	var rules []nft.Element
	for _, ipc := range a.res.IPs {
		if !a.conf.IPMasq {
			break
		}
		p, err := prefixOf(&ipc.Address)
		if err != nil {
			return nil, err
		}
		rules = append(rules, nft.Masq(p))
	}
	return rules, nil
}

// undo removes what make made: the link for good, since the namespace may be used again.
func (a *attachment) undo(ctx context.Context) error {
	var link error
	if a.veth != nil {
		if link = a.host.LinkDel(a.veth); notFound(link) {
			link = nil
		}
	}
	return errors.Join(link, a.rules.Remove(a.owner, nft.Masquerade, nft.Spoof), a.ipamDel(ctx, a.conf, a.call))
}

// makePair makes a veth pair with one end in the pod and the other on the host. Both are down: an end that is up while
// the other is not has no carrier, and every look at it makes the kernel stop its queues, which waits for a grace
// period. For want of a number it would make a queue for every processor and wait again to switch all but one off.
func (a *attachment) makePair() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = VethName(a.suffix, a.call.ContainerID, a.call.IfName), a.conf.MTU
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: a.call.IfName, PeerNamespace: netlink.NsFd(int(a.ns.Fd())), PeerHardwareAddr: a.conf.mac}
	err := a.host.LinkAdd(v)
	if errors.Is(err, unix.EEXIST) && a.staleVeth(v.Name) {
		err = a.host.LinkAdd(v)
	}
	if errors.Is(err, unix.EEXIST) {
		return errs.New(errs.Exists, "make veth pair: %s in the pod or %s on the host exists already", a.call.IfName, v.Name)
	}
	if err != nil {
		return fmt.Errorf("make veth pair (%s, %s): %w", v.Name, a.call.IfName, err)
	}
	a.veth = v
	// As on any interface whose routes are the host's own business, no router advertisement is believed.
	_ = writeSysctl("net/ipv6/conf/"+v.Name+"/accept_ra", "0")
	return nil
}

// plug puts the host's end of the pair on the bridge.
func (a *attachment) plug() error {
	v := &netlink.Veth{LinkAttrs: *a.veth.Attrs()}
	if err := a.host.LinkSetMasterByIndex(v, a.br.Index); err != nil {
		return fmt.Errorf("put %s on bridge %s: %w", v.Name, a.conf.Bridge, err)
	}
	if a.conf.HairpinMode {
		if err := a.host.LinkSetHairpin(v, true); err != nil {
			return fmt.Errorf("set hairpin mode of %s: %w", v.Name, err)
		}
	}
	if a.conf.PortIsolation {
		if err := a.host.LinkSetIsolated(v, true); err != nil {
			return fmt.Errorf("isolate %s: %w", v.Name, err)
		}
	}
	return nil
}

// staleVeth removes the veth pair of an earlier attempt for the same pod and interface, which the name
// proves, once that was taken off its bridge.
func (a *attachment) staleVeth(name string) bool {
	old, err := a.host.LinkByName(name)
	if err != nil || old.Type() != "veth" {
		return false
	}
	live, err := a.LivePorts(a.conf.Bridge)
	if err != nil || slices.Contains(live, name) {
		return false
	}
	return a.host.LinkDel(old) == nil
}

// waitUp waits until the bridge forwards what the pod's port sends, and reads the port's attributes again.
// The host's socket works on any thread.
func (a *attachment) waitUp() error {
	name := a.veth.Attrs().Name
	l, err := linkUp(a.host, a.veth, !a.conf.DisableContainerInterface)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	a.veth = l
	if !a.conf.DisableContainerInterface && l.Attrs().OperState != netlink.OperUp {
		return errs.New(errs.Unavailable, "bridge port %s in error state: %s", name, l.Attrs().OperState)
	}
	return nil
}

func (b bridge) del(ctx context.Context, c *Call) error {
	conf, err := parseBridge(c.Config, c.Args)
	if err != nil {
		return err
	}
	// First silence the pod, so that nobody answers for an address that is given back next.
	if err := b.unplug(c); err != nil {
		return err
	}
	if err := fault.At(FaultSilenced); err != nil {
		return err
	}
	if err := b.r.ipamDel(ctx, conf, c); err != nil {
		return err
	}
	return b.r.rules.Remove(Owner(c.ContainerID, c.IfName), nft.Masquerade, nft.Spoof)
}

// unplug takes the pod off the bridge. A namespace that lives by its processes is about to die and takes
// its link along: there the bridge only stops to forward for it, which is quick. In one that has a name of its own it is
// deleted, which waits for the kernel's grace periods (10 to 25 ms).
func (b bridge) unplug(c *Call) error {
	name := VethName(b.r.suffix, c.ContainerID, c.IfName)
	if c.Netns == "" || b.r.dying(c.Netns) {
		return silencePort(b.r.host, name)
	}
	if err := deleteLink(b.r.host, name); err != nil {
		return err
	}
	// A pair that another implementation of the plugin made has another name on this side.
	err := b.r.visit(c.Netns, func(h *netlink.Handle) error {
		return deleteLink(h, c.IfName)
	})
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

// deleteLink deletes a link by name, if it is there.
func deleteLink(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !notFound(err) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// dying says whether the namespace lives no longer than the pod's processes.
func (r *Runner) dying(path string) bool {
	return strings.HasPrefix(path, "/proc/") || r.binds != "" && strings.HasPrefix(path, r.binds)
}

func prefixOf(n *net.IPNet) (netip.Prefix, error) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	p := netip.PrefixFrom(a.Unmap(), ones)
	if !ok || !p.IsValid() {
		return p, errs.New(errs.Invalid, "address %s is malformed", n)
	}
	return p, nil
}

// writeSysctl writes one value below /proc/sys as the calling thread sees it.
func writeSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644)
}
