package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// setHugetlb limits use and, where the kernel has it (5.7), reservation of each size of huge pages. A limit of
// zero is left out where the machine cannot limit that size: a kubelet asks for it with every container, and
// other runtimes let it pass.
func setHugetlb(t *txn, res *specs.LinuxResources) error {
	d, err := t.dir("hugetlb")
	if err != nil {
		if !slices.ContainsFunc(res.HugepageLimits, func(h specs.LinuxHugepageLimit) bool { return h.Limit > 0 }) {
			return nil
		}
		return err
	}
	for _, h := range res.HugepageLimits {
		if !pageSize(h.Pagesize) {
			return errs.New(errs.Invalid, "huge page size %q: it is a number and KB, MB or GB", h.Pagesize)
		}
		suffix := ".limit_in_bytes"
		if d.tree.Unified {
			suffix = ".max"
		}
		value := strconv.FormatUint(h.Limit, 10)
		if !d.has("hugetlb." + h.Pagesize + suffix) {
			if h.Limit == 0 {
				continue
			}
			if on, err := d.read("cgroup.controllers"); d.tree.Unified && (err != nil || !slices.Contains(strings.Fields(on), "hugetlb")) {
				return d.missing("hugetlb")
			}
			return errs.New(errs.Invalid, "huge page size %q: this machine has no such pages", h.Pagesize)
		}
		if err := t.set(d, "hugetlb."+h.Pagesize+suffix, value); err != nil {
			return err
		}
		if rsvd := "hugetlb." + h.Pagesize + ".rsvd" + suffix; d.has(rsvd) {
			if err := t.set(d, rsvd, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func pageSize(s string) bool {
	n := strings.TrimRight(s, "KMGB")
	_, err := strconv.ParseUint(n, 10, 32)
	return err == nil && (s[len(n):] == "KB" || s[len(n):] == "MB" || s[len(n):] == "GB")
}

func setRdma(t *txn, res *specs.LinuxResources) error {
	d, err := t.dir("rdma")
	if err != nil {
		return err
	}
	orMax := func(n *uint32) string {
		if n == nil {
			return "max"
		}
		return strconv.FormatUint(uint64(*n), 10)
	}
	for _, device := range slices.Sorted(maps.Keys(res.Rdma)) {
		if device == "" || strings.ContainsAny(device, " \n") {
			return errs.New(errs.Invalid, "rdma device %q: not a device's name", device)
		}
		r := res.Rdma[device]
		value := "hca_handle=" + orMax(r.HcaHandles) + " hca_object=" + orMax(r.HcaObjects)
		if err := t.setKeyed(d, "rdma.max", device, value, noRdmaMax); err != nil {
			return err
		}
	}
	return nil
}

// setNetwork marks traffic on v1. On v2, BPF programs do that, and nothing here can.
func setNetwork(t *txn, res *specs.LinuxResources) error {
	n := res.Network
	if n.ClassID != nil && *n.ClassID != 0 {
		d, err := t.dir("net_cls")
		if err != nil {
			return err
		}
		if err := t.set(d, "net_cls.classid", strconv.FormatUint(uint64(*n.ClassID), 10)); err != nil {
			return err
		}
	}
	for _, p := range n.Priorities {
		d, err := t.dir("net_prio")
		if err != nil {
			return err
		}
		if p.Name == "" || strings.ContainsAny(p.Name, " /\n") {
			return errs.New(errs.Invalid, "network priority of %q: not an interface's name", p.Name)
		}
		if err := t.setKeyed(d, "net_prio.ifpriomap", p.Name, strconv.FormatUint(uint64(p.Priority), 10), "0"); err != nil {
			return err
		}
	}
	return nil
}

// setUnified writes v2's files as they are named. A value of several lines is written line by line, as the
// kernel takes one entry at a time.
func setUnified(t *txn, res *specs.LinuxResources) error {
	for _, key := range slices.Sorted(maps.Keys(res.Unified)) {
		d, err := t.unified(key)
		if err != nil {
			return err
		}
		for line := range strings.Lines(res.Unified[key]) {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			if err := t.setUnified(d, key, line); err != nil {
				return refusedValue(key, line, err)
			}
		}
	}
	return nil
}

// refusedValue says of a unified resource that could not be set whether its value is what the kernel did not take.
func refusedValue(key, line string, err error) error {
	for _, no := range []unix.Errno{unix.EINVAL, unix.ERANGE, unix.EDOM, unix.EOVERFLOW, unix.ENODEV} {
		if errors.Is(err, no) {
			return errs.New(errs.Invalid, "unified resource %s %q: the kernel does not take this value: %w", key, line, err)
		}
	}
	return fmt.Errorf("unified resource %s: %w", key, err)
}

// unified checks a key and opens the group of its controller. Files that move processes, divide the group
// or end it are no limits.
func (t *txn) unified(key string) (dir, error) {
	controller, rest, ok := strings.Cut(key, ".")
	if !ok || rest == "" || strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._") != "" || strings.HasPrefix(key, ".") {
		return dir{}, errs.New(errs.Invalid, "unified resource %q: not the name of a controller's file", key)
	}
	u := t.group.host.unified()
	if u == nil {
		return dir{}, errs.New(errs.Unsupported, "invalid configuration: unified resource %q: this machine has no cgroup v2", key)
	}
	if controller == "cgroup" {
		if !isLimit(key) {
			return dir{}, errs.New(errs.Invalid, "unified resource %q: it is not a limit", key)
		}
		return t.at(u)
	}
	if tree := t.group.host.tree(controller); tree != nil && !tree.Unified {
		return dir{}, errs.New(errs.Unsupported, "invalid configuration: unified resource %q: the %s controller is on cgroup v1 here", key, controller)
	}
	if t.group.host.tree(controller) == nil && !strings.HasSuffix(key, ".pressure") {
		return dir{}, errs.New(errs.Unsupported, "unified resource %q: the %s controller is not available on this machine", key, controller)
	}
	return t.at(u)
}

// at opens the group in a hierarchy, once for the transaction.
func (t *txn) at(tree *hierarchy) (dir, error) {
	for _, d := range t.open {
		if d.tree == tree {
			return d, nil
		}
	}
	d, err := t.group.host.at(tree, t.group.path)
	if err == nil {
		t.open = append(t.open, d)
	}
	return d, err
}

// keyed returns, for the files with a line for each key, what the entry of a key is that has no line.
func keyed(file string) (without string, ok bool) {
	switch file {
	case "io.max":
		return noIOMax, true
	case "io.latency":
		return "target=0", true
	case "io.weight":
		return "default", true
	case "rdma.max":
		return noRdmaMax, true
	case "misc.max", "dmem.max":
		return "max", true
	case "dmem.min", "dmem.low":
		return "0", true
	}
	return "", false
}

const (
	noIOMax   = "rbps=max wbps=max riops=max wiops=max"
	noRdmaMax = "hca_handle=max hca_object=max"
)

func (t *txn) setUnified(d dir, file, line string) error {
	without, ok := keyed(file)
	if !ok {
		return t.set(d, file, line)
	}
	key, value, ok := strings.Cut(line, " ")
	if !ok { // "io.weight" takes a bare default
		return t.set(d, file, line)
	}
	return t.setKeyed(d, file, key, value, without)
}
