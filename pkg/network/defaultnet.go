package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/network/internal/plugin"
)

const (
	defaultFile = "default.conflist"
	leasesDir   = "leases"
	subnetBits4 = 24
	subnetBits6 = 64
)

func (m *Manager) defaultFile() string { return filepath.Join(m.cfg.StateDir, defaultFile) }

// openDefault brings up the default network that the configuration or an earlier EnableDefault asks for.
func (m *Manager) openDefault(ctx context.Context) error {
	_, err := os.Stat(m.defaultFile())
	if !m.cfg.DefaultNetwork.Enabled && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return m.EnableDefault(ctx)
}

// EnableDefault makes the default network: its subnet is chosen once and kept, its bridge is made with its
// addresses so that other servers see the subnet taken. Pods use it while the configuration directory is
// empty. It is idempotent and lasts until RemoveDefault, over restarts too.
func (m *Manager) EnableDefault(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	unlock, err := lockNamespace()
	if err != nil {
		return err
	}
	defer unlock()
	list, err := m.keptDefault()
	if err != nil {
		return err
	}
	if list == nil {
		if list, err = m.newDefault(); err != nil {
			return fmt.Errorf("enable the default network: %w", err)
		}
	}
	call := &plugin.Call{Command: "BRIDGE", Config: list.Plugins[0].Bytes}
	if err := m.runner.MakeBridge(ctx, call); err != nil {
		return fmt.Errorf("enable the default network: %w", err)
	}
	m.defNet = list
	return nil
}

// keptDefault returns the default network as it was chosen before, if its subnet is still the bridge's own
// or free, and nil otherwise.
func (m *Manager) keptDefault() (*libcni.NetworkConfigList, error) {
	list, err := readConf(m.defaultFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.New(errs.Unknown, "read the default network (%s): %w. Remove the file to choose anew", m.defaultFile(), err)
	}
	taken, err := takenBy(m.cfg.DefaultNetwork.BridgeName)
	if err != nil {
		return nil, err
	}
	for _, s := range subnetsOf(list) {
		if overlapsAny(taken, s) {
			if ids, err := m.attachments(); err != nil || len(ids) > 0 {
				return list, err // pods use it: they keep it
			}
			return nil, nil
		}
	}
	return list, nil
}

func subnetsOf(list *libcni.NetworkConfigList) []netip.Prefix {
	var c struct {
		IPAM struct {
			Ranges [][]struct {
				Subnet netip.Prefix `json:"subnet"`
			} `json:"ranges"`
		} `json:"ipam"`
	}
	if len(list.Plugins) == 0 || json.Unmarshal(list.Plugins[0].Bytes, &c) != nil {
		return nil
	}
	var all []netip.Prefix
	for _, set := range c.IPAM.Ranges {
		for _, r := range set {
			all = append(all, r.Subnet)
		}
	}
	return all
}

// newDefault chooses subnets and writes the network's configuration list.
func (m *Manager) newDefault() (*libcni.NetworkConfigList, error) {
	taken, err := takenBy(m.cfg.DefaultNetwork.BridgeName)
	if err != nil {
		return nil, err
	}
	ranges := m.cfg.DefaultNetwork.Subnets
	if len(ranges) == 0 {
		ranges = []netip.Prefix{netip.MustParsePrefix(DefaultSubnet)}
	}
	type one struct {
		Subnet netip.Prefix `json:"subnet"`
	}
	var sets [][]one
	for _, r := range ranges {
		s, err := freeSubnet(r, taken)
		if err != nil {
			return nil, err
		}
		sets = append(sets, []one{{s}})
	}
	name := m.cfg.DefaultNetwork.BridgeName
	bridge := map[string]any{
		"type": "bridge", "bridge": name, "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true,
		"ipam": map[string]any{"type": "host-local", "dataDir": filepath.Join(m.cfg.StateDir, leasesDir), "ranges": sets},
	}
	if mtu := uplinkMTU(); mtu > 0 {
		bridge["mtu"] = mtu
	}
	data, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.1.0", "name": name, "loadOnlyInlinedPlugins": true,
		"plugins": []any{
			bridge,
			map[string]any{"type": "portmap", "backend": "nftables", "snat": true, "capabilities": map[string]bool{capPorts: true}},
		},
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	tmp := m.defaultFile() + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, m.defaultFile()); err != nil {
		return nil, err
	}
	return readConf(m.defaultFile())
}

