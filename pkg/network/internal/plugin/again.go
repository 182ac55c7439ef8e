package plugin

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Again lists something of the kernel, and does so again when the list changed while it was read: on a node
// where pods come and go that is common.
func Again[T any](list func() (T, error)) (T, error) {
	const most = 50
	for i := 0; ; i++ {
		got, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || i == most {
			return got, err
		}
	}
}
