package cli

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/runtime"
)

// joinedMaps fills in the mappings of a user namespace that the configuration joins by its path, as it
// need not repeat them. It reports whether it had to.
func joinedMaps(l *specs.Linux) (joined bool, err error) {
	for _, n := range l.Namespaces {
		if n.Type != specs.UserNamespace || n.Path == "" || len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0 {
			continue
		}
		if err := mapsOf(l, n.Path); err != nil {
			return false, fmt.Errorf("mappings of user namespace %s: %w", n.Path, err)
		}
		joined = true
	}
	return joined, nil
}

// mapsOf reads the mappings as a process in the namespace has them: there may be none but ours.
func mapsOf(l *specs.Linux, path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	look := func(pid int) (err error) {
		if l.UIDMappings, err = readMap(fmt.Sprintf("/proc/%d/uid_map", pid)); err == nil {
			l.GIDMappings, err = readMap(fmt.Sprintf("/proc/%d/gid_map", pid))
		}
		return err
	}
	self, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		return err
	}
	if st, err := ns.Stat(); err == nil && os.SameFile(self, st) { // one's own cannot be joined again
		return look(os.Getpid())
	}
	return runtime.InUserns(ns, look)
}

// readMap reads the lines "inside outside size" of a mapping, as this process's user namespace sees it.
func readMap(file string) ([]specs.LinuxIDMapping, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []specs.LinuxIDMapping
	for line := range strings.Lines(string(text)) {
		var m specs.LinuxIDMapping
		if _, err := fmt.Sscan(line, &m.ContainerID, &m.HostID, &m.Size); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", file, line, err)
		}
		out = append(out, m)
	}
	return out, nil
}
