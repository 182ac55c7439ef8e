package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// Audit compares the machine with the pods that should be on it.
func (m *Machine) Audit(ctx context.Context, live []sandbox.LivePod) ([]sandbox.Problem, error) {
	a := &audit{m: m, cgroups: map[string]bool{}, shims: map[int]bool{}}
	for _, p := range live {
		a.expect(p)
	}
	err := errors.Join(a.ownCgroups(), a.units(ctx), a.shimProcesses(), a.mounts())
	return a.found, err
}

type audit struct {
	m       *Machine
	cgroups map[string]bool // that may exist
	shims   map[int]bool
	found   []sandbox.Problem
}

func (a *audit) bad(kind, subject, format string, args ...any) {
	a.found = append(a.found, sandbox.Problem{Kind: kind, Subject: subject, Detail: fmt.Sprintf(format, args...)})
}

// expect notes what the pod may have and looks for what it must have and must not.
func (a *audit) expect(p sandbox.LivePod) {
	if p.ShimPid != 0 {
		a.shims[p.ShimPid] = true
		if !p.Over && !alive(p.ShimPid) {
			a.bad("process", "pod "+p.ID, "its shim, process %d, does not live", p.ShimPid)
		}
	}
	if p.HolderPid != 0 && !alive(p.HolderPid) {
		a.bad("process", "pod "+p.ID, "its holder, process %d, does not live", p.HolderPid)
	}
	if p.CgroupPath != "" {
		a.cgroups[p.Parent], a.cgroups[p.CgroupPath] = true, true
	}
	for _, c := range p.Containers {
		if c.Pid != 0 && !alive(c.Pid) {
			a.bad("process", "container "+c.ID, "it is recorded as running, and process %d does not live", c.Pid)
		}
		if c.CgroupPath != "" {
			a.cgroups[c.CgroupPath] = true
		}
	}
	for _, path := range p.Gone {
		if a.m.CgroupExists(path) {
			a.bad("cgroup", path, "pod %s is torn down", p.ID)
		}
	}
}

// alive reports whether the process exists and is no zombie.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, ok := bytes.Cut(data[bytes.LastIndexByte(data, ')'):], []byte(" "))
	return ok && len(after) > 0 && after[0] != 'Z' && after[0] != 'X'
}

// ownCgroups looks below this server's own cgroup for groups that nothing explains.
func (a *audit) ownCgroups() error {
	for _, root := range []string{filepath.Join("/", a.m.cfg.CgroupRoot), sandbox.Slice(a.m.cfg.CgroupRoot)} {
		for _, path := range a.m.subtree(root) {
			if path == root || path == a.m.shimsGroup() || a.explained(path) {
				continue
			}
			a.bad("cgroup", path, "no pod or container has it")
		}
	}
	return nil
}

// explained reports whether the group is one of ours, above one, or made by a container below its own.
func (a *audit) explained(path string) bool {
	for own := range a.cgroups {
		if path == own || strings.HasPrefix(own, path+"/") {
			return true
		}
		if _, scope := scopeAt(own); strings.HasPrefix(path, own+"/") && (scope || len(filepath.Base(own)) == idLength) {
			return true
		}
	}
	return false
}

const idLength = 64

// shimProcesses looks in the shims' cgroup for processes that are no pod's shim.
func (a *audit) shimProcesses() error {
	g, err := a.m.cgroups.Open(a.m.shimsGroup())
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if !a.shims[pid] && alive(pid) {
			a.bad("process", fmt.Sprintf("process %d", pid), "it is a shim or started by one, and no pod has it")
		}
	}
	return nil
}

// mounts looks for mounts in the state directories: all of ours are detached or in namespaces of their own.
func (a *audit) mounts() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		for _, dir := range []string{a.m.cfg.State, a.m.cfg.Root} {
			if dir != "" && strings.HasPrefix(fields[4], filepath.Clean(dir)+"/pods/") {
				a.bad("mount", fields[4], "nothing of a pod is mounted there by this server")
			}
		}
	}
	return s.Err()
}
