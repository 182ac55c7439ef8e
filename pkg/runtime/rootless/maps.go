package rootless

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// hasRoot reports whether the mappings have user (or group) 0.
func hasRoot(maps []specs.LinuxIDMapping) bool {
	return slices.ContainsFunc(maps, func(m specs.LinuxIDMapping) bool { return m.ContainerID == 0 && m.Size > 0 })
}

// self reports whether the mappings are what any user may write: his own id, and nothing else.
func self(maps []specs.LinuxIDMapping, id int) bool {
	return len(maps) == 1 && maps[0].Size == 1 && int64(maps[0].HostID) == int64(id)
}

// writeMaps gives the new user namespace of a process its mappings. Root of a user namespace writes them; a
// user may write his own id, his own group only with setgroups(2) denied; everything else is for newuidmap
// and newgidmap, which know what /etc/subuid and /etc/subgid grant him.
func writeMaps(pid int, l *specs.Linux) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	root := os.Geteuid() == 0
	if root || self(l.GIDMappings, os.Getegid()) {
		if !root {
			if err := os.WriteFile(dir+"setgroups", []byte("deny"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := writeMap(dir+"gid_map", l.GIDMappings); err != nil {
			return err
		}
	} else if err := runMapper("newgidmap", "/etc/subgid", pid, l.GIDMappings); err != nil {
		return err
	}
	if root || self(l.UIDMappings, os.Geteuid()) {
		return writeMap(dir+"uid_map", l.UIDMappings)
	}
	return runMapper("newuidmap", "/etc/subuid", pid, l.UIDMappings)
}

func writeMap(file string, maps []specs.LinuxIDMapping) error {
	var b strings.Builder
	for _, m := range maps {
		fmt.Fprintln(&b, m.ContainerID, m.HostID, m.Size)
	}
	if err := os.WriteFile(file, []byte(b.String()), 0); err != nil {
		var cause error = err
		var pe *fs.PathError
		if errors.As(err, &pe) {
			cause = pe.Err
		}
		return fmt.Errorf("map %s in the user namespace (%s): %w", mapText(maps), strings.TrimSuffix(file[strings.LastIndexByte(file, '/')+1:], "_map"), cause)
	}
	return nil
}

func mapText(maps []specs.LinuxIDMapping) string {
	text := make([]string, len(maps))
	for i, m := range maps {
		text[i] = fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size)
	}
	return strings.Join(text, " ")
}

// runMapper has a privileged program of the shadow suite write a map.
func runMapper(name, granted string, pid int, maps []specs.LinuxIDMapping) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return errs.New(errs.Unsupported, "map more than one's own user in the user namespace: %s is not on PATH: %w. Install the package uidmap (shadow-utils), or map one's own ID alone", name, err)
	}
	args := []string{strconv.Itoa(pid)}
	for _, m := range maps {
		for _, n := range []uint32{m.ContainerID, m.HostID, m.Size} {
			args = append(args, strconv.FormatUint(uint64(n), 10))
		}
	}
	cmd := exec.Command(path, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := sys.Spawn(cmd.Run); err != nil {
		hint := "The IDs must be granted to the user in " + granted
		if st, e := os.Stat(path); e == nil && st.Mode()&fs.ModeSetuid == 0 && !hasFileCaps(path) {
			hint = "It is neither setuid root nor has it file capabilities, so that it may map nothing"
		}
		return fmt.Errorf("map %s in the user namespace: %s: %w: %s. %s", mapText(maps), path, err, strings.TrimSpace(out.String()), hint)
	}
	return nil
}

func hasFileCaps(path string) bool {
	n, err := unix.Getxattr(path, "security.capability", nil)
	return err == nil && n > 0
}
