package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// cost is what a turn took: time, and processor time of the runtime and what it waited for.
type cost struct{ wall, cpu time.Duration }

func (c *cost) add(o cost) { c.wall, c.cpu = c.wall+o.wall, c.cpu+o.cpu }

// row is one thing that is measured of every runtime.
type row struct {
	name string
	// turn does it once, by a container of that name.
	turn func(b *bundle, c *contender, id string) (cost, error)
	// shim does the same without a program of ours, in a row that has it in the first place.
	shim func(p *pod, id string) error
}

// rows, with their names for -only.
var rows = []row{
	{name: "version", turn: func(_ *bundle, c *contender, _ string) (cost, error) { return c.call("--version") }},
	{name: "run", turn: (*bundle).run},
	{name: "create+start+delete", turn: (*bundle).three},
	{name: "exec", turn: (*bundle).exec},
	{name: "run-in-shim", turn: (*bundle).run, shim: (*pod).run},
	{name: "exec-in-shim", turn: (*bundle).exec, shim: (*pod).exec},
}

func measure(o *options) (err error) {
	b, err := newBundle(o)
	if b != nil {
		defer func() { err = errors.Join(err, b.remove()) }()
	}
	if err != nil {
		return err
	}
	for i := range o.runtimes {
		c := &o.runtimes[i]
		out, _ := exec.Command(c.file, "--version").Output()
		line, _, _ := strings.Cut(string(out), "\n")
		fmt.Printf("%s: %s, %s\n", c.name, line, c.file)
		dir, err := b.configure("standing-"+c.name, "/bin/sleep", "1000000")
		if err != nil {
			return err
		}
		if _, err := c.call("--root", b.root(c), "run", "-d", "--bundle", dir, "standing-"+c.name); err != nil {
			return err
		}
		defer c.call("--root", b.root(c), "delete", "--force", "standing-"+c.name) //nolint:errcheck // what is left is removed without the runtime
	}
	p, err := newPod(b)
	if p != nil {
		defer p.close()
	}
	if err != nil {
		return err
	}
	for _, r := range rows {
		if !o.wants(r.name) {
			continue
		}
		list := o.runtimes
		if r.shim != nil {
			list = append([]contender{{name: "in-shim", pod: p}}, list[1:]...)
		}
		if err := b.compare(o, &r, list, 1); err != nil {
			return err
		}
		if o.clients > 1 && r.name != "version" && r.shim == nil {
			if err := b.compare(o, &r, list, o.clients); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *options) wants(name string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), name)
}

// compare lets the runtimes take turns, and prints what came of it.
func (b *bundle) compare(o *options, r *row, list []contender, clients int) error {
	took := make([][]cost, len(list))
	for n := -3; n < o.n; n += clients { // the first are to warm up
		for i := range list {
			i = (i + max(n, 0)) % len(list) // nobody comes always after the same
			all, err := b.together(r, &list[i], clients)
			if err != nil {
				return err
			}
			if n >= 0 {
				took[i] = append(took[i], all...)
			}
		}
	}
	title := r.name
	if clients > 1 {
		title = fmt.Sprintf("%d × %s", clients, r.name)
	}
	show(title, list, took)
	return nil
}

// together does a turn as often as said, at the same time.
func (b *bundle) together(r *row, c *contender, clients int) ([]cost, error) {
	took, errs := make([]cost, clients), make([]error, clients)
	var wg sync.WaitGroup
	for i := range clients {
		id := fmt.Sprintf("%s-%d", c.name, i)
		wg.Go(func() {
			if c.pod != nil {
				took[i], errs[i] = timed(func() error { return r.shim(c.pod, id) })
			} else {
				took[i], errs[i] = r.turn(b, c, id)
			}
		})
	}
	wg.Wait()
	return took, errors.Join(errs...)
}

// show prints a row: times in ms, and what the first needs in parts of the others'.
func show(title string, list []contender, took [][]cost) {
	fmt.Printf("\n%-22s n=%-5d least   median      p90      cpu   of least, median, cpu %s needs\n", title, len(took[0]), list[0].name)
	var first [4]float64
	for i, c := range list {
		v := summary(took[i])
		fmt.Printf("  %-24s %8.2f %8.2f %8.2f %8.2f", c.name, v[0], v[1], v[2], v[3])
		if i == 0 {
			first = v
		} else {
			fmt.Printf("   %.2f %.2f %.2f", first[0]/v[0], first[1]/v[1], first[3]/v[3])
		}
		fmt.Println()
	}
}

// summary is the least time, the median, the 90th percentile, and the median of the processor time.
func summary(took []cost) [4]float64 {
	wall, cpu := make([]time.Duration, len(took)), make([]time.Duration, len(took))
	for i, c := range took {
		wall[i], cpu[i] = c.wall, c.cpu
	}
	slices.Sort(wall)
	slices.Sort(cpu)
	n := len(wall)
	return [4]float64{ms(wall[0]), ms(wall[n/2]), ms(wall[n*9/10]), ms(cpu[n/2])}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// call runs a command of a runtime. Its standard error is a file: a container that stays would hold a pipe open.
func (c *contender) call(args ...string) (cost, error) {
	fd, err := unix.MemfdCreate("stderr", unix.MFD_CLOEXEC)
	if err != nil {
		return cost{}, os.NewSyscallError("memfd_create", err)
	}
	said := os.NewFile(uintptr(fd), "stderr")
	defer said.Close()
	cmd := exec.Command(c.file, args...)
	cmd.Stderr = said
	begun := time.Now()
	err = cmd.Run()
	took := cost{wall: time.Since(begun)}
	if err != nil {
		text := make([]byte, 4096)
		n, _ := said.ReadAt(text, 0)
		return took, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(text[:n]))
	}
	took.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return took, nil
}

// root is where a runtime keeps its state.
func (b *bundle) root(c *contender) string { return filepath.Join(b.dir, "state-"+c.name) }

// run is the whole life of a container, in one command.
func (b *bundle) run(c *contender, id string) (cost, error) {
	dir, err := b.configure(id, "/bin/true")
	if err != nil {
		return cost{}, err
	}
	return c.call("--root", b.root(c), "run", "--bundle", dir, id)
}

// three is a container's life by the commands that engines use. Its process ends between the second and the third, which
// is not counted: none of the runtimes has a part in it.
func (b *bundle) three(c *contender, id string) (cost, error) {
	dir, err := b.configure(id, "/bin/true")
	if err != nil {
		return cost{}, err
	}
	pidfile := filepath.Join(dir, "pid")
	total, err := c.call("--root", b.root(c), "create", "--bundle", dir, "--pid-file", pidfile, id)
	if err != nil {
		return cost{}, err
	}
	var pid int
	if data, err := os.ReadFile(pidfile); err != nil {
		return cost{}, err
	} else if _, err := fmt.Sscan(string(data), &pid); err != nil {
		return cost{}, err
	}
	took, err := c.call("--root", b.root(c), "start", id)
	if err != nil {
		return cost{}, err
	}
	total.add(took)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR { // it is ours: its maker has ended
			break
		}
	}
	took, err = c.call("--root", b.root(c), "delete", id)
	total.add(took)
	return total, err
}

// exec is one more process in a container that runs.
func (b *bundle) exec(c *contender, _ string) (cost, error) {
	return c.call("--root", b.root(c), "exec", "standing-"+c.name, "/bin/true")
}
