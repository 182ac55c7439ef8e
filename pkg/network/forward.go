package network

import (
	"time"

	"github.com/cri-server/cri-server/pkg/network/internal/nft"
)

const forwardEvery = time.Minute // how long the answer about other packet filters is believed

// forwardWarning tells of another packet filter that drops what pods send through this host. An accept of
// ours cannot overrule it: with netfilter a packet must pass every table.
func (m *Manager) forwardWarning() string {
	m.probing.Lock()
	defer m.probing.Unlock()
	if time.Since(m.forwardAt) < forwardEvery {
		return m.forward
	}
	var err error
	if m.forward, err = nft.ForeignDrop(); err != nil {
		return "" // without the right to ask there is nothing to tell
	}
	m.forwardAt = time.Now()
	return m.forward
}
