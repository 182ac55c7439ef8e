package plugin

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// States of a bridge port (BR_STATE_* of linux/if_bridge.h).
const (
	portDisabled   = 0
	portForwarding = 3
)

// silencePort makes the bridge neither take nor give a frame at the port. Unlike setting the link down it
// waits for no grace period of the kernel. A bridge with spanning tree keeps the state to itself: there
// the link is set down.
func silencePort(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{portDisabled})
	req.AddData(info)
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) { // spanning tree, or no port at all
		err = h.LinkSetDown(l)
	}
	if err != nil && !notFound(err) && !errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("silence bridge port %s: %w", name, err)
	}
	return nil
}

// LivePorts returns the names of the ports of a bridge that may pass frames, in no order. A bridge that is
// not there has none.
func (r *Runner) LivePorts(bridge string) ([]string, error) {
	br, err := r.host.LinkByName(bridge)
	if notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up bridge %s: %w", bridge, err)
	}
	msgs, err := Again(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, fmt.Errorf("list bridge ports: %w", err)
	}
	var live []string
	for _, m := range msgs {
		name, master, state, err := parsePort(m)
		if err != nil {
			return nil, fmt.Errorf("list bridge ports: %w", err)
		}
		if master == uint32(br.Attrs().Index) && name != bridge && state != portDisabled {
			live = append(live, name)
		}
	}
	return live, nil
}

// parsePort reads one message of a dump of bridge ports.
func parsePort(m []byte) (name string, master uint32, state byte, err error) {
	if len(m) < unix.SizeofIfInfomsg {
		return "", 0, 0, unix.EBADMSG
	}
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
	if err != nil {
		return "", 0, 0, err
	}
	state = portForwarding
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			name = nl.BytesToString(a.Value)
		case unix.IFLA_MASTER:
			if len(a.Value) >= 4 {
				master = nl.NativeEndian().Uint32(a.Value)
			}
		case unix.IFLA_PROTINFO:
			inner, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return "", 0, 0, err
			}
			for _, i := range inner {
				if i.Attr.Type == nl.IFLA_BRPORT_STATE && len(i.Value) > 0 {
					state = i.Value[0]
				}
			}
		}
	}
	return name, master, state, nil
}
