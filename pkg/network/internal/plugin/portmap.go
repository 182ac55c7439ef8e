package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/network/internal/nft"
)

type portmap struct{ r *Runner }

// portmapConf is the configuration of the reference portmap plugin.
type portmapConf struct {
	types.NetConf
	Backend              *string   `json:"backend"`
	SNAT                 *bool     `json:"snat"`
	ConditionsV4         *[]string `json:"conditionsV4"`
	ConditionsV6         *[]string `json:"conditionsV6"`
	MarkMasqBit          *int      `json:"markMasqBit"`
	ExternalSetMarkChain *string   `json:"externalSetMarkChain"`
	RuntimeConfig        struct {
		PortMaps []portMapping `json:"portMappings"`
	} `json:"runtimeConfig"`
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// needsReference says whether the configuration speaks to one packet filter by name: rule text in the
// conditions, chains of iptables, or that backend itself.
func (c *portmapConf) needsReference() bool {
	some := func(s *[]string) bool { return s != nil && len(*s) > 0 }
	return (c.Backend != nil && *c.Backend == "iptables") || some(c.ConditionsV4) || some(c.ConditionsV6) || c.ExternalSetMarkChain != nil
}

func parsePortmap(data []byte) (*portmapConf, error) {
	c := &portmapConf{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, errs.New(errs.Invalid, "read portmap configuration: %w", err)
	}
	return c, nil
}

func (c *portmapConf) validate() error {
	switch {
	case c.Backend != nil && *c.Backend != "nftables" && *c.Backend != "iptables":
		return errs.New(errs.Invalid, "portmap configuration: unrecognized backend %q", *c.Backend)
	case c.MarkMasqBit != nil && c.ExternalSetMarkChain != nil:
		return errs.New(errs.Invalid, "portmap configuration: cannot specify externalSetMarkChain and markMasqBit")
	case c.MarkMasqBit != nil && (*c.MarkMasqBit < 0 || *c.MarkMasqBit > 31):
		return errs.New(errs.Invalid, "portmap configuration: markMasqBit must be between 0 and 31")
	case c.needsReference():
		return errs.New(errs.Unsupported, "portmap configuration (network %s): conditions, externalSetMarkChain and the iptables backend are not supported in process. Install the reference plugin \"portmap\" in a plugin directory", c.Name)
	}
	for _, m := range c.RuntimeConfig.PortMaps {
		if m.ContainerPort <= 0 || m.ContainerPort > 65535 {
			return errs.New(errs.Invalid, "map host port: invalid container port number: %d", m.ContainerPort)
		}
		if m.HostPort <= 0 || m.HostPort > 65535 {
			return errs.New(errs.Invalid, "map host port: invalid host port number: %d", m.HostPort)
		}
	}
	return nil
}

// podAddrs returns the pod's first address of each family, on the pod's interface or on none in particular.
func podAddrs(res *current.Result, ifname string) (v4, v6 netip.Prefix) {
	for _, ipc := range res.IPs {
		if i := ipc.Interface; i != nil && *i >= 0 && *i < len(res.Interfaces) {
			if f := res.Interfaces[*i]; f.Name != ifname || f.Sandbox == "" {
				continue
			}
		}
		p, err := prefixOf(&ipc.Address)
		switch {
		case err != nil:
		case p.Addr().Is4() && !v4.IsValid():
			v4 = p
		case p.Addr().Is6() && !v6.IsValid():
			v6 = p
		}
	}
	return v4, v6
}

// elements are the packet rules of the mappings for one address of the pod.
func (c *portmapConf) elements(p netip.Prefix) ([]nft.Element, error) {
	if !p.IsValid() {
		return nil, nil
	}
	pod := p.Addr()
	var all []nft.Element
	for _, m := range c.RuntimeConfig.PortMaps {
		var host netip.Addr
		if m.HostIP != "" {
			h, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, errs.New(errs.Invalid, "map host port %d: host IP %q is not an address", m.HostPort, m.HostIP)
			}
			if host = h.Unmap(); host.Is4() != pod.Is4() {
				continue
			}
		}
		e, err := nft.HostPort(m.Protocol, host, uint16(m.HostPort), pod, uint16(m.ContainerPort))
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	if c.SNAT == nil || *c.SNAT {
		all = append(all, nft.Hairpin(pod, pod), nft.Mapped(p))
		if pod.Is4() {
			all = append(all, nft.Hairpin(netip.AddrFrom4([4]byte{127, 0, 0, 1}), pod))
		}
	}
	return all, nil
}

func (p portmap) add(_ context.Context, c *Call) (types.Result, error) {
	conf, err := parsePortmap(c.Config)
	if err == nil {
		err = conf.validate()
	}
	if err != nil {
		return nil, err
	}
	prev, err := previous(&conf.NetConf)
	if err != nil {
		return nil, err
	}
	if prev == nil {
		return nil, errs.New(errs.Invalid, "portmap must be called as a chained plugin")
	}
	if len(conf.RuntimeConfig.PortMaps) == 0 {
		return prev, nil
	}
	v4, v6 := podAddrs(prev, c.IfName)
	elems, err := conf.elements(v4)
	if err != nil {
		return nil, err
	}
	more, err := conf.elements(v6)
	if err != nil {
		return nil, err
	}
	if v4.IsValid() && (conf.SNAT == nil || *conf.SNAT) {
		if err := p.routeLocalnet(v4.Addr(), Owner(c.ContainerID, c.IfName)); err != nil {
			return nil, err
		}
	}
	if err := p.r.rules.Add(Owner(c.ContainerID, c.IfName), append(elems, more...)...); err != nil {
		return nil, err
	}
	p.flushUDP(conf, v4, v6)
	if err := fault.At(FaultMapped); err != nil {
		return nil, err
	}
	return prev, nil
}

// everyone owns the packet rules that are of no single pod.
const everyone = "localnet"

// routeLocalnet lets packets from 127.0.0.1 leave towards the pod, and keeps what comes from there away
// from 127.0.0.0/8, which would otherwise be open to pods (CVE-2020-8558).
func (p portmap) routeLocalnet(pod netip.Addr, owner string) error {
	link := p.linkTowards(pod)
	if link == nil {
		return nil // no route, no packet
	}
	name := link.Attrs().Name
	if link.Type() == "bridge" {
		owner = everyone // it stays when this pod goes
	}
	if err := p.r.rules.Add(owner, nft.Localnet(name)); err != nil {
		return err
	}
	if err := writeSysctl("net/ipv4/conf/"+name+"/route_localnet", "1"); err != nil {
		return fmt.Errorf("set route_localnet of %s: %w", name, err)
	}
	return nil
}

// linkTowards returns the interface that packets to the pod leave by, or nil.
func (p portmap) linkTowards(pod netip.Addr) netlink.Link {
	routes, err := p.r.host.RouteGet(pod.AsSlice())
	if err != nil || len(routes) == 0 {
		return nil
	}
	link, err := p.r.host.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nil
	}
	return link
}

