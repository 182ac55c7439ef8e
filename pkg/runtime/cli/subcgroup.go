package cli

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/sys"
)

// subgroup is where exec --cgroup puts a process: in groups below the container's, which on v1 may be
// another one in each hierarchy.
type subgroup struct {
	*cgroup.Group
	host *cgroup.Host
	all  string            // below the container's group, in hierarchies that below does not name
	some map[string]string // by hierarchy
}

// parseSubgroup reads the values of --cgroup: a path, or CONTROLLER[,CONTROLLER...]:PATH for v1.
func parseSubgroup(g *cgroup.Group, h *cgroup.Host, values []string) (*subgroup, error) {
	s := &subgroup{Group: g, host: h, some: map[string]string{}}
	for _, v := range values {
		controllers, sub, named := strings.Cut(v, ":")
		if !named {
			controllers, sub = "", v
		}
		if slices.Contains(strings.Split(sub, "/"), "..") {
			return nil, fmt.Errorf("bad sub cgroup path: %s", sub)
		}
		sub = path.Clean("/" + sub)
		if !named {
			if len(values) > 1 {
				return nil, fmt.Errorf("--cgroup %s: with several, each has to name its controllers", v)
			}
			s.all = sub
			continue
		}
		for _, name := range strings.Split(controllers, ",") {
			t := hierarchyOf(h, name)
			if t == "" {
				return nil, fmt.Errorf("unknown controller %s in --cgroup %s", name, v)
			}
			if old, twice := s.some[t]; twice && old != sub {
				return nil, fmt.Errorf("--cgroup %s: the hierarchy of %s is named twice", v, name)
			}
			s.some[t] = sub
		}
	}
	return s, nil
}

// hierarchyOf is the v1 hierarchy of a controller, or the one of that name; "" when there is none.
func hierarchyOf(h *cgroup.Host, controller string) string {
	for _, t := range h.Hierarchies() {
		if !t.Unified && (t.Name == controller || "name="+t.Name == controller || slices.Contains(t.Controllers, controller)) {
			return t.Name
		}
	}
	return ""
}

func (s *subgroup) in(t *cgroup.Hierarchy) string {
	if sub, ok := s.some[t.Name]; ok {
		return sub
	}
	return s.all
}

// open opens a file of the group that the process is to be in.
func (s *subgroup) open(t *cgroup.Hierarchy, name string, flags int) (*os.File, error) {
	mount, err := os.Open(t.Mount)
	if err != nil {
		return nil, err
	}
	defer mount.Close()
	p := path.Join(s.Path(), s.in(t), name)
	f, err := sys.OpenAt(mount, strings.TrimPrefix(p, "/"), flags, 0, sys.Beneath)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("error adding pid of the process to cgroup %s%s: %w", t.Mount, path.Dir(p), unix.ENOENT)
	}
	return f, err
}

// TaskFiles opens the tasks file of every v1 hierarchy.
func (s *subgroup) TaskFiles() ([]*os.File, error) {
	var out []*os.File
	for _, t := range s.host.Hierarchies() {
		if t.Unified {
			continue
		}
		f, err := s.open(&t, "tasks", os.O_WRONLY)
		if err != nil {
			sys.CloseAll(out)
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// Dir opens the group of the unified hierarchy: nil without one. Beside v1 hierarchies it has nothing to
// limit, and need not have the group.
func (s *subgroup) Dir() (*os.File, error) {
	for _, t := range s.host.Hierarchies() {
		if !t.Unified {
			continue
		}
		f, err := s.open(&t, ".", os.O_RDONLY|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOENT) && len(s.host.Hierarchies()) > 1 {
			return s.Group.Dir()
		}
		return f, err
	}
	return nil, nil
}
