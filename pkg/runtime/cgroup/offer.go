package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Offer is what limits can be had beside an existing group. It tells before anything is made what the
// kernel would refuse only when a limit is written.
type Offer struct {
	// Cpus and Mems are the lists that a cpuset can choose from, "0-3,8"; "" where the machine has no cpusets.
	Cpus, Mems string
	// PageSizes are the huge pages that can be limited, "2MB".
	PageSizes []string
	// Unified are the files of cgroup v2 that take a value; none on a machine without it.
	Unified []string
}

// Offer reads what a group beside g can be given: the same parent, the same controllers. g must exist.
func (g *Group) Offer() (*Offer, error) {
	o := &Offer{PageSizes: g.pageSizes()}
	var err error
	if o.Cpus, err = g.choice("cpus"); err != nil {
		return nil, err
	}
	if o.Mems, err = g.choice("mems"); err != nil {
		return nil, err
	}
	if u := g.host.unified(); u != nil {
		if o.Unified, err = g.host.writable(u, g.path); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// choice reads what g's parent can share out of its processors or memory nodes. On v2 a group above may be the
// first that has the controller.
func (g *Group) choice(kind string) (string, error) {
	t := g.host.tree("cpuset")
	if t == nil {
		return "", nil
	}
	file := "cpuset." + kind
	if t.Unified {
		file += ".effective"
	}
	for path := filepath.Dir(g.path); ; path = filepath.Dir(path) {
		d, err := g.host.at(t, path)
		if err != nil {
			return "", err
		}
		list, err := d.get(file)
		d.close()
		if err == nil || path == "." || !unset(err) {
			return list, err
		}
	}
}

// pageSizes lists the sizes that the hugetlb controller limits in the group.
func (g *Group) pageSizes() []string {
	d, err := g.controller("hugetlb")
	if err != nil {
		return nil
	}
	defer d.close()
	var out []string
	for _, size := range hugePages("/sys/kernel/mm/hugepages") {
		if d.has("hugetlb." + size + pick(d, ".limit_in_bytes", ".max")) {
			out = append(out, size)
		}
	}
	return out
}

// hugePages lists the machine's sizes of huge pages as the controller's files are called: in the largest unit that
// fits once.
func hugePages(dir string) []string {
	list, _ := os.ReadDir(dir)
	var out []string
	for _, e := range list {
		kb, ok := strings.CutPrefix(e.Name(), "hugepages-")
		n, err := strconv.ParseUint(strings.TrimSuffix(kb, "kB"), 10, 64)
		if !ok || err != nil {
			continue
		}
		unit := "KB"
		for _, u := range []string{"MB", "GB"} {
			if n >= 1024 {
				n, unit = n/1024, u
			}
		}
		out = append(out, fmt.Sprint(n, unit))
	}
	return out
}

// writable lists the files of a v2 group that take a value and are limits.
func (h *Host) writable(t *hierarchy, path string) ([]string, error) {
	d, err := h.at(t, path)
	if err != nil {
		return nil, err
	}
	defer d.close()
	fd, err := openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.name(""), Err: err}
	}
	f := os.NewFile(uintptr(fd), d.path)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	var out []string
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o200 == 0 {
			continue
		}
		if !strings.HasPrefix(name, "cgroup.") || isLimit(name) {
			out = append(out, name)
		}
	}
	return out, err
}

// isLimit tells the limits among the files of v2's core from those that move processes, divide the group or end it.
func isLimit(file string) bool { return file == "cgroup.max.depth" || file == "cgroup.max.descendants" }

// Lacking returns the first number of a list such as "0-3,8" that have is without, and whether there is one. Both
// are lists of the kernel's format; what is none lacks nothing.
func Lacking(list, have string) (n uint64, lacks bool) {
	ranges := ParseList(have)
	for _, want := range ParseList(list) {
		for n := want[0]; n <= want[1]; n++ {
			found := false
			for _, r := range ranges {
				if n >= r[0] && n <= r[1] {
					n, found = r[1], true // on to the end of what this range has
					break
				}
			}
			if !found {
				return n, true
			}
		}
	}
	return 0, false
}

// ParseList splits a list as the kernel writes it, "0-2,7", into its ranges: first and last number of each. What is no
// number is left out.
func ParseList(list string) [][2]uint64 {
	var out [][2]uint64
	for _, part := range strings.Split(strings.TrimSpace(list), ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(lo, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(hi, 10, 16)
		}
		if err == nil {
			out = append(out, [2]uint64{a, b})
		}
	}
	return out
}
