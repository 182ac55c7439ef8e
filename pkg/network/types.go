// Package network runs CNI on one network namespace: libcni, with the common plugins in process.
package network

import (
	"net/netip"
	"time"
)

// Pod is what a network needs to know of a pod.
type Pod struct {
	ID, Name, Namespace, UID string
	Netns                    string // a path of its network namespace, for this process and now; "" when it is gone
	Ports                    []PortMapping
	Annotations              map[string]string
	DNS                      DNS    // for plugins with the capability "dns"
	CgroupParent             string // for plugins with the capability "cgroupPath"
}

// PortMapping sends a port of the node to a port of the pod. HostPort 0 maps nothing.
type PortMapping struct {
	HostIP        string // "" is every address
	HostPort      int32
	ContainerPort int32
	Protocol      string // "tcp", "udp" or "sctp"
}

// DNS is the resolver configuration of a pod, as its container config has it.
type DNS struct {
	Servers, Searches, Options []string
}

// Result is what attaching gave: it is stored with the pod, and Detach gets it back.
type Result struct {
	IPs []string // the pod's addresses, the primary one first
}

// Status says whether pods can be attached.
type Status struct {
	Ready           bool
	Reason, Message string // why not, for the node's condition; Message may warn although Ready
}

// Config says where a Manager finds and keeps things. Every directory is an absolute path.
type Config struct {
	ConfDir  string   // network configurations, "/etc/cni/net.d"
	BinDirs  []string // plugins that are exec'd, "/opt/cni/bin"
	CacheDir string   // libcni's cache of results; this server's own
	StateDir string   // attachments, leases of the default network; it should outlive a reboot, as leases elsewhere do
	NetnsDir string   // where namespaces are bound for exec'd plugins, "/run/netns"

	DefaultNetwork DefaultNetwork
	Suffix         string // a hash of the server's root: it sets its names on the host apart from other servers'

	PluginTimeout time.Duration // the longest that one exec'd plugin may take; 0 is one minute
	ExecTypes     []string      // plugin types that are exec'd although they could run in process

	ReadOnly bool // look only, as an audit without a server does: Open makes no directory and no default network
}

// DefaultNetwork is a bridge network for machines without a network configuration.
type DefaultNetwork struct {
	Enabled bool
	// Subnets are the ranges that the network's subnet is taken from: the first /24 of an IPv4 range and
	// the first /64 of an IPv6 range that no route and no address of the host touches. One range of each
	// family is used; no range at all is DefaultSubnet.
	Subnets    []netip.Prefix
	BridgeName string // "" is "cri-" and the suffix
}

// DefaultSubnet is the range of the default network's subnet where none is configured.
const DefaultSubnet = "10.209.0.0/16"

// IfName is the name of a pod's interface on its network.
const IfName = "eth0"
