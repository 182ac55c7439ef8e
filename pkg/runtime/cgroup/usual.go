package cgroup

import (
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// usualPlace is where cgroups are mounted: v2 itself, or a directory for each v1 hierarchy, named as /proc/self/cgroup
// names it (systemd's layout, which all others have taken over).
const usualPlace = "/sys/fs/cgroup"

// rootIno is the inode of the root of a hierarchy (kernfs numbers from it): a mount that begins elsewhere, as in a
// container, shows another.
const rootIno = 1

// usual finds the hierarchies where they usually are, each whole. Nil: somewhere one is not, and only the mount table
// knows, which is long on a node with many containers and takes the kernel a microsecond for each line.
func usual(place string) []Hierarchy {
	if root(place) == unix.CGROUP2_SUPER_MAGIC {
		return []Hierarchy{{Name: "unified", Mount: place, Unified: true}}
	}
	text, err := sys.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	var out []Hierarchy
	unified := false // has been mounted somewhere, since the machine is up (cgrp_dfl_visible of the kernel)
	for line := range strings.Lines(string(text)) {
		_, rest, _ := strings.Cut(line, ":")
		what, _, _ := strings.Cut(rest, ":")
		if what == "" {
			unified = true
			continue
		}
		name, named := strings.CutPrefix(what, "name=")
		h := Hierarchy{Name: name, Mount: path.Join(place, name)}
		if !named {
			h.Controllers = strings.Split(what, ",")
		}
		if strings.ContainsAny(what, "/=") != named || strings.Contains(name, "/") || root(h.Mount) != unix.CGROUP_SUPER_MAGIC {
			return nil
		}
		out = append(out, h)
	}
	slices.Reverse(out) // from the one mounted first
	if !unified || len(out) == 0 {
		return out
	}
	m := path.Join(place, "unified")
	if root(m) != unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	return append(out, Hierarchy{Name: "unified", Mount: m, Unified: true})
}

// root is the type of a file system that is there from its root on, 0 otherwise.
func root(dir string) int64 {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return 0
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC && fs.Type != unix.CGROUP_SUPER_MAGIC {
		return 0
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || st.Ino != rootIno {
		return 0
	}
	return fs.Type
}
