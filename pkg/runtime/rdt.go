package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Rdt is a container's place in the resctrl filesystem: its class of service and monitoring group.
type Rdt struct {
	Dir     string `json:"dir"`               // class of service
	Mon     string `json:"mon,omitempty"`     // monitoring group
	Created bool   `json:"created,omitempty"` // Dir is named after the container and goes with it
}

// PlanRdt says where a container belongs, and makes nothing: what it returns can be recorded first. nil is
// for a configuration without intelRdt.
func PlanRdt(id string, r *specs.LinuxIntelRdt) (*Rdt, error) {
	if r == nil {
		return nil, nil
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	root := resctrlRoot(string(mountinfo))
	if root == "" {
		return nil, errs.New(errs.Unsupported, "intelRdt: no resctrl filesystem is mounted, is it a machine with RDT? Mount one: mount -t resctrl resctrl /sys/fs/resctrl")
	}
	return planRdt(root, id, r)
}

func resctrlRoot(mountinfo string) string {
	for _, line := range strings.Split(mountinfo, "\n") {
		before, after, ok := strings.Cut(line, " - ")
		if head := strings.Fields(before); ok && len(head) > 4 && strings.HasPrefix(after, "resctrl ") {
			return head[4]
		}
	}
	return ""
}

func planRdt(root, id string, r *specs.LinuxIntelRdt) (*Rdt, error) {
	p := &Rdt{Dir: filepath.Join(root, r.ClosID)}
	switch clos := r.ClosID; {
	case clos == "":
		p.Dir, p.Created = filepath.Join(root, id), true
	case clos == "/":
		p.Dir = root
	case clos == "." || clos == ".." || strings.ContainsAny(clos, "/\n\x00"):
		return nil, errs.New(errs.Invalid, "intelRdt: closID %q is no name of a class", clos)
	}
	if err := checkSchemata(r); err != nil {
		return nil, err
	}
	if r.EnableMonitoring {
		p.Mon = filepath.Join(p.Dir, "mon_groups", id)
	}
	return p, nil
}

func checkSchemata(r *specs.LinuxIntelRdt) error {
	for _, s := range append([]string{r.L3CacheSchema, r.MemBwSchema}, r.Schemata...) {
		if strings.ContainsAny(s, "\n\x00") {
			return errs.New(errs.Invalid, "intelRdt: schema %q is more than a line", s)
		}
	}
	if r.MemBwSchema != "" && !strings.HasPrefix(r.MemBwSchema, "MB:") {
		return errs.New(errs.Invalid, "intelRdt: memBwSchema %q does not begin with MB:", r.MemBwSchema)
	}
	return nil
}

// Update writes other schemata to the container's class. nil is a container without one.
func (p *Rdt) Update(r *specs.LinuxIntelRdt) error {
	if p == nil {
		return errs.New(errs.Conflict, "intelRdt: the container has no class of service. Create it with linux.intelRdt in its configuration")
	}
	if err := checkSchemata(r); err != nil {
		return err
	}
	return p.write(schemata(r))
}

// schemata are the lines of a configuration.
func schemata(r *specs.LinuxIntelRdt) (lines []string) {
	for _, s := range append([]string{r.L3CacheSchema, r.MemBwSchema}, r.Schemata...) {
		if s != "" {
			lines = append(lines, s)
		}
	}
	return lines
}

// Make makes the groups, writes the schemata, and opens the files that the container's process writes itself
// into; the caller closes them. It is for a configuration that PlanRdt has read.
func (p *Rdt) Make(r *specs.LinuxIntelRdt) ([]*os.File, error) {
	if p == nil {
		return nil, nil
	}
	lines := schemata(r)
	_, err := os.Stat(p.Dir)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case missing && !p.Created && len(lines) == 0:
		return nil, errs.New(errs.NotFound, "intelRdt: class %s does not exist, and there is no schema to make it of", p.Dir)
	case missing:
		if err := os.Mkdir(p.Dir, 0o755); err != nil {
			return nil, fmt.Errorf("intelRdt: make the class: %w", err)
		}
		err = p.write(lines)
	case err == nil && p.Created:
		err = p.write(lines)
	case err == nil:
		err = p.compare(lines)
	}
	if err != nil {
		return nil, err
	}
	dirs := []string{p.Dir}
	if p.Mon != "" {
		if err := os.Mkdir(p.Mon, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("intelRdt: make the monitoring group: %w", err)
		}
		dirs = append(dirs, p.Mon)
	}
	return openTasks(dirs)
}

func openTasks(dirs []string) ([]*os.File, error) {
	var out []*os.File
	for _, d := range dirs {
		f, err := os.OpenFile(filepath.Join(d, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			for _, f := range out {
				f.Close()
			}
			return nil, fmt.Errorf("intelRdt: %w", err)
		}
		out = append(out, f)
	}
	return out, nil
}

// Groups is how many files Make opens.
func (p *Rdt) Groups() int {
	switch {
	case p == nil:
		return 0
	case p.Mon != "":
		return 2
	}
	return 1
}

// write sets the schemata, a line each: a schema that comes later wins.
func (p *Rdt) write(lines []string) error {
	for _, l := range lines {
		f, err := os.OpenFile(filepath.Join(p.Dir, "schemata"), os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("intelRdt: %w", err)
		}
		_, err = f.WriteString(l + "\n")
		f.Close()
		if err != nil {
			return fmt.Errorf("intelRdt: schema %q: %w", l, err)
		}
	}
	return nil
}

// compare holds a class that is there already to what the container wants of it.
func (p *Rdt) compare(lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(p.Dir, "schemata"))
	if err != nil {
		return fmt.Errorf("intelRdt: %w", err)
	}
	have := map[string]bool{}
	for _, l := range strings.Split(string(data), "\n") {
		have[strings.TrimSpace(l)] = true
	}
	for _, l := range lines {
		if !have[strings.TrimSpace(l)] {
			return errs.New(errs.Conflict, "intelRdt: class %s exists, and has another schema than %q", p.Dir, l)
		}
	}
	return nil
}

// Remove removes what Make made for the container alone. It may be repeated.
func (p *Rdt) Remove() error {
	if p == nil {
		return nil
	}
	dirs := []string{p.Mon}
	if p.Created {
		dirs = append(dirs, p.Dir)
	}
	for _, d := range dirs {
		if d == "" {
			continue
		}
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("intelRdt: %w", err)
		}
	}
	return nil
}
