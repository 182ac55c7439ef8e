package plugin

import (
	"context"
	"fmt"
	"net"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/vishvananda/netlink"

	"github.com/cri-server/cri-server/pkg/errs"
)

// check compares what is there with what ADD said: bridge, both ends of the pair, addresses and routes.
func (b bridge) check(ctx context.Context, c *Call) error {
	conf, err := parseBridge(c.Config, c.Args)
	if err == nil {
		err = conf.validate()
	}
	if err != nil {
		return err
	}
	if err := b.ipamCheck(ctx, conf, c); err != nil {
		return err
	}
	prev, err := previous(&conf.NetConf)
	if err != nil {
		return err
	}
	if prev == nil {
		return errs.New(errs.Invalid, "check bridge: required prevResult missing")
	}
	var br, pod *current.Interface
	for _, i := range prev.Interfaces {
		switch {
		case i.Name == conf.Bridge && i.Sandbox == "":
			br = i
		case i.Name == c.IfName && i.Sandbox != "": // the namespace has another path by now than ADD was given
			pod = i
		}
	}
	if br == nil || pod == nil {
		return errs.New(errs.NotFound, "check bridge: prevResult names no bridge %s or no %s in %s", conf.Bridge, c.IfName, c.Netns)
	}
	brLink, err := b.checkBridge(conf, br)
	if err != nil {
		return err
	}
	var podLink netlink.Link
	if err := b.r.visit(c.Netns, func(h *netlink.Handle) error {
		if podLink, err = checkLink(h, pod, "veth"); err != nil {
			return err
		}
		if err := ip.ValidateExpectedInterfaceIPs(c.IfName, prev.IPs); err != nil {
			return err
		}
		return ip.ValidateExpectedRoute(prev.Routes)
	}); err != nil {
		return fmt.Errorf("check bridge: %w", err)
	}
	return b.checkPort(prev, brLink, podLink)
}

func (b bridge) ipamCheck(ctx context.Context, conf *bridgeConf, c *Call) error {
	switch conf.IPAM.Type {
	case "":
		return nil
	case "host-local":
		return hostLocal(b).check(ctx, c)
	}
	_, err := b.r.delegate(ctx, conf.IPAM.Type, c)
	return err
}

func (b bridge) checkBridge(conf *bridgeConf, want *current.Interface) (netlink.Link, error) {
	l, err := checkLink(b.r.host, want, "bridge")
	if err != nil {
		return nil, fmt.Errorf("check bridge: %w", err)
	}
	if on := l.Attrs().Promisc != 0; on != conf.PromiscMode {
		return nil, errs.New(errs.Conflict, "check bridge %s: configured promiscuous mode %v does not match current state %v", conf.Bridge, conf.PromiscMode, on)
	}
	return l, nil
}

// checkPort finds the interface of the result that is the other end of the pod's and sits on the bridge.
func (b bridge) checkPort(prev *current.Result, br, pod netlink.Link) error {
	for _, i := range prev.Interfaces {
		if i.Sandbox != "" || i.Name == br.Attrs().Name {
			continue
		}
		l, err := b.r.host.LinkByName(i.Name)
		if err != nil || l.Type() != "veth" || l.Attrs().ParentIndex != pod.Attrs().Index || l.Attrs().Index != pod.Attrs().ParentIndex {
			continue
		}
		if l.Attrs().MasterIndex != br.Attrs().Index {
			return errs.New(errs.Conflict, "check bridge: %s is not on bridge %s", i.Name, br.Attrs().Name)
		}
		if l.Attrs().Flags&net.FlagUp == 0 {
			return errs.New(errs.Conflict, "check bridge: %s is down", i.Name)
		}
		return nil
	}
	return errs.New(errs.NotFound, "check bridge: the pod's port on bridge %s was not found", br.Attrs().Name)
}

func checkLink(h *netlink.Handle, want *current.Interface, typ string) (netlink.Link, error) {
	l, err := h.LinkByName(want.Name)
	if err != nil {
		return nil, errs.New(errs.NotFound, "interface %s: %w", want.Name, err)
	}
	if l.Type() != typ {
		return nil, errs.New(errs.Conflict, "interface %s is a %s, not a %s", want.Name, l.Type(), typ)
	}
	if want.Mac != "" && want.Mac != l.Attrs().HardwareAddr.String() {
		return nil, errs.New(errs.Conflict, "interface %s has MAC address %s, not %s", want.Name, l.Attrs().HardwareAddr, want.Mac)
	}
	return l, nil
}
