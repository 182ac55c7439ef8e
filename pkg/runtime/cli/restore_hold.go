package cli

import (
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/seccomp"
)

// nsFiles are the names below /proc/PID/ns.
var nsFiles = map[specs.LinuxNamespaceType]string{
	specs.CgroupNamespace: "cgroup", specs.IPCNamespace: "ipc", specs.MountNamespace: "mnt", specs.NetworkNamespace: "net",
	specs.PIDNamespace: "pid", specs.TimeNamespace: "time", specs.UserNamespace: "user", specs.UTSNamespace: "uts",
}

// hold refuses restored processes that are where the bundle does not put them. Images say themselves which namespaces their
// processes have, and images come from elsewhere: none of the processes has run yet.
func (r *restoration) hold(first int) error {
	pids, err := family(first)
	if err != nil {
		return err
	}
	var members []int
	if !r.c.NoCgroup {
		if members, err = r.group.Pids(); err != nil {
			return err
		}
	}
	for _, pid := range pids {
		if members != nil && !slices.Contains(members, pid) {
			return refused(pid, "is not in the container's cgroup")
		}
		if err := r.holdNamespaces(pid, pid == first); err != nil {
			return err
		}
	}
	return r.holdMaps(first)
}

// holdPrivileges does the same for what processes take on last. Criu does not heed an answer at this moment, so what is
// refused is killed before it is let go.
func (r *restoration) holdPrivileges() error {
	pids, err := family(r.c.Pid)
	filtered := false
	if err == nil && r.config.Linux.Seccomp != nil {
		var f seccomp.Filter
		f, err = seccomp.Compile(r.config.Linux.Seccomp, goruntime.GOARCH)
		filtered = len(f.Insns) > 0
	}
	for _, pid := range pids {
		if err == nil {
			err = r.holdStatus(pid, filtered)
		}
	}
	if err == nil {
		return nil
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL) // stopped by criu, so the pid is its own
	}
	return err
}

func refused(pid int, format string, args ...any) error {
	return fmt.Errorf("restored process %d %s: the images and the bundle do not belong together", pid, fmt.Sprintf(format, args...))
}

// family is a process and all that descend from it.
func family(first int) ([]int, error) {
	list := []int{first}
	for i := 0; i < len(list); i++ {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", list[i]))
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", list[i], t.Name()))
			if err != nil {
				return nil, err
			}
			for _, s := range strings.Fields(string(b)) {
				pid, err := strconv.Atoi(s)
				if err != nil {
					return nil, err
				}
				list = append(list, pid)
			}
		}
	}
	return list, nil
}

// holdNamespaces: where the bundle has a namespace none of the processes is in ours, and the first is in the one that is
// joined.
func (r *restoration) holdNamespaces(pid int, first bool) error {
	for _, n := range r.config.Linux.Namespaces {
		file := nsFiles[n.Type]
		if file == "" {
			continue
		}
		var ours, theirs, joined unix.Stat_t
		if err := unix.Stat("/proc/self/ns/"+file, &ours); err != nil {
			return err
		}
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, file), &theirs); err != nil {
			return err
		}
		if n.Path != "" {
			if err := unix.Stat(n.Path, &joined); err != nil {
				return &os.PathError{Op: "stat", Path: n.Path, Err: err}
			}
			if first && theirs.Ino != joined.Ino {
				return refused(pid, "is not in the %s namespace %s", n.Type, n.Path)
			}
		}
		if theirs.Ino == ours.Ino && theirs.Ino != joined.Ino && !(n.Type == specs.TimeNamespace) {
			return refused(pid, "is in the host's %s namespace", n.Type)
		}
	}
	return nil
}

// holdStatus holds a process's capabilities, no_new_privs and filter to the bundle.
func (r *restoration) holdStatus(pid int, filtered bool) error {
	p := r.config.Process
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	var allowed uint64
	if p.Capabilities != nil {
		allowed = runtime.CapabilityMask(p.Capabilities.Bounding)
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb":
			n, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return err
			}
			may := allowed
			if key == "CapPrm" || key == "CapEff" {
				may |= runtime.CapabilityMask(permitted(p))
			}
			if n&^may != 0 {
				return refused(pid, "has capabilities %#x in %s that the container has not", n&^may, key)
			}
		case "NoNewPrivs":
			if p.NoNewPrivileges && value != "1" {
				return refused(pid, "has not no_new_privs")
			}
		case "Seccomp":
			if filtered && value != "2" {
				return refused(pid, "has no seccomp filter")
			}
		}
	}
	return nil
}

func permitted(p *specs.Process) []string {
	if p.Capabilities == nil {
		return nil
	}
	return append(slices.Clone(p.Capabilities.Permitted), p.Capabilities.Inheritable...)
}

// holdMaps: a user namespace maps whom the bundle maps.
func (r *restoration) holdMaps(pid int) error {
	l := r.config.Linux
	if !has(l, specs.UserNamespace) {
		return nil
	}
	for file, want := range map[string][]specs.LinuxIDMapping{"uid_map": l.UIDMappings, "gid_map": l.GIDMappings} {
		have, err := readMap(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil {
			return err
		}
		if !slices.Equal(have, want) {
			return refused(pid, "has other mappings of users or groups than the container")
		}
	}
	return nil
}
