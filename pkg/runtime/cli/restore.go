package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/criu"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/sys"
)

// restoration is what restore is told: a creation whose processes criu makes.
type restoration struct {
	creation
	criuFlags
	hooked   bool // hooks know of it
	opts     *rpc.CriuOpts
	files    []*os.File // criu's
	reopened []*os.File // its directories, in its mount namespace
}

func setupRestore(a *app) ([]flag, func([]string) error) {
	r := &restoration{creation: creation{app: a, stays: true}}
	flags := append(r.criuFlags.flags(),
		text(&r.bundle, "bundle b", "DIR", "the bundle's directory (default: the current one)"),
		text(&r.consoleSocket, "console-socket", "PATH", "unix socket that receives the terminal's master"),
		text(&r.pidFile, "pid-file", "FILE", "file that receives the process ID"),
		boolean(&r.detach, "detach d", "leave the container running and return"),
		boolean(&r.noSubreaper, "no-subreaper", "do not adopt the container's orphans"),
		boolean(&r.noPivot, "no-pivot", "taken for runc's sake: criu enters the root filesystem its own way"),
		text(&r.lsmProfile, "lsm-profile", "TYPE:NAME", "security profile to restore with"),
		text(&r.lsmMounts, "lsm-mount-context", "CONTEXT", "security context of mounts to restore with"))
	return flags, func(args []string) error {
		r.id = args[0]
		code, err := r.do()
		if err != nil {
			return fmt.Errorf("%s restore failed: %w", a.name, err)
		}
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	}
}

// do restores the container and, unless detached, stays until it has ended. What fails takes back what was made.
func (r *restoration) do() (code int, err error) {
	if err := r.read(); err != nil {
		return 0, err
	}
	if !has(r.config.Linux, specs.MountNamespace) {
		return 0, errors.New("a container without a mount namespace cannot be restored")
	}
	tool, err := criu.Find()
	if err != nil {
		return 0, err
	}
	defer r.criuFlags.close()
	if err := r.open(restoreLog, "stats-restore"); err != nil {
		return 0, err
	}
	if r.opts, err = r.criuFlags.options(restoreLog, r.config.Annotations); err != nil {
		return 0, err
	}
	if err := r.claim(); err != nil {
		return 0, err
	}
	defer r.c.close()
	defer func() {
		if err == nil {
			return
		}
		hooks := r.config.Hooks
		if !r.hooked {
			hooks = nil
		}
		r.c.undo(hooks)
	}()
	if err := r.limit(); err != nil {
		return 0, err
	}
	if err := r.restore(tool); err != nil {
		return 0, criu.Explain(err, r.work, restoreLog)
	}
	defer r.proc.Close()
	if r.detach {
		return 0, nil
	}
	return r.stay()
}

// restore has criu make the container's processes, and takes the first of them over.
func (r *restoration) restore(tool *criu.Criu) error {
	var err error
	if r.console, err = newConsole(r.config.Process.Terminal, r.detach, r.consoleSocket); err != nil {
		return err
	}
	r.c.Stdio = r.console.names()
	if err := r.request(); err != nil {
		return err
	}
	defer func() { sys.CloseAll(r.files); sys.CloseAll(r.reopened) }()
	s := &criu.Session{Stdio: r.console.stdio, Files: r.files, Thread: r.enter, Started: r.started, Notify: r.notified}
	if !r.c.NoCgroup {
		if s.Cgroup, err = r.group.Dir(); err != nil {
			return err
		}
	}
	if s.Cgroup != nil {
		defer s.Cgroup.Close()
	}
	if r.opts.GetManageCgroupsMode() == rpc.CriuCgMode_IGNORE && has(r.config.Linux, specs.CgroupNamespace) {
		s.Unshare = unix.CLONE_NEWCGROUP // criu then leaves its processes in its own
	}
	if !r.detach {
		r.relay = newRelay()
	}
	kind := rpc.CriuReqType_RESTORE
	_, err = s.Run(tool, &rpc.CriuReq{Type: &kind, Opts: r.opts})
	r.console.started()
	_, _ = os.Remove(r.root()), os.Remove(r.nullDir()) // what was mounted there was so for criu alone
	if err != nil {
		return err
	}
	if r.c.Pid == 0 {
		return errors.New("criu restored no process")
	}
	if r.proc, err = launch.Adopt(r.c.Pid); err != nil {
		return err
	}
	if err := unix.Flock(int(r.c.file.Fd()), unix.LOCK_UN); err != nil {
		return os.NewSyscallError("flock", err)
	}
	return writePidFile(r.pidFile, r.c.Pid)
}

