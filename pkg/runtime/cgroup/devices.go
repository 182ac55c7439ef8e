package cgroup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

// access is a set of what a process may do with a device.
type access uint8

const (
	mayMknod access = 1 << iota // the bits of BPF_DEVCG_ACC_*
	mayRead
	mayWrite
	mayAll = mayMknod | mayRead | mayWrite
)

func (a access) String() string {
	s := ""
	for _, c := range []struct {
		bit  access
		name string
	}{{mayRead, "r"}, {mayWrite, "w"}, {mayMknod, "m"}} {
		if a&c.bit != 0 {
			s += c.name
		}
	}
	return s
}

// devices names device nodes: a type ('a' for both, 'b', 'c') and numbers, -1 for all.
type devices struct {
	kind         byte
	major, minor int64
}

func (d devices) String() string {
	number := func(n int64) string {
		if n < 0 {
			return "*"
		}
		return strconv.FormatInt(n, 10)
	}
	return fmt.Sprintf("%c %s:%s", d.kind, number(d.major), number(d.minor))
}

// covers reports that every node of o is one of d.
func (d devices) covers(o devices) bool {
	return (d.kind == 'a' || d.kind == o.kind) && (d.major < 0 || d.major == o.major) && (d.minor < 0 || d.minor == o.minor)
}

// overlaps reports that some node is of both.
func (d devices) overlaps(o devices) bool {
	same := func(a, b int64) bool { return a < 0 || b < 0 || a == b }
	return (d.kind == 'a' || o.kind == 'a' || d.kind == o.kind) && same(d.major, o.major) && same(d.minor, o.minor)
}

// rule allows or denies what one line of the resources says.
type rule struct {
	devices
	allow bool
	access
}

// DefaultDevices are the rules that every container's device filter ends with: what runc gives too. Nodes
// may be made of every device; what is open to use are the memory devices of runtime-spec's default
// devices, terminals, the container's console and tun. They come last, so the resources cannot deny them.
func DefaultDevices() []specs.LinuxDeviceCgroup {
	return []specs.LinuxDeviceCgroup{
		allow("c", -1, -1, "m"), allow("b", -1, -1, "m"),
		allow("c", 1, 3, "rwm"),    // null
		allow("c", 1, 5, "rwm"),    // zero
		allow("c", 1, 7, "rwm"),    // full
		allow("c", 1, 8, "rwm"),    // random
		allow("c", 1, 9, "rwm"),    // urandom
		allow("c", 5, 0, "rwm"),    // tty
		allow("c", 5, 1, "rwm"),    // console
		allow("c", 5, 2, "rwm"),    // ptmx
		allow("c", 10, 200, "rwm"), // tun: virtual private networks in containers with CAP_NET_ADMIN make the node themselves
		allow("c", 136, -1, "rwm"),
	}
}

func allow(kind string, major, minor int64, may string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: may}
}

// parseRules reads the resources' rules with the default ones after them.
func parseRules(list []specs.LinuxDeviceCgroup) ([]rule, error) {
	var out []rule
	for _, l := range slices.Concat(list, DefaultDevices()) {
		r := rule{devices{'a', -1, -1}, l.Allow, mayAll}
		switch l.Type {
		case "b", "c":
			r.kind = l.Type[0]
		case "u":
			r.kind = 'c' // an unbuffered character device is one
		case "", "a":
		default:
			return nil, errs.New(errs.Invalid, "device rule: type %q is not a, b, c or u", l.Type)
		}
		for _, n := range []struct {
			from *int64
			to   *int64
		}{{l.Major, &r.major}, {l.Minor, &r.minor}} {
			if n.from == nil || *n.from == -1 {
				continue
			}
			if *n.to = *n.from; *n.from < 0 || *n.from > 1<<20 {
				return nil, errs.New(errs.Invalid, "device rule: number %d is out of range", *n.from)
			}
		}
		if l.Access != "" {
			r.access = 0
			for _, c := range l.Access { // other letters mean nothing, as to runc: specs with "rwa" are about
				if i := strings.IndexRune("mrw", c); i >= 0 {
					r.access |= 1 << i
				}
			}
			if r.access == 0 {
				return nil, errs.New(errs.Invalid, "device rule: access %q has none of r, w and m", l.Access)
			}
		}
		if r.kind == 'a' && (r.major >= 0 || r.minor >= 0) { // as two rules, which v1 can say
			for _, kind := range []byte("bc") {
				r.kind = kind
				out = append(out, r)
			}
			continue
		}
		out = append(out, r)
	}
	return simplify(out), nil
}

// simplify drops what a later rule for all devices and every access overrules.
func simplify(rules []rule) []rule {
	for i, r := range slices.Backward(rules) {
		if r.kind == 'a' && r.access == mayAll {
			return rules[i:]
		}
	}
	return rules
}

// open reports that the rules let everything through.
func opens(rules []rule) bool {
	return len(rules) > 0 && rules[0].kind == 'a' && rules[0].allow && rules[0].access == mayAll &&
		!slices.ContainsFunc(rules, func(r rule) bool { return !r.allow })
}

