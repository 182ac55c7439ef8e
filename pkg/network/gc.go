package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/cri-server/cri-server/pkg/network/internal/plugin"
)

// GC undoes what belongs to no live pod: attachments (by DEL, with the configuration they were made with),
// packet rules, leases of the default network, names of namespaces. Plugins that know the command GC are
// given the list of live attachments. A pod that is being attached must be among the live. It continues after an error and returns all of them.
func (m *Manager) GC(ctx context.Context, live []Pod) error {
	alive := idSet(live)
	ids, err := m.attachments()
	if err != nil {
		return err
	}
	var all []error
	for _, id := range ids {
		if !alive[id] {
			if err := m.Detach(ctx, Pod{ID: id}); err != nil {
				all = append(all, fmt.Errorf("collect network of pod %s: %w", id, err))
			}
		}
	}
	owners, err := m.rules.Owners()
	all = append(all, err)
	for owner := range owners {
		if id, _, ok := strings.Cut(owner, "/"); ok && !alive[id] {
			all = append(all, m.rules.RemoveAll(owner))
		}
	}
	leases, err := m.staleLeases(alive)
	all = append(all, err)
	for path := range leases {
		all = append(all, removeFile(path))
	}
	if list, err := m.network(); err == nil && m.execs(list) {
		args := &libcni.GCArgs{}
		for _, p := range live {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.ID, IfName: IfName})
		}
		all = append(all, m.cni.GCNetworkList(ctx, list, args))
	}
	return errors.Join(all...)
}

func idSet(live []Pod) map[string]bool {
	alive := make(map[string]bool, len(live))
	for _, p := range live {
		alive[p.ID] = true
	}
	return alive
}

// staleLeases returns the lease files of the default network whose pod is not alive, with their owner.
func (m *Manager) staleLeases(alive map[string]bool) (map[string]string, error) {
	leases, err := plugin.Leases(filepath.Join(m.cfg.StateDir, leasesDir, m.cfg.DefaultNetwork.BridgeName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for path, id := range leases {
		if alive[id] {
			delete(leases, path)
		}
	}
	return leases, nil
}

// Leftovers names everything of this server on the host that belongs to no live pod: attachments, names of
// namespaces, packet rules, leases, cached results, ports of the default bridge. It changes nothing. A
// healthy server has none.
func (m *Manager) Leftovers(_ context.Context, live []Pod) ([]string, error) {
	alive := idSet(live)
	var left []string
	var all []error
	ids, err := m.attachments()
	all = append(all, err)
	for _, id := range ids {
		if alive[id] {
			continue
		}
		left = append(left, "network attachment of pod "+id)
		if _, err := os.Lstat(m.bindPath(id)); err == nil {
			left = append(left, "network namespace "+m.bindPath(id))
		}
	}
	owners, err := m.rules.Owners()
	all = append(all, err)
	for owner, elems := range owners {
		if id, _, ok := strings.Cut(owner, "/"); ok && !alive[id] {
			for _, e := range elems {
				left = append(left, fmt.Sprintf("packet rule of pod %s: %s", id, e))
			}
		}
	}
	leases, err := m.staleLeases(alive)
	all = append(all, err)
	for path, id := range leases {
		left = append(left, fmt.Sprintf("lease of pod %s: %s", id, path))
	}
	cached, err := m.cni.GetCachedAttachments("")
	all = append(all, err)
	for _, c := range cached {
		if !alive[c.ContainerID] {
			left = append(left, fmt.Sprintf("cached result of pod %s on network %s", c.ContainerID, c.Network))
		}
	}
	ports, err := m.stalePorts(alive)
	all = append(all, err)
	sort.Strings(left)
	return append(left, ports...), errors.Join(all...)
}

// stalePorts returns the ports of the default bridge that are of no live pod. A namespace takes a moment to
// take its link along, so only those that still pass frames count.
func (m *Manager) stalePorts(alive map[string]bool) ([]string, error) {
	names := map[string]bool{}
	for id := range alive {
		names[plugin.VethName(m.cfg.Suffix, id, IfName)] = true
	}
	up, err := m.runner.LivePorts(m.cfg.DefaultNetwork.BridgeName)
	var left []string
	for _, name := range up {
		if !names[name] {
			left = append(left, fmt.Sprintf("port %s of bridge %s", name, m.cfg.DefaultNetwork.BridgeName))
		}
	}
	return left, err
}
