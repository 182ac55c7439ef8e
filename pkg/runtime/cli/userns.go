package cli

import (
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// joinedMaps fills in the mappings of a user namespace that the configuration joins by its path, as it
// need not repeat them: they are those of any process in it.
func joinedMaps(l *specs.Linux) error {
	for _, n := range l.Namespaces {
		if n.Type != specs.UserNamespace || n.Path == "" || len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0 {
			continue
		}
		want, err := os.Stat(n.Path)
		if err != nil {
			return err
		}
		pid, err := processIn(want)
		if err != nil {
			return err
		}
		if pid == 0 {
			return fmt.Errorf("user namespace %s: no process is in it, so its mappings are not known. Give uidMappings and gidMappings", n.Path)
		}
		if l.UIDMappings, err = readMap(fmt.Sprintf("/proc/%d/uid_map", pid)); err != nil {
			return err
		}
		if l.GIDMappings, err = readMap(fmt.Sprintf("/proc/%d/gid_map", pid)); err != nil {
			return err
		}
	}
	return nil
}

// processIn finds a process in the user namespace that is the given file; 0 when there is none.
func processIn(ns fs.FileInfo) (int, error) {
	if self, err := os.Stat("/proc/self/ns/user"); err == nil && os.SameFile(self, ns) {
		return os.Getpid(), nil
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return 0, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	want := ns.Sys().(*syscall.Stat_t)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		var st syscall.Stat_t
		if syscall.Stat("/proc/"+name+"/ns/user", &st) == nil && st.Dev == want.Dev && st.Ino == want.Ino {
			return pid, nil
		}
	}
	return 0, nil
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