func setDevices(t *txn, res *specs.LinuxResources) error {
	rules, err := parseRules(res.Devices)
	if err != nil {
		return err
	}
	if t.group.host.tree("devices") != nil {
		d, err := t.dir("devices")
		if err != nil {
			return err
		}
		return setDevices1(t, d, rules)
	}
	u := t.group.host.unified()
	if u == nil {
		return errs.New(errs.Unsupported, "device rules: this machine has neither the devices controller nor cgroup v2")
	}
	d, err := t.at(u)
	if err != nil {
		return err
	}
	return setDevices2(t, d, rules)
}

// filter is a device filter as v1's kernel keeps it: a default, and what is excepted from it.
type filter struct {
	allow  bool
	except map[devices]access
	order  []devices // of except, as the rules have it
}

// build applies the rules one after the other, as the kernel would. What v1 cannot say, an exception from
// an exception, is an error.
func build(rules []rule) (filter, error) {
	f := filter{except: map[devices]access{}}
	for _, r := range rules {
		if r.kind == 'a' && r.access == mayAll {
			f = filter{allow: r.allow, except: map[devices]access{}}
			continue
		}
		kinds := []byte{r.kind}
		if r.kind == 'a' {
			kinds = []byte("bc")
		}
		for _, kind := range kinds {
			r.kind = kind
			if err := f.apply(r); err != nil {
				return filter{}, err
			}
		}
	}
	return f, nil
}

func (f *filter) apply(r rule) error {
	if r.allow != f.allow {
		f.except[r.devices] |= r.access
		f.order = append(f.order, r.devices)
		return nil
	}
	for e, a := range f.except {
		switch {
		case r.covers(e):
			if a &^= r.access; a == 0 {
				delete(f.except, e)
			} else {
				f.except[e] = a
			}
		case r.overlaps(e) && a&r.access != 0:
			return errs.New(errs.Unsupported, "device rule for %s: cgroup v1 cannot except it from the rule for %s", r.devices, e)
		}
	}
	return nil
}

// parseFilter reads devices.list. The kernel lists the exceptions of a filter that denies; one that allows
// shows as "a *:* rwm", whatever it excepts.
func parseFilter(text string) filter {
	f := filter{except: map[devices]access{}}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) != 3 {
			continue
		}
		if w[0] == "a" {
			return filter{allow: true, except: map[devices]access{}}
		}
		major, minor, _ := strings.Cut(w[1], ":")
		d := devices{w[0][0], -1, -1}
		if n, err := strconv.ParseInt(major, 10, 64); err == nil {
			d.major = n
		}
		if n, err := strconv.ParseInt(minor, 10, 64); err == nil {
			d.minor = n
		}
		f.order = append(f.order, d)
		for _, c := range w[2] {
			if i := strings.IndexRune("mrw", c); i >= 0 {
				f.except[d] |= 1 << i
			}
		}
	}
	return f
}

// setDevices1 changes v1's filter from what it is to what the rules say, in their order, allowing before
// denying, so that running processes lose nothing meanwhile that they are to keep.
func setDevices1(t *txn, d dir, rules []rule) error {
	want, err := build(rules)
	if err != nil {
		return err
	}
	text, err := d.read("devices.list")
	if err != nil {
		return err
	}
	have := parseFilter(text)
	if t.update {
		t.undo = append(t.undo, func() error { return transition(d, want, have) })
	}
	return transition(d, have, want)
}

func transition(d dir, have, want filter) error {
	files := map[bool]string{true: "devices.allow", false: "devices.deny"}
	if have.allow != want.allow || have.allow {
		// A change of the default clears the exceptions; one that allows does not show its own.
		if !have.allow || !want.allow || len(want.except) > 0 {
			if err := d.write(files[want.allow], "a"); err != nil {
				return err
			}
		}
		have = filter{allow: want.allow}
	}
	var more, less []string
	told := map[devices]bool{}
	for _, e := range want.order {
		if a := want.except[e] &^ have.except[e]; a != 0 && !told[e] {
			more = append(more, e.String()+" "+a.String())
			told[e] = true
		}
	}
	for e, a := range have.except {
		if a &^= want.except[e]; a != 0 {
			less = append(less, e.String()+" "+a.String())
		}
	}
	slices.Sort(less)
	if err := d.writeEach(files[!want.allow], more); err != nil {
		return err
	}
	return d.writeEach(files[want.allow], less)
}

// DeviceList is a device filter as a list of what it allows.
type DeviceList struct {
	List []AllowedDevice
	Else bool // no list can say it: everything is allowed, with exceptions or without
}

// AllowedDevice names device nodes of a type ('b', 'c'), -1 for every number, and what may be done: of r, w, m.
type AllowedDevice struct {
	Type         byte
	Major, Minor int64
	Access       string
}

// AllowedDevices is the filter that Apply makes of the rules, default devices included.
func AllowedDevices(list []specs.LinuxDeviceCgroup) (DeviceList, error) {
	rules, err := parseRules(list)
	if err != nil {
		return DeviceList{}, err
	}
	f, err := build(rules)
	if err != nil || f.allow {
		return DeviceList{Else: true}, nil //nolint:nilerr // what v1 cannot say either is no failure on v2
	}
	var out DeviceList
	told := map[devices]bool{}
	for _, d := range f.order {
		if a := f.except[d]; a != 0 && !told[d] {
			told[d] = true
			out.List = append(out.List, AllowedDevice{d.kind, d.major, d.minor, a.String()})
		}
	}
	return out, nil
}
