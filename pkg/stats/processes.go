package stats

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// processes is what /proc says of a container's processes.
type processes struct {
	count, files, sockets uint64
	softFiles             uint64 // soft limit of open files of the first process, 0 when unlimited or unknown
}

// processes counts; processes that end meanwhile are left out.
func (c *Collector) processes(pids []int, first int) processes {
	out := processes{count: uint64(len(pids))}
	for _, pid := range pids {
		dir := filepath.Join(c.Proc, strconv.Itoa(pid), "fd")
		names, err := readNames(dir)
		if err != nil {
			continue
		}
		out.files += uint64(len(names))
		for _, n := range names {
			if target, err := os.Readlink(filepath.Join(dir, n)); err == nil && strings.HasPrefix(target, "socket:") {
				out.sockets++
			}
		}
	}
	out.softFiles = c.softFileLimit(first)
	return out
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (c *Collector) softFileLimit(pid int) uint64 {
	f, err := os.Open(filepath.Join(c.Proc, strconv.Itoa(pid), "limits"))
	if err != nil {
		return 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		rest, ok := strings.CutPrefix(sc.Text(), "Max open files")
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			n, _ := strconv.ParseUint(fields[0], 10, 64)
			return n
		}
	}
	return 0
}
