// Package cgroup makes, limits, watches, kills and removes control groups by writing cgroupfs files, on
// cgroup v1, hybrid and v2 machines.
//
// A Group is one path below the mount point of every hierarchy. Everything is reached from the mount
// points' descriptors by openat2(2) with RESOLVE_BENEATH, NO_XDEV and NO_SYMLINKS, so that no path leaves
// cgroupfs, and no file is ever created: a kernel that lacks a controller says so by ENOENT. Placement of a
// process is the starter's: by CLONE_INTO_CGROUP on the unified hierarchy (Dir) and by the process itself
// writing "0" on v1's (TaskFiles). What the values mean is runtime-spec's config-linux.md; what the files
// take is the kernel's admin-guide/cgroup-v1 and cgroup-v2.rst.
//
// The package does not log, keeps no descriptors open between calls but those of the mount points, and
// links only x/sys and the runtime-spec types.
package cgroup

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Mode is how the machine has its controllers mounted.
type Mode uint8

// The modes. On a Hybrid machine the unified hierarchy stands beside v1 hierarchies and has those
// controllers that none of them has; it still freezes and kills.
const (
	V1 Mode = iota + 1
	Hybrid
	V2
)

// String is the mode as users write it.
func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case Hybrid:
		return "hybrid"
	case V2:
		return "v2"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Hierarchy is one mounted tree of cgroups.
type Hierarchy struct {
	// Name is what the hierarchy is called where cgroups are mounted: "cpu,cpuacct", "systemd" for the
	// named hierarchy, "unified" for v2.
	Name string
	// Mount is the mount point.
	Mount string
	// Controllers are those the hierarchy has; none for a named one.
	Controllers []string
	// Unified is true for cgroup v2.
	Unified bool
}

type hierarchy struct {
	Hierarchy
	root int // O_PATH descriptor of the mount point
}

// Host is the machine's cgroup hierarchies. It is safe for use by many goroutines.
type Host struct {
	mode  Mode
	usual bool
	trees []*hierarchy
	hook  func(op, file, value string) error // tests see what is done to which file, and let it fail

	mu       sync.Mutex
	programs map[string]int // loaded device programs by their instructions
}

// Probe finds the hierarchies mounted in the caller's mount namespace. Close releases their descriptors.
// A machine without any is errs.Unsupported.
func Probe() (*Host, error) {
	if list := usual(usualPlace); list != nil {
		h, err := open(list)
		if err == nil {
			h.usual = true
		}
		return h, err
	}
	text, err := sys.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	return open(parseMountinfo(string(text)))
}

// open opens the mount points and settles the mode.
func open(mounted []Hierarchy) (*Host, error) {
	h := &Host{programs: map[string]int{}}
	v1 := false
	for _, m := range mounted {
		fd, err := unix.Open(m.Mount, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // another mount hides it
		}
		t := &hierarchy{m, fd}
		if m.Unified {
			d := dir{fd: fd, host: h}
			list, err := d.read("cgroup.controllers")
			if err != nil {
				unix.Close(fd)
				continue
			}
			t.Controllers = strings.Fields(list)
		}
		v1 = v1 || !m.Unified && len(m.Controllers) > 0
		h.trees = append(h.trees, t)
	}
	switch unified := h.unified() != nil; {
	case v1 && unified:
		h.mode = Hybrid
	case v1:
		h.mode = V1
	case unified:
		h.mode = V2
	default:
		h.Close()
		return nil, errs.New(errs.Unsupported, "find cgroup mounts: no cgroup file system with controllers is mounted. Mount cgroup2 on /sys/fs/cgroup")
	}
	return h, nil
}

// Close releases the host's descriptors. Its Groups cannot be used afterwards.
func (h *Host) Close() {
	for _, t := range h.trees {
		unix.Close(t.root)
	}
	h.trees = nil
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fd := range h.programs {
		unix.Close(fd)
	}
	clear(h.programs)
}

// Mode is how the machine has its controllers mounted.
func (h *Host) Mode() Mode { return h.mode }

// Usual reports that every hierarchy is mounted below /sys/fs/cgroup, whole and under its name.
func (h *Host) Usual() bool { return h.usual }

// Hierarchies lists what is mounted, v1 before v2. Who mounts cgroups in a container needs it.
func (h *Host) Hierarchies() []Hierarchy {
	var out []Hierarchy
	for _, t := range h.trees {
		c := t.Hierarchy
		c.Controllers = slices.Clone(c.Controllers)
		out = append(out, c)
	}
	return out
}

// Has reports whether any hierarchy has the controller ("cpu", "memory", "pids", …). Devices, freezer and
// perf_event have no controller on v2; of these, v2 always has the function.
func (h *Host) Has(controller string) bool {
	t := h.tree(controller)
	if t == nil && h.unified() != nil {
		return controller == "devices" || controller == "freezer"
	}
	return t != nil
}

// tree is the hierarchy with the controller, nil when there is none.
func (h *Host) tree(controller string) *hierarchy {
	for _, t := range h.trees {
		if slices.Contains(t.Controllers, controller) {
			return t
		}
	}
	return nil
}

// unified is the v2 hierarchy, nil when there is none.
func (h *Host) unified() *hierarchy {
	for _, t := range h.trees {
		if t.Unified {
			return t
		}
	}
	return nil
}

// parseMountinfo lists the cgroup mounts of a mountinfo file, each hierarchy once, v1 first. Of several
// mounts of one hierarchy it takes the one below /sys/fs/cgroup.
func parseMountinfo(text string) []Hierarchy {
	var v1, v2 []Hierarchy
	add := func(list *[]Hierarchy, m Hierarchy) {
		i := slices.IndexFunc(*list, func(o Hierarchy) bool { return o.Name == m.Name })
		switch {
		case i < 0:
			*list = append(*list, m)
		case !strings.HasPrefix((*list)[i].Mount, "/sys/fs/cgroup"):
			(*list)[i] = m
		}
	}
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		if !strings.HasPrefix(right, "cgroup") { // a node has hundreds of others
			continue
		}
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		mount := unescape(f[4])
		switch g[0] {
		case "cgroup2":
			add(&v2, Hierarchy{Name: "unified", Mount: mount, Unified: true})
		case "cgroup":
			if m := v1Hierarchy(g[2]); m.Name != "" {
				m.Mount = mount
				add(&v1, m)
			}
		}
	}
	return append(v1, v2...)
}

// v1Hierarchy reads the controllers of a v1 mount from its super block options.
func v1Hierarchy(options string) Hierarchy {
	var m Hierarchy
	for _, o := range strings.Split(options, ",") {
		if name, ok := strings.CutPrefix(o, "name="); ok {
			m.Name = name
			continue
		}
		switch o {
		case "rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "nofavordynmods":
		default:
			if !strings.Contains(o, "=") { // release_agent=…
				m.Controllers = append(m.Controllers, o)
			}
		}
	}
	if len(m.Controllers) > 0 {
		m.Name = strings.Join(m.Controllers, ",")
	}
	return m
}

// unescape undoes mountinfo's octal escapes of blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Disabled is a machine without hierarchies: its groups can be made and removed, and nothing comes of it.
func Disabled() *Host { return &Host{} }