// flushUDP forgets connections to the host ports that were tracked before the rules were there: their
// packets would go on past the pod. Best effort, as in the reference plugin.
func (p portmap) flushUDP(conf *portmapConf, v4, v6 netip.Prefix) {
	for _, m := range conf.RuntimeConfig.PortMaps {
		if !strings.EqualFold(m.Protocol, "udp") {
			continue
		}
		f := &netlink.ConntrackFilter{}
		_ = f.AddProtocol(unix.IPPROTO_UDP)
		_ = f.AddPort(netlink.ConntrackOrigDstPort, uint16(m.HostPort))
		for family, pod := range map[netlink.InetFamily]netip.Prefix{unix.AF_INET: v4, unix.AF_INET6: v6} {
			if pod.IsValid() {
				_, _ = Again(func() (uint, error) { return netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f) })
			}
		}
	}
}

func (p portmap) del(_ context.Context, c *Call) error {
	return p.r.rules.Remove(Owner(c.ContainerID, c.IfName), nft.HostPorts)
}

func (p portmap) check(_ context.Context, c *Call) error {
	conf, err := parsePortmap(c.Config)
	if err == nil {
		err = conf.validate()
	}
	if err != nil {
		return err
	}
	prev, err := previous(&conf.NetConf)
	if err != nil {
		return err
	}
	if prev == nil {
		return errs.New(errs.Invalid, "check portmap: required prevResult missing")
	}
	if len(conf.RuntimeConfig.PortMaps) == 0 {
		return nil
	}
	v4, v6 := podAddrs(prev, c.IfName)
	for _, a := range []netip.Prefix{v4, v6} {
		elems, err := conf.elements(a)
		if err != nil {
			return err
		}
		missing, err := p.r.rules.Missing(Owner(c.ContainerID, c.IfName), elems...)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			return errs.New(errs.NotFound, "check portmap: missing host port rules: %v", missing)
		}
	}
	return nil
}
