package server

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// kin is what /proc/PID/stat says of a process's relations.
type kin struct{ parent, session int }

func kinOf(pid int) (kin, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return kin{}, false
	}
	// The name in parentheses may hold anything: fields are counted from its end.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 4 {
		return kin{}, false
	}
	parent, _ := strconv.Atoi(string(f[1]))
	session, _ := strconv.Atoi(string(f[3]))
	return kin{parent, session}, true
}

// family returns pidfds, which the caller closes, of the processes that descend from root or are in its
// session, without root itself. What has detached itself by a new session and a dead parent is not found:
// that is what cgroups are for.
func family(root int) []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	all := make(map[int]kin, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if k, ok := kinOf(pid); ok {
				all[pid] = k
			}
		}
	}
	in := map[int]bool{root: true}
	for grown := true; grown; {
		grown = false
		for pid, k := range all {
			if !in[pid] && (in[k.parent] || k.session == root) {
				in[pid], grown = true, true
			}
		}
	}
	delete(in, root)
	members := make([]int, 0, len(in))
	for pid := range in {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if k, ok := kinOf(pid); !ok || k != all[pid] { // the pid may have come to mean another process
			unix.Close(fd)
			continue
		}
		members = append(members, fd)
	}
	return members
}