// request fills in what criu is asked for: mounts, namespaces and stdio are those of the live bundle and of the
// caller, under the names that the images have for them.
func (r *restoration) request() error {
	o := r.opts
	root := r.root()
	o.Root, o.RstSibling, o.EvasiveDevices = &root, ptr(true), ptr(true)
	if r.lsmProfile != "" {
		o.LsmProfile = &r.lsmProfile
	}
	if r.lsmMounts != "" {
		o.LsmMountContext = &r.lsmMounts
	}
	rootfs, err := os.Open(r.c.Rootfs)
	if err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	defer rootfs.Close()
	mounts, err := outerMounts(r.config, r.bundle, rootfs, r.host, r.c.Cgroup)
	if err != nil {
		return err
	}
	for _, m := range append(mounts, outer{nullDevice, filepath.Join(r.nullDir(), "null")}) {
		o.ExtMnt = append(o.ExtMnt, &rpc.ExtMountMap{Key: ptr(m.dest), Val: ptr(m.source)})
	}
	if r.files, err = joinedNamespaces(o, r.config.Linux.Namespaces); err != nil {
		return err
	}
	data, err := criu.ReadFile(r.images, descriptorsFile)
	if err != nil {
		return err
	}
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return fmt.Errorf("%s: %w", descriptorsFile, err)
	}
	for fd, name := range names {
		if fd <= 2 && r.console.stdio[fd] != nil && (strings.HasPrefix(name, "pipe:[") || strings.HasPrefix(name, "file[")) {
			o.InheritFd = append(o.InheritFd, &rpc.InheritFd{Key: ptr(name), Fd: ptr(int32(fd))})
		}
	}
	return nil
}

// root is where criu finds the root filesystem: it wants a mount, in a directory that nothing covers.
func (r *restoration) root() string { return filepath.Join(r.c.dir, "criu-root") }

func (r *restoration) nullDir() string { return filepath.Join(r.c.dir, "criu-null") }

// started tells criu which cgroups it is in: the container's.
func (r *restoration) started(pid int) error {
	if r.c.NoCgroup {
		return nil
	}
	if err := r.adopt(pid); err != nil {
		return err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			r.opts.CgRoot = append(r.opts.CgRoot, &rpc.CgroupRoot{Ctrl: &f[1], Path: &f[2]})
		}
	}
	return nil
}

func (r *restoration) notified(script string, pid int, file *os.File) error {
	r.app.log.debugf("criu: %s", script)
	switch script {
	case "setup-namespaces":
		if !r.foreignNet() {
			if err := runtime.LoopbackUp(pid); err != nil {
				return err
			}
		}
		r.c.Pid, r.hooked = pid, true
		return r.c.runHooks(r.config.Hooks, statusCreating, hooksBefore)
	case "post-restore": // all processes are there, and none of them runs
		return r.restored(pid)
	case "pre-resume": // they have become what the images say, and still none of them runs
		return r.holdPrivileges()
	case "orphan-pts-master":
		if file != nil {
			return r.console.handOver(file)
		}
	}
	if file != nil {
		file.Close()
	}
	return nil
}

// foreignNet reports that the container has not a network namespace of its own, made just now.
func (r *restoration) foreignNet() bool {
	for _, n := range r.config.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			return n.Path != ""
		}
	}
	return true
}

// restored holds the processes to the bundle, and records the first.
func (r *restoration) restored(pid int) error {
	if err := r.hold(pid); err != nil {
		return err
	}
	var err error
	if r.c.Start, _, err = procStat(pid); err != nil {
		return err
	}
	r.c.Pid, r.c.Created = pid, time.Now().UTC()
	return r.c.save()
}
