package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/sys"
)

// shown is a container's state as runc prints it.
type shown struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func (c *container) show() shown {
	s := shown{Version: specs.Version, ID: c.ID, Pid: c.Pid, Status: c.status(), Bundle: c.Bundle, Rootfs: c.Rootfs,
		Created: c.Created, Annotations: c.Annotations}
	if s.Status == statusStopped {
		s.Pid = 0
	}
	return s
}

func setupState(a *app) ([]flag, func([]string) error) {
	return nil, func(args []string) error {
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		defer c.close()
		data, err := json.MarshalIndent(c.show(), "", "  ")
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(data)
		return err
	}
}

func setupList(a *app) ([]flag, func([]string) error) {
	format, quiet := "table", false
	return []flag{
			text(&format, "format f", "FORMAT", "table or json"),
			boolean(&quiet, "quiet q", "print the IDs alone"),
		}, func([]string) error {
			list, err := a.all()
			if err != nil {
				return err
			}
			switch {
			case quiet:
				for _, s := range list {
					fmt.Println(s.ID)
				}
				return nil
			case format == "table":
				return table(list)
			case format == "json":
				return json.NewEncoder(os.Stdout).Encode(list)
			}
			return errors.New("invalid format option")
		}
}

func table(list []shown) error {
	w := tabwriter.NewWriter(os.Stdout, 12, 1, 3, ' ', 0)
	fmt.Fprint(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
	for _, s := range list {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
	}
	return w.Flush()
}

// all reads every container. What cannot be read is told of and left out.
func (a *app) all() ([]shown, error) {
	dirs, err := os.ReadDir(a.root)
	if errors.Is(err, fs.ErrNotExist) && !a.rootSet {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []shown
	for _, d := range dirs {
		info, err := d.Info()
		if err != nil || !d.IsDir() {
			continue
		}
		c, err := a.load(d.Name())
		if err != nil {
			fmt.Fprintf(os.Stderr, "load container %s: %v\n", d.Name(), err)
			continue
		}
		s := c.show()
		s.Owner = owner(info.Sys().(*syscall.Stat_t).Uid)
		out = append(out, s)
		c.close()
	}
	return out, nil
}

// owner names a user by the machine's passwd file.
func owner(uid uint32) string {
	want := strconv.FormatUint(uint64(uid), 10)
	data, _ := os.ReadFile("/etc/passwd")
	for line := range strings.Lines(string(data)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == want {
			return f[0]
		}
	}
	return "#" + want
}

func setupPs(a *app) ([]flag, func([]string) error) {
	format := "table"
	return []flag{text(&format, "format f", "FORMAT", "table or json")}, func(args []string) error {
		return a.withGroup(args[0], func(_ *container, g *cgroup.Group) error {
			pids, err := g.Pids()
			if err != nil {
				return err
			}
			switch format {
			case "json":
				if pids == nil {
					pids = []int{}
				}
				return json.NewEncoder(os.Stdout).Encode(pids)
			case "table":
				return psTable(pids, args[1:])
			}
			return errors.New("invalid format option")
		})
	}
}

// psTable has ps print its columns and leaves the container's processes in.
func psTable(pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	var out []byte
	err := sys.Spawn(func() (err error) {
		out, err = exec.Command("ps", options...).CombinedOutput()
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return errors.New("couldn't find PID field in ps output")
	}
	fmt.Println(lines[0])
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) <= column {
			continue
		}
		if pid, err := strconv.Atoi(f[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Println(line)
		}
	}
	return nil
}

func setupPause(a *app) ([]flag, func([]string) error) {
	return nil, func(args []string) error {
		return a.freeze(args[0], func(g *cgroup.Group, status string) error {
			if status == statusStopped {
				return errNotRunning
			}
			if status != statusRunning && status != statusCreated {
				return fmt.Errorf("container not running or created: %s", status)
			}
			ctx, cancel := context.WithTimeout(context.Background(), teardown)
			defer cancel()
			return g.Freeze(ctx)
		})
	}
}

func setupResume(a *app) ([]flag, func([]string) error) {
	return nil, func(args []string) error {
		return a.freeze(args[0], func(g *cgroup.Group, status string) error {
			if status != statusPaused {
				return errors.New("container not paused")
			}
			return g.Thaw()
		})
	}
}

func (a *app) freeze(id string, do func(g *cgroup.Group, status string) error) error {
	return a.withGroup(id, func(c *container, g *cgroup.Group) error {
		if err := c.lock(); err != nil {
			return err
		}
		return do(g, c.status())
	})
}
