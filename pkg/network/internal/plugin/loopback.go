package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/network/internal/netns"
)

type loopback struct{ r *Runner }

// visit runs fn in the network namespace that path names, with a route socket of there.
func (r *Runner) visit(path string, fn func(h *netlink.Handle) error) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	if ns == nil {
		return errs.New(errs.NotFound, "open network namespace (%s): it does not exist", path)
	}
	defer ns.Close()
	return r.visits.Do(ns, func() error {
		h, err := newHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
}

func (l loopback) add(_ context.Context, c *Call) (types.Result, error) {
	var conf types.NetConf
	if err := json.Unmarshal(c.Config, &conf); err != nil {
		return nil, fmt.Errorf("read loopback configuration: %w", err)
	}
	prev, err := previous(&conf)
	if err != nil {
		return nil, err
	}
	res := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: c.Netns}},
	}
	err = l.r.visit(c.Netns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("look up lo: %w", err)
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			addrs, err := Again(func() ([]netlink.Addr, error) { return h.AddrList(lo, family) })
			if err != nil {
				return fmt.Errorf("list addresses of lo: %w", err)
			}
			for i, a := range addrs {
				if !a.IP.IsLoopback() {
					return fmt.Errorf("loopback interface has a non-loopback address %s", a.IP)
				}
				if i == 0 {
					res.IPs = append(res.IPs, &current.IPConfig{Interface: current.Int(0), Address: *a.IPNet})
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if prev != nil {
		return prev, nil
	}
	return res, nil
}

func (l loopback) del(_ context.Context, c *Call) error {
	if c.Netns == "" || l.r.dying(c.Netns) {
		return nil
	}
	err := l.r.visit(c.Netns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("look up lo: %w", err)
		}
		return h.LinkSetDown(lo)
	})
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (l loopback) check(_ context.Context, c *Call) error {
	return l.r.visit(c.Netns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("look up lo: %w", err)
		}
		if lo.Attrs().Flags&net.FlagUp == 0 {
			return errs.New(errs.Conflict, "check loopback: lo is down")
		}
		return nil
	})
}

// LoopbackUp sets lo up in the network namespace. It is what a runtime does for every pod before its
// networks, and costs no configuration.
func (r *Runner) LoopbackUp(netnsPath string) error {
	return r.visit(netnsPath, loopbackUp)
}

func loopbackUp(h *netlink.Handle) error {
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}} // always the first link
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

type loopbackKey struct{}

// WithLoopback makes the ADD of bridge or ptp set lo up too, on its one visit to the namespace.
func WithLoopback(ctx context.Context) context.Context {
	return context.WithValue(ctx, loopbackKey{}, true)
}
