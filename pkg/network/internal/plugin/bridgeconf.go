package plugin

import (
	"encoding/json"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"

	"github.com/cri-server/cri-server/pkg/errs"
)

const defaultBridge = "cni0"

// bridgeConf is the configuration of the reference bridge plugin.
type bridgeConf struct {
	types.NetConf
	Bridge                    string            `json:"bridge"`
	IsGateway                 bool              `json:"isGateway"`
	IsDefaultGateway          bool              `json:"isDefaultGateway"`
	ForceAddress              bool              `json:"forceAddress"`
	IPMasq                    bool              `json:"ipMasq"`
	IPMasqBackend             *string           `json:"ipMasqBackend"`
	MTU                       int               `json:"mtu"`
	HairpinMode               bool              `json:"hairpinMode"`
	PromiscMode               bool              `json:"promiscMode"`
	Vlan                      int               `json:"vlan"`
	VlanTrunk                 []json.RawMessage `json:"vlanTrunk"`
	MacSpoofChk               bool              `json:"macspoofchk"`
	EnableDad                 bool              `json:"enabledad"`
	DisableContainerInterface bool              `json:"disableContainerInterface"`
	PortIsolation             bool              `json:"portIsolation"`
	Args                      struct {
		CNI struct {
			Mac string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		Mac string `json:"mac"`
	} `json:"runtimeConfig"`

	mac net.HardwareAddr
}

// needsReference says whether the configuration asks for what only the reference plugin does: tagged VLANs,
// and masquerading by iptables where that was asked for by name.
func (c *bridgeConf) needsReference() bool {
	return c.Vlan != 0 || len(c.VlanTrunk) > 0 || (c.IPMasq && c.IPMasqBackend != nil && *c.IPMasqBackend == "iptables")
}

func parseBridge(data []byte, args string) (*bridgeConf, error) {
	c := &bridgeConf{Bridge: defaultBridge}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, errs.New(errs.Invalid, "read bridge configuration: %w", err)
	}
	mac := ""
	if args != "" {
		var e struct {
			types.CommonArgs
			MAC types.UnmarshallableString `json:"mac,omitempty"`
		}
		if err := types.LoadArgs(args, &e); err != nil {
			return nil, errs.New(errs.Invalid, "read CNI_ARGS: %w", err)
		}
		mac = string(e.MAC)
	}
	for _, m := range []string{c.Args.CNI.Mac, c.RuntimeConfig.Mac} {
		if m != "" {
			mac = m
		}
	}
	if mac != "" {
		m, err := net.ParseMAC(mac)
		if err != nil {
			return nil, errs.New(errs.Invalid, "read bridge configuration: %w", err)
		}
		c.mac = m
	}
	if c.IsDefaultGateway {
		c.IsGateway = true
	}
	return c, nil
}

// version is the version of the protocol; a configuration without one is of the first.
func (c *bridgeConf) version() string {
	if c.CNIVersion == "" {
		return "0.1.0"
	}
	return c.CNIVersion
}

func (c *bridgeConf) validate() error {
	switch {
	case c.Vlan < 0 || c.Vlan > 4094:
		return errs.New(errs.Invalid, "bridge configuration: VLAN ID %d is not in 0..4094", c.Vlan)
	case c.needsReference():
		return errs.New(errs.Unsupported, "bridge configuration (network %s): vlan, vlanTrunk and the iptables backend are not supported in process. Install the reference plugin \"bridge\" in a plugin directory", c.Name)
	case c.IPAM.Type != "" && c.DisableContainerInterface:
		return errs.New(errs.Invalid, "bridge configuration: cannot use IPAM when disableContainerInterface is set")
	case c.HairpinMode && c.PromiscMode:
		return errs.New(errs.Invalid, "bridge configuration: cannot set hairpin mode and promiscuous mode at the same time")
	case c.IPMasqBackend != nil && *c.IPMasqBackend != "nftables" && *c.IPMasqBackend != "iptables":
		return errs.New(errs.Invalid, "bridge configuration: unknown ipMasqBackend %q", *c.IPMasqBackend)
	case len(c.Bridge) == 0 || len(c.Bridge) > 15:
		return errs.New(errs.Invalid, "bridge configuration: bridge name %q is not of 1 to 15 bytes", c.Bridge)
	}
	return nil
}

// addressing completes what address management gave: gateways and default routes. It returns the addresses
// the bridge gets.
func (c *bridgeConf) addressing(res *current.Result) []*net.IPNet {
	var gateways []*net.IPNet
	done := map[bool]bool{} // a default route for v4, for v6
	for _, ipc := range res.IPs {
		is4 := ipc.Address.IP.To4() != nil
		ipc.Interface = current.Int(2)
		if ipc.Gateway == nil && c.IsGateway {
			ipc.Gateway = ip.NextIP(ipc.Address.IP.Mask(ipc.Address.Mask))
		}
		if c.IsDefaultGateway && !done[is4] {
			done[is4] = true
			if dst := defaultNet(is4); !hasRoute(res.Routes, dst) {
				res.Routes = append(res.Routes, &types.Route{Dst: dst, GW: ipc.Gateway})
			}
		}
		if c.IsGateway {
			gateways = append(gateways, &net.IPNet{IP: ipc.Gateway, Mask: ipc.Address.Mask})
		}
	}
	return gateways
}

func hasRoute(routes []*types.Route, dst net.IPNet) bool {
	for _, r := range routes {
		if r.GW != nil && r.Dst.String() == dst.String() {
			return true
		}
	}
	return false
}

func defaultNet(is4 bool) net.IPNet {
	if is4 {
		return net.IPNet{IP: net.IPv4zero, Mask: net.IPMask(net.IPv4zero)}
	}
	return net.IPNet{IP: net.IPv6zero, Mask: net.IPMask(net.IPv6zero)}
}

func dnsSet(d types.DNS) bool {
	return d.Nameservers != nil || d.Search != nil || d.Options != nil || d.Domain != ""
}

// checkAddresses refuses what a broken or hostile address management may have given.
func checkAddresses(ips []*current.IPConfig) error {
	if len(ips) == 0 {
		return errs.New(errs.Unknown, "bridge: address management gave no address")
	}
	for _, c := range ips {
		if c == nil || (c.Address.IP.To4() == nil && len(c.Address.IP) != net.IPv6len) {
			return errs.New(errs.Unknown, "bridge: address management gave a malformed address %v", c)
		}
		if ones, bits := c.Address.Mask.Size(); bits == 0 {
			return fmt.Errorf("bridge: address management gave a malformed mask (%s, %d bits)", c.Address.String(), ones)
		}
	}
	return nil
}
