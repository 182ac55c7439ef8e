// Package host does a sandbox's work on the real machine: it is the Shims of pkg/sandbox.
//
// It makes cgroups by pkg/runtime/cgroup, compiles programs by pkg/runtime and hands them to the pods' shims by
// pkg/shim. Preparation happens here, in the daemon; a shim gets descriptors and launches. Everything a call opens
// is closed when it returns.
package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
)

// Config says what the machine's parts are called.
type Config struct {
	// Runtime is the path of the cri-runtime executable.
	Runtime string
	// CgroupRoot is the cgroup below which this server's own groups go: those of pods without a cgroup_parent,
	// and one for all shims.
	CgroupRoot string
	// State is the directory whose mounts Audit looks for.
	State string
	// Root is another such.
	Root string
	// ShmSize is the size of a pod's /dev/shm in bytes; 0 is 64 MiB.
	ShmSize int64
}

// Machine is the machine. Its methods may be called from several goroutines.
type Machine struct {
	cfg     Config
	cgroups *cgroup.Host
	spare   spare
}

// New finds the machine's cgroup hierarchies. The caller closes it.
func New(cfg Config) (*Machine, error) {
	h, err := cgroup.Probe()
	if err != nil {
		return nil, err
	}
	if cfg.ShmSize == 0 {
		cfg.ShmSize = 64 << 20
	}
	return &Machine{cfg: cfg, cgroups: h}, nil
}

// Close releases what New and later calls opened.
func (m *Machine) Close() {
	m.spare.close()
	m.cgroups.Close()
}

// shimsGroup is the cgroup of all shims of this server: outside of every pod, so that no pod's limit can hit a shim.
func (m *Machine) shimsGroup() string { return filepath.Join("/", m.cfg.CgroupRoot, "shims") }

// MakeCgroup makes a cgroup and sets its limits; nil sets none.
func (m *Machine) MakeCgroup(_ context.Context, path string, res *specs.LinuxResources) error {
	g, err := m.cgroups.Create(path, cgroup.CreateOptions{})
	if err != nil {
		return err
	}
	if res == nil {
		return nil
	}
	if _, ok := scopeAt(path); ok {
		res = systemd.Round(res)
	}
	return g.Apply(res)
}

// CgroupExists reports whether a hierarchy has the cgroup.
func (m *Machine) CgroupExists(path string) bool {
	g, err := m.cgroups.At(path)
	return err == nil && g.Exists()
}

// CgroupOffer tells what limits a cgroup beside the one at path can have.
func (m *Machine) CgroupOffer(path string) (*cgroup.Offer, error) {
	g, err := m.cgroups.Open(path)
	if err != nil {
		return nil, err
	}
	return g.Offer()
}

// UpdateCgroup changes limits, all or none; a memory limit below what the group needs is errs.Conflict. The
// score is set for every process of the group.
func (m *Machine) UpdateCgroup(ctx context.Context, path string, res *specs.LinuxResources, oomScoreAdj *int) error {
	g, err := m.cgroups.Open(path)
	if err != nil {
		return err
	}
	if res != nil && res.Memory != nil { // v1's kernel refuses what would kill, v2's kills
		limits, memory, check := *res, *res.Memory, true
		memory.CheckBeforeUpdate = &check
		limits.Memory, res = &memory, &limits
	}
	if u, ok := scopeAt(path); ok {
		err = systemd.Update(ctx, u, g, res)
	} else {
		err = g.Update(res)
	}
	if err != nil || oomScoreAdj == nil {
		return err
	}
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(*oomScoreAdj)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("set oom_score_adj of %d: %w", pid, err)
		}
	}
	return nil
}

// RemoveCgroup kills what is in the group and below it and removes it. Absent is no error.
func (m *Machine) RemoveCgroup(ctx context.Context, path string) error {
	g, err := m.cgroups.At(path)
	if err != nil { // nothing can be at a path that is none, and a teardown has to come to its end
		return nil //nolint:nilerr // as said
	}
	if !g.Exists() {
		return m.forget(ctx, path) // a failed unit stays without its cgroup
	}
	if err := g.Kill(ctx); err != nil {
		return err
	}
	if err := m.forget(ctx, path); err != nil {
		return err
	}
	return g.Delete(ctx)
}

// TrimCgroup removes the group and what is below it if no process is there; otherwise nothing happens.
func (m *Machine) TrimCgroup(ctx context.Context, path string) error {
	g, err := m.cgroups.At(path)
	if err != nil || !g.Exists() {
		return nil //nolint:nilerr // as in RemoveCgroup
	}
	for _, dir := range m.subtree(path) {
		sub, err := m.cgroups.At(dir)
		if err != nil {
			return err
		}
		if pids, err := sub.Pids(); err != nil || len(pids) > 0 {
			return err
		}
	}
	for _, dir := range slices.Backward(m.subtree(path)) {
		if err := m.forget(ctx, dir); err != nil {
			return err
		}
	}
	return g.Delete(ctx)
}

// subtree lists the group and the groups below it, of all hierarchies together.
func (m *Machine) subtree(path string) []string {
	seen := map[string]bool{}
	var out []string
	for _, h := range m.cgroups.Hierarchies() {
		_ = filepath.WalkDir(filepath.Join(h.Mount, path), func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil //nolint:nilerr // a group that goes away meanwhile is none
			}
			rel := "/" + strings.TrimPrefix(strings.TrimPrefix(p, h.Mount), "/")
			if !seen[rel] {
				seen[rel] = true
				out = append(out, rel)
			}
			return nil
		})
	}
	return out
}

// Namespace opens a namespace of a process.
func (m *Machine) Namespace(pid int, kind string) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "%s namespace of process %d: the process is gone", kind, pid)
	}
	return f, err
}
