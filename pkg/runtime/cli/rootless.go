package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/rootless"
)

// settleRootless reads --rootless, and finds the state directory of who is not the machine's root.
func (a *app) settleRootless(mode string) error {
	a.confined = rootless.Confined()
	a.loose = a.confined
	if mode != "" && mode != "auto" {
		on, err := strconv.ParseBool(mode)
		if err != nil {
			return fmt.Errorf("--rootless %s: it is none of auto, true and false", mode)
		}
		a.loose = on
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); !a.rootSet && dir != "" && a.ownRuntimeDir() {
		a.root, a.sticky = filepath.Join(dir, filepath.Base(defaultRoot)), true
	}
	return nil
}

// ownRuntimeDir: an ordinary user keeps containers in a directory of his own, and so does root of a user
// namespace unless he calls himself root, as in a nested machine.
func (a *app) ownRuntimeDir() bool {
	name, named := os.LookupEnv("USER")
	return a.confined && (os.Geteuid() != 0 || !named || name != "root")
}

// makeRoot makes the state directory. Below XDG_RUNTIME_DIR its sticky bit keeps it from who cleans up there.
func (a *app) makeRoot() error {
	err := os.MkdirAll(a.root, 0o700)
	if err == nil && a.sticky {
		err = os.Chmod(a.root, 0o700|os.ModeSticky)
	}
	if errors.Is(err, os.ErrPermission) && !a.rootSet && !a.sticky && a.confined {
		err = fmt.Errorf("%w. Set XDG_RUNTIME_DIR, or give --root", err)
	}
	return err
}

// prepare compiles a container's program, in a helper where this process may not open what it needs.
func (a *app) prepare(o runtime.Options) (*runtime.Prepared, error) {
	if a.confined {
		return rootless.Prepare(context.Background(), o)
	}
	return runtime.Prepare(context.Background(), o)
}

// chooseCgroup names the cgroup of a container: the configuration's, or the default one. Who is not root has
// a default one only where the cgroup he is in, or on v2 the one above, is his: "" is none.
func (a *app) chooseCgroup(configured, id string) string {
	if !a.loose || strings.Trim(configured, "/") != "" {
		return cgroupPath(configured, id)
	}
	h, err := a.hierarchies()
	if err != nil {
		return ""
	}
	own := ownCgroup()
	if own == "" || strings.HasPrefix(own, "/..") {
		return ""
	}
	list := []string{own}
	if h.Mode() == cgroup.V2 { // beside us first: our own may not hand controllers down while we are in it
		list = []string{path.Dir(own), own}
	}
	for _, dir := range list {
		if mayDivide(h, dir) {
			return path.Join(dir, id)
		}
	}
	return ""
}

// ownCgroup is this process's cgroup where it is the same in all hierarchies.
func ownCgroup() string {
	data, _ := os.ReadFile("/proc/self/cgroup")
	own := ""
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) < 3 || own != "" && own != f[2] {
			return ""
		}
		own = f[2]
	}
	return own
}

// mayDivide reports whether we may make a group below dir and move our children there.
func mayDivide(h *cgroup.Host, dir string) bool {
	return !slices.ContainsFunc(h.Hierarchies(), func(t cgroup.Hierarchy) bool {
		p := path.Join(t.Mount, dir)
		return unix.Access(p, unix.W_OK|unix.X_OK) != nil || t.Unified && unix.Access(p+"/cgroup.procs", unix.W_OK) != nil
	})
}

// without refuses what a container without a cgroup cannot have.
func (cr *creation) without() error {
	if name := limited(cr.config.Linux.Resources); name != "" {
		return fmt.Errorf("cannot set %s limit: container could not join or create cgroup (rootless needs no limits + no cgrouppath when no permission is granted for cgroups)", name)
	}
	if !cr.c.OwnPID {
		cr.app.log.warn("a container with neither a cgroup nor a PID namespace of its own: not all of its processes can be found and killed")
	}
	return nil
}

// withoutDevices are the resources but for devices, which only the machine's root may filter: the container's
// user opens no others than its creator.
func withoutDevices(res *specs.LinuxResources) *specs.LinuxResources {
	if res == nil {
		return nil
	}
	but := *res
	but.Devices = nil
	return &but
}

// limited names a controller that the resources ask for, "" for none. Devices are nobody's to limit here.
func limited(r *specs.LinuxResources) string {
	if r == nil {
		return ""
	}
	for _, l := range []struct {
		name string
		on   bool
	}{
		{"pids", r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0},
		{"memory", r.Memory != nil && *r.Memory != specs.LinuxMemory{}},
		{"cpu", r.CPU != nil && limitsCPU(*r.CPU)},
		{"cpuset", r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != "")},
		{"io", r.BlockIO != nil && limitsIO(r.BlockIO)},
		{"hugetlb", len(r.HugepageLimits) > 0},
		{"net", r.Network != nil && (r.Network.ClassID != nil || len(r.Network.Priorities) > 0)},
		{"rdma", len(r.Rdma) > 0},
		{"unified", len(r.Unified) > 0},
	} {
		if l.on {
			return l.name
		}
	}
	return ""
}

func limitsCPU(c specs.LinuxCPU) bool {
	c.Cpus, c.Mems = "", ""
	return c != specs.LinuxCPU{}
}

func limitsIO(b *specs.LinuxBlockIO) bool {
	return b.Weight != nil || b.LeafWeight != nil || len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+
		len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0
}

// dismiss ends a program that a creation which was cut short has left at its gate, or on the way there, before
// its process was recorded: where there is no cgroup, the gate is all that leads to it. Anything but the token
// ends it.
func (c *container) dismiss(ctx context.Context) error {
	told := false
	for {
		fd, err := unix.Open(filepath.Join(c.dir, launch.GateFifo), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil { // nobody reads it, or there is none
			return nil //nolint:nilerr // which is what was wanted
		}
		if !told {
			_, err = unix.Write(fd, []byte{launch.GateToken + 1})
			told = err == nil
		}
		unix.Close(fd)
		select {
		case <-ctx.Done():
			return fmt.Errorf("the program of container %s does not leave its gate: %w", c.ID, ctx.Err())
		case <-time.After(time.Millisecond): // a fifo tells its writers nothing
		}
	}
}
