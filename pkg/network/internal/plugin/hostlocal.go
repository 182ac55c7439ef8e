package plugin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"

	"github.com/cri-server/cri-server/pkg/errs"
)

type hostLocal struct{ r *Runner }

func (h hostLocal) open(c *Call) (*allocator.IPAMConfig, *leaseDir, error) {
	conf, _, err := allocator.LoadIPAMConfig(c.Config, c.Args)
	if err != nil {
		return nil, nil, errs.New(errs.Invalid, "read host-local configuration: %w", err)
	}
	store, err := h.r.leases.open(conf.Name, conf.DataDir)
	if err != nil {
		return nil, nil, fmt.Errorf("open leases of network %s: %w", conf.Name, err)
	}
	return conf, store, nil
}

func (h hostLocal) add(_ context.Context, c *Call) (types.Result, error) {
	conf, store, err := h.open(c)
	if err != nil {
		return nil, err
	}
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: conf.Routes}
	if conf.ResolvConf != "" {
		if res.DNS, err = resolvConf(conf.ResolvConf); err != nil {
			return nil, fmt.Errorf("read resolvConf of network %s: %w", conf.Name, err)
		}
	}
	wanted := map[string]net.IP{}
	for _, ip := range conf.IPArgs {
		wanted[ip.String()] = ip
	}
	var used []*allocator.IPAllocator
	release := func() {
		for _, a := range used {
			_ = a.Release(c.ContainerID, c.IfName) // the error on the way is the one to tell
		}
	}
	for i, ranges := range conf.Ranges {
		a := allocator.NewIPAllocator(&ranges, store, i)
		var want net.IP
		for k, ip := range wanted {
			if ranges.Contains(ip) {
				want = ip
				delete(wanted, k)
				break
			}
		}
		ipc, err := a.Get(c.ContainerID, c.IfName, want)
		if err != nil {
			release()
			return nil, errs.New(errs.Exhausted, "allocate an address (network %s, range %d): %w", conf.Name, i, err)
		}
		used = append(used, a)
		res.IPs = append(res.IPs, ipc)
	}
	if len(wanted) > 0 {
		release()
		var names []string
		for k := range wanted {
			names = append(names, k)
		}
		return nil, errs.New(errs.Invalid, "allocate an address (network %s): failed to allocate all requested IPs: %s", conf.Name, strings.Join(names, " "))
	}
	return res, nil
}

// del needs the directory only, so that a configuration that ADD refused does not keep a pod for ever.
func (h hostLocal) del(_ context.Context, c *Call) error {
	var conf struct {
		Name string `json:"name"`
		IPAM struct {
			DataDir string `json:"dataDir"`
		} `json:"ipam"`
	}
	if err := json.Unmarshal(c.Config, &conf); err != nil {
		return errs.New(errs.Invalid, "read host-local configuration: %w", err)
	}
	store, err := h.r.leases.open(conf.Name, conf.IPAM.DataDir)
	if err != nil {
		return fmt.Errorf("open leases of network %s: %w", conf.Name, err)
	}
	if err := store.Lock(); err != nil {
		return errors.Join(err, store.Unlock())
	}
	return errors.Join(store.ReleaseByID(c.ContainerID, c.IfName), store.Unlock())
}

func (h hostLocal) check(_ context.Context, c *Call) error {
	conf, store, err := h.open(c)
	if err != nil {
		return err
	}
	err = store.Lock()
	found := err == nil && len(store.GetByID(c.ContainerID, c.IfName)) > 0
	if err = errors.Join(err, store.Unlock()); err != nil {
		return err
	}
	if !found {
		return errs.New(errs.NotFound, "host-local: failed to find address added by container %s (network %s)", c.ContainerID, conf.Name)
	}
	return nil
}

// resolvConf reads the name servers of a resolv.conf(5).
func resolvConf(path string) (types.DNS, error) {
	var dns types.DNS
	f, err := os.Open(path)
	if err != nil {
		return dns, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns, s.Err()
}
