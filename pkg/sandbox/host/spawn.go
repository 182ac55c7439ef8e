package host

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/shim"
	"github.com/cri-server/cri-server/pkg/sys"
)

// place is where shims are started: the open files of their cgroup.
type place struct {
	dir   *os.File
	tasks []*os.File
}

// shimPlace opens the shims' cgroup, making it.
func (m *Machine) shimPlace() (*place, error) {
	g, err := m.cgroups.Create(m.shimsGroup(), cgroup.CreateOptions{})
	if err != nil {
		return nil, err
	}
	dir, err := g.Dir()
	if err != nil {
		return nil, err
	}
	tasks, err := g.TaskFiles()
	if err != nil {
		sys.CloseAll([]*os.File{dir})
		return nil, err
	}
	return &place{dir, tasks}, nil
}

func (p *place) close() { sys.CloseAll(append(p.tasks, p.dir)) }

// Spawn starts the shim of a pod.
func (m *Machine) Spawn(ctx context.Context, podID, dir string, shm bool) (sandbox.Shim, error) {
	p, err := m.shimPlace()
	if err != nil {
		return nil, err
	}
	defer p.close()
	cfg := shim.SpawnConfig{PodID: podID, Exe: m.cfg.Runtime, Dir: dir, Cgroup: p.dir, TaskFiles: p.tasks}
	if shm {
		cfg.ShmSize = m.cfg.ShmSize
	}
	c, err := shim.Spawn(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return newConn(m, c), nil
}

// Dial connects to the shim that lives at dir.
func (m *Machine) Dial(ctx context.Context, _, dir string) (sandbox.Shim, error) {
	c, err := shim.Dial(ctx, dir)
	if err != nil {
		return nil, err
	}
	return newConn(m, c), nil
}

// EndShim kills the pod's shim if it still lives.
func (m *Machine) EndShim(_ context.Context, podID string, pid int) error {
	if pid <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil //nolint:nilerr // it is gone
	}
	defer unix.Close(fd)
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(cmdline, []byte("--pod="+podID)) {
		return nil //nolint:nilerr // it is gone, or another's
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill shim (process %d): %w", pid, err)
	}
	return nil
}

// ExitRecord reads the exit record in a container's run directory.
func (m *Machine) ExitRecord(dir string) (sandbox.Exit, bool) {
	r, err := shim.ReadExit(dir)
	if err != nil {
		return sandbox.Exit{}, false
	}
	return sandbox.Exit{Code: int32(r.ExitCode), At: r.FinishedAt, OOMKilled: r.OOMKilled}, true
}

// Shm says where the containers of a pod have their /dev/shm from.
func (m *Machine) Shm(string, bool) string { return ShmPath }

// pollable returns f as a file whose deadlines work. f stays the caller's.
func pollable(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, ferr := -1, error(nil)
	if err := rc.Control(func(p uintptr) { fd, ferr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if ferr == nil {
		if ferr = unix.SetNonblock(fd, true); ferr != nil {
			unix.Close(fd)
		}
	}
	if ferr != nil {
		return nil, os.NewSyscallError("fcntl", ferr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
