package network

import "github.com/cri-server/cri-server/pkg/network/internal/nft"

// forwardWarning tells of another packet filter that drops what pods send through this host. An accept of
// ours cannot overrule it: with netfilter a packet must pass every table.
func (m *Manager) forwardWarning() string {
	w, err := nft.ForeignDrop()
	if err != nil {
		return ""
	}
	return w
}
