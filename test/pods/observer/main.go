// Command observer is what a container of a shared PID namespace can see of its neighbours: it reads the /proc entries of
// every process but itself, over and over, and prints what should not be there.
//
//	observer FORBIDDEN...
//
// FORBIDDEN are paths that exist on the host and in no container. It ends on SIGTERM with a line that says how much it saw.
// A process under observation is either a program of the runtime (a sealed memory file that is not running its container's
// command yet), the pod's holder, or a command from an image that has /etc/pods-test.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	o := &observer{self: os.Getpid(), forbidden: os.Args[1:], told: map[string]bool{}, exes: map[string]int{}}
	fmt.Println("observing")
	for {
		select {
		case <-stop:
			fmt.Printf("done: %d rounds, executables %v, %d processes that held a report pipe\n", o.rounds, o.exes, o.reporting)
			return
		default:
			o.round()
		}
	}
}

type observer struct {
	self      int
	forbidden []string
	rounds    int
	reporting int
	exes      map[string]int // executables seen, and how often
	told      map[string]bool
}

// finding prints what should not be there, each thing once.
func (o *observer) finding(pid int, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !o.told[text] {
		o.told[text] = true
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		fmt.Printf("FINDING process %d (%s): %s\n", pid, bytes.TrimSpace(comm), text)
	}
}

func (o *observer) round() {
	o.rounds++
	f, err := os.Open("/proc")
	if err != nil {
		panic(err)
	}
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		panic(err)
	}
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && pid != o.self {
			o.look(pid, "/proc/"+n)
		}
	}
}

// look reads one process. It may change or end at any moment: what cannot be read is not seen.
func (o *observer) look(pid int, dir string) {
	exe, err := os.Readlink(dir + "/exe")
	if err == nil {
		o.exes[exe]++
		if !allowedFile(exe) {
			o.finding(pid, "executable %s", exe)
		}
	}
	o.files(pid, dir)
	for _, link := range []string{"/root", "/cwd"} {
		o.root(pid, dir+link, link)
	}
	o.memory(pid, dir)
}

// allowedFile says whether a path may be mapped or executed: a sealed program, or a file of the test's image.
func allowedFile(name string) bool {
	name = strings.TrimSuffix(name, " (deleted)")
	return strings.HasPrefix(name, "/memfd:") || slices.Contains([]string{"/bin/busybox", "/bin/observer"}, name)
}

// files holds the descriptors to stdio and the write end of a pipe.
func (o *observer) files(pid int, dir string) {
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return
	}
	for _, fd := range fds {
		to, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err != nil {
			continue
		}
		info, err := os.ReadFile(dir + "/fdinfo/" + fd.Name())
		number, _ := strconv.Atoi(fd.Name())
		switch {
		case number <= 2 && (strings.HasPrefix(to, "pipe:") || to == "/dev/null"):
		case number <= 2 && to == "/null" && err != nil: // its container's, whose /dev went with it before the path was told
		case strings.HasPrefix(to, "pipe:") && err != nil: // closed between the two looks
		case strings.HasPrefix(to, "pipe:") && writeOnly(info):
			o.reporting++
		default:
			o.finding(pid, "descriptor %s is %s, %.60q", fd.Name(), to, info)
		}
	}
}

func writeOnly(fdinfo []byte) bool {
	_, rest, ok := strings.Cut(string(fdinfo), "flags:")
	if !ok {
		return false
	}
	line, _, _ := strings.Cut(rest, "\n")
	flags, err := strconv.ParseInt(strings.TrimSpace(line), 8, 64)
	return err == nil && flags&syscall.O_ACCMODE == syscall.O_WRONLY
}

// root looks for the host below a link: a path that only it has, or a root that is neither a container's nor empty.
func (o *observer) root(pid int, link, name string) {
	names, err := readdir(link)
	if err != nil {
		return
	}
	for _, f := range o.forbidden {
		if _, err := os.Lstat(link + f); err == nil {
			o.finding(pid, "%s leads to the host: it has %s", name, f)
		}
	}
	if len(names) == 0 {
		return // the holder's
	}
	if _, err := os.Lstat(link + "/etc/pods-test"); err != nil {
		if again, err := readdir(link); err != nil || !slices.Equal(names, again) {
			return // it changed meanwhile
		}
		o.finding(pid, "%s is no container's: it has %s", name, strings.Join(names, " "))
	}
}

func readdir(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// small is more than a program of the runtime maps, and less than any process of the host.
const small = 512 << 10

// memory holds the mappings of a process: files of the image or the sealed program, and no more than a program has.
// What is mapped of a program is read, and must not be a Go process's.
func (o *observer) memory(pid int, dir string) {
	maps, err := os.ReadFile(dir + "/maps")
	if err != nil || len(maps) == 0 {
		return
	}
	program, total := false, uint64(0)
	type area struct{ from, to uint64 }
	var areas []area
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		var a area
		if _, err := fmt.Sscanf(f[0], "%x-%x", &a.from, &a.to); err != nil {
			continue
		}
		if len(f) > 5 && strings.HasPrefix(f[5], "/") {
			if name := strings.Join(f[5:], " "); !allowedFile(name) {
				o.finding(pid, "it has %s mapped", name)
			}
			program = program || strings.HasPrefix(f[5], "/memfd:")
		}
		if len(f) > 1 && f[1][0] == 'r' && (len(f) < 6 || f[5] != "[vsyscall]") {
			total += a.to - a.from
			areas = append(areas, a)
		}
	}
	if !program {
		return
	}
	if total > small {
		o.finding(pid, "a program has %d bytes mapped", total)
	}
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return
	}
	defer mem.Close()
	for _, a := range areas {
		buf := make([]byte, min(a.to-a.from, small))
		n, _ := mem.ReadAt(buf, int64(a.from))
		for _, trace := range []string{"Go buildinf", "cri-runtime", "runtime.main"} {
			if bytes.Contains(buf[:n], []byte(trace)) {
				o.finding(pid, "the memory of a program has %q in it", trace)
			}
		}
	}
}