// uplinkMTU returns the MTU of the interface that the default route leaves by where it is smaller than a
// bridge's own, and 0 elsewhere. Packets of pods that are larger would get lost on the way.
func uplinkMTU() int {
	const ethernet = 1500
	routes, err := plugin.Again(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return 0
	}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				continue
			}
		}
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU < ethernet {
			return l.Attrs().MTU
		}
	}
	return 0
}

// freeSubnet returns the first subnet of the range that touches nothing that is taken.
func freeSubnet(r netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	bits := subnetBits4
	if r.Addr().Is6() {
		bits = subnetBits6
	}
	r = r.Masked()
	if r.Bits() > bits {
		bits = r.Bits()
	}
	const most = 1 << 16 // subnets looked at
	p := netip.PrefixFrom(r.Addr(), bits)
	for range most {
		if !r.Contains(p.Addr()) {
			break
		}
		if !overlapsAny(taken, p) {
			return p, nil
		}
		next, ok := nextSubnet(p)
		if !ok {
			break
		}
		p = next
	}
	return netip.Prefix{}, errs.New(errs.Exhausted, "choose a subnet: every /%d of %s touches a route or an address of this host. Configure another range", bits, r)
}

func nextSubnet(p netip.Prefix) (netip.Prefix, bool) {
	b := p.Addr().AsSlice()
	i := (p.Bits() - 1) / 8
	add := byte(1) << (7 - (p.Bits()-1)%8)
	for ; i >= 0; i-- {
		b[i] += add
		if b[i] >= add && b[i] != 0 {
			a, _ := netip.AddrFromSlice(b)
			return netip.PrefixFrom(a, p.Bits()), true
		}
		add = 1
	}
	return p, false
}

func overlapsAny(taken []netip.Prefix, p netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(p) {
			return true
		}
	}
	return false
}

// takenBy returns every network that an address or a route of the host names, in all tables, without
// default routes and without what belongs to the named link itself.
func takenBy(except string) ([]netip.Prefix, error) {
	own := -1
	if l, err := netlink.LinkByName(except); err == nil {
		own = l.Attrs().Index
	}
	var taken []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return
		}
		a, ok := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		if p := netip.PrefixFrom(a.Unmap(), ones); ok && p.IsValid() && p.Bits() > 0 {
			taken = append(taken, p.Masked())
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := plugin.Again(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list this host's addresses: %w", err)
		}
		for _, a := range addrs {
			if a.LinkIndex != own {
				add(a.IPNet)
			}
		}
		routes, err := plugin.Again(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list this host's routes: %w", err)
		}
		for _, r := range routes {
			if r.LinkIndex != own {
				add(r.Dst)
			}
		}
	}
	return taken, nil
}

// lockNamespace keeps the other servers of this network namespace from choosing a subnet meanwhile. The
// namespace's own file is the lock: it is the one thing that they all have in common.
func lockNamespace() (unlock func(), err error) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("lock the network namespace: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the network namespace: %w", err)
	}
	return func() { f.Close() }, nil
}

// RemoveDefault takes the default network down: bridge, leases and configuration, and the server's packet
// rules when no attached pod needs them. Pods must be detached first: errs.Conflict. It is idempotent.
func (m *Manager) RemoveDefault(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids, err := m.attachments()
	if err != nil {
		return err
	}
	for _, id := range ids {
		a, err := m.recorded(id)
		if err != nil {
			return err
		}
		if a != nil && a.Network == m.cfg.DefaultNetwork.BridgeName {
			return errs.New(errs.Conflict, "remove the default network: pod %s is attached to it. Remove the pod first", id)
		}
	}
	if l, err := netlink.LinkByName(m.cfg.DefaultNetwork.BridgeName); err == nil && l.Type() == "bridge" {
		if err := removePorts(l.Attrs().Index); err != nil {
			return err
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove bridge %s: %w", l.Attrs().Name, err)
		}
	}
	if len(ids) == 0 {
		if err := m.rules.Destroy(); err != nil {
			return err
		}
	}
	m.defNet = nil
	return errors.Join(os.RemoveAll(filepath.Join(m.cfg.StateDir, leasesDir)), removeFile(m.defaultFile()))
}

// removePorts removes the links of a bridge that no pod is attached to any more. They would go with the network
// namespaces that hold their other ends, but the kernel takes its time for those.
func removePorts(bridge int) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().MasterIndex != bridge || l.Type() != "veth" {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove link %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
