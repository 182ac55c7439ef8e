package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/cli/internal/decode"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
	"github.com/cri-server/cri-server/pkg/sys"
)

// teardown bounds the removal of a container: a process in an uninterruptible wait must not hold the
// command line for ever.
const teardown = 30 * time.Second

// creation is what create and run are told.
type creation struct {
	app           *app
	id            string
	bundle        string
	consoleSocket string
	pidfdSocket   string
	pidFile       string
	noPivot       bool
	noKeyring     bool
	noSubreaper   bool
	preserve      int
	detach        bool
	keep          bool
	stays         bool // run: this process, not start, opens the gate
	noProcess     bool // create: the configuration says nothing of what to run

	c          *container
	config     *specs.Spec
	text       []byte     // of the configuration, nil where what we run is not what it says
	extra      []*os.File // of the caller, for the process
	extraEnv   []string   // that goes with them
	cgroup     string     // where its cgroup is to be
	unit       *systemd.Unit
	scope      *systemd.Scope
	properties []systemd.Property // that the configuration asks for
	group      *cgroup.Group
	host       *cgroup.Host
	prep       *runtime.Prepared
	proc       *launch.Process
	console    *console
	rdt        []*os.File // tasks files of resctrl groups
	relay      *relay     // of signals to the container's process, when we stay
}

func (cr *creation) flags() []flag {
	return []flag{
		text(&cr.bundle, "bundle b", "DIR", "the bundle's directory (default: the current one)"),
		text(&cr.consoleSocket, "console-socket", "PATH", "unix socket that receives the terminal's master"),
		text(&cr.pidfdSocket, "pidfd-socket", "PATH", "unix socket that receives a pidfd of the process"),
		text(&cr.pidFile, "pid-file", "FILE", "file that receives the process ID"),
		boolean(&cr.noPivot, "no-pivot", "enter the root filesystem without pivot_root"),
		boolean(&cr.noKeyring, "no-new-keyring", "keep the session keyring of the caller"),
		number(&cr.preserve, "preserve-fds", "hand N descriptors from 3 up to the container"),
	}
}

func setupCreate(a *app) ([]flag, func([]string) error) {
	cr := &creation{app: a, detach: true, keep: true}
	return cr.flags(), func(args []string) error {
		cr.id = args[0]
		if _, err := cr.do(); err != nil {
			return fmt.Errorf("%s create failed: %w", a.name, err)
		}
		return nil
	}
}

func setupRun(a *app) ([]flag, func([]string) error) {
	cr := &creation{app: a, stays: true}
	flags := append(cr.flags(),
		boolean(&cr.detach, "detach d", "leave the container running and return"),
		boolean(&cr.keep, "keep", "do not delete the container after it has ended"),
		boolean(&cr.noSubreaper, "no-subreaper", "do not adopt the container's orphans"))
	return flags, func(args []string) error {
		cr.id = args[0]
		code, err := cr.do()
		if err != nil {
			return fmt.Errorf("%s run failed: %w", a.name, err)
		}
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	}
}

// do creates the container and, for run, starts it and stays until it has ended. What fails takes back
// what was made.
func (cr *creation) do() (code int, err error) {
	if err := cr.read(); err != nil {
		return 0, err
	}
	if cr.stays && !cr.detach {
		cr.relay = newRelay() // from here on there is something that a signal to us would leave behind
	}
	if err := cr.claim(); err != nil {
		return 0, err
	}
	cr.app.log.debugf("container %s: state in %s, cgroup %s", cr.id, cr.c.dir, cr.c.Cgroup)
	defer cr.c.close()
	defer func() {
		if err == nil {
			return
		}
		hooks := cr.config.Hooks
		if cr.prep == nil { // nothing of it was made that hooks could know of
			hooks = nil
		}
		cr.c.undo(hooks)
	}()
	if err := cr.prepare(); err != nil {
		return 0, err
	}
	defer cr.prep.Close()
	if err := cr.launch(); err != nil {
		return 0, err
	}
	defer cr.proc.Close()
	if !cr.stays {
		return 0, nil
	}
	if err := cr.release(); err != nil {
		_ = cr.proc.Kill(unix.SIGKILL)
		return 0, err
	}
	cr.prep.Close() // while the container runs
	if cr.detach {
		return 0, nil
	}
	return cr.stay()
}

// read reads and checks the configuration, and what the flags say against it.
func (cr *creation) read() error {
	if err := checkID(cr.id); err != nil {
		return err
	}
	var err error
	if cr.bundle, err = filepath.Abs(cr.bundle); err != nil {
		return err
	}
	if cr.config, cr.text, err = loadSpec(filepath.Join(cr.bundle, "config.json")); err != nil {
		return err
	}
	if cr.noProcess = cr.config.Process == nil && !cr.stays; cr.noProcess {
		cr.config.Process, cr.text = idle(), nil
	}
	if err := checkProcess(cr.config.Process); err != nil {
		return err
	}
	if cr.config.Linux == nil { // it MAY be set (config.md, platform-specific configuration)
		cr.config.Linux, cr.text = &specs.Linux{}, nil
	}
	if joined, err := joinedMaps(cr.config.Linux); err != nil {
		return err
	} else if joined {
		cr.text = nil
	}
	if err := runtime.CheckHooks(cr.config.Hooks); err != nil {
		return err
	}
	if err := cr.place(); err != nil {
		return err
	}
	if cr.dropLabels() {
		cr.text = nil
	}
	if cr.extra, cr.extraEnv, err = extraFiles(cr.preserve); err != nil {
		return err
	}
	return checkTerminal(cr.config.Process.Terminal, cr.detach, cr.consoleSocket)
}

// loadSpec reads a configuration, and returns its text too.
func loadSpec(file string) (*specs.Spec, []byte, error) {
	data, err := sys.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("JSON specification file %s not found", filepath.Base(file))
	}
	if err != nil {
		return nil, nil, err
	}
	var s specs.Spec
	if err := decode.JSON(data, &s); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	return &s, data, nil
}

// idle stands for the process of a configuration that has none, which may be created and joined (config.md): it
// waits at its gate for good.
func idle() *specs.Process { return &specs.Process{Args: []string{"/"}, Cwd: "/"} }

func checkProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return errors.New("process property must not be empty")
	case p.Cwd == "":
		return errors.New("Cwd property must not be empty") //nolint:staticcheck // runc's words
	case !path.IsAbs(p.Cwd):
		return errors.New("Cwd must be an absolute path") //nolint:staticcheck // runc's words
	case len(p.Args) == 0:
		return errors.New("args must not be empty")
	}
	return nil
}

func checkTerminal(terminal, detach bool, socket string) error {
	if detach && terminal && socket == "" {
		return errors.New("cannot allocate tty if runc will detach without setting console socket")
	}
	if (!detach || !terminal) && socket != "" {
		return errors.New("cannot use console socket if runc will not detach or allocate tty")
	}
	return nil
}

// claim takes the name: the state directory and its lock, and in it, before anything is made that it
// names, the record.
func (cr *creation) claim() error {
	c := &container{app: cr.app, dir: filepath.Join(cr.app.root, cr.id)}
	if err := cr.app.makeRoot(); err != nil {
		return err
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("container with id exists: %s: %w", cr.id, errExist)
		}
		return err
	}
	var err error
	if c.file, err = sys.Open(c.dir, os.O_RDONLY, 0); err != nil {
		return err
	}
	if err := c.lock(); err != nil {
		return err
	}
	c.record = record{
		Version: recordVersion, ID: cr.id, Bundle: cr.bundle, Rootfs: cr.rootfs(), Created: time.Now().UTC(),
		Annotations: cr.config.Annotations, Boot: bootID(), Cgroup: cr.cgroup, Unit: cr.unit, NoCgroup: cr.cgroup == "",
		NoPivot: cr.noPivot, NoKeyring: cr.noKeyring, NoProcess: cr.noProcess, Extra: len(cr.extra),
	}
	for _, n := range cr.config.Linux.Namespaces {
		c.OwnPID = c.OwnPID || n.Type == specs.PIDNamespace && n.Path == ""
	}
	cr.c = c
	err = cr.intend()
	if err != nil {
		_ = removeState(c.dir)
		c.close()
	}
	return err
}

// intend writes down what is about to be made. A cgroup with processes is somebody else's.
func (cr *creation) intend() error {
	g, h, err := cr.c.group()
	if err != nil {
		return err
	}
	cr.group, cr.host = g, h
	if !cr.c.NoCgroup && g.Exists() {
		pids, err := g.Pids()
		if err != nil {
			return err
		}
		if len(pids) > 0 {
			return fmt.Errorf("container's cgroup is not empty: %d process(es) found", len(pids))
		}
		if frozen, err := g.Frozen(); err == nil && frozen { // what enters it would stand still before it is anything
			return errors.New("container's cgroup unexpectedly frozen")
		}
	}
	if !cr.c.NoCgroup {
		cr.c.Cgroup = g.Path()
	}
	for up := path.Dir(g.Path()); up != "/"; up = path.Dir(up) {
		if above, err := h.At(up); err == nil && !above.Exists() {
			cr.c.Above = append(cr.c.Above, up)
		}
	}
	slices.Reverse(cr.c.Above)
	if cr.c.Rdt, err = runtime.PlanRdt(cr.id, cr.config.Linux.IntelRdt); err != nil {
		return err
	}
	if cr.c.OnHost = !has(cr.config.Linux, specs.MountNamespace); cr.c.OnHost {
		if cr.c.Stacked, err = mountsAt(cr.c.Rootfs); err != nil {
			return err
		}
	}
	if cr.text == nil {
		if cr.text, err = json.Marshal(cr.config); err != nil {
			return err
		}
	}
	if err := cr.c.write("config.json", cr.text); err != nil {
		return err
	}
	return cr.c.save()
}

func (cr *creation) rootfs() string {
	if cr.config.Root == nil {
		return ""
	}
	if p := cr.config.Root.Path; filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(cr.bundle, cr.config.Root.Path)
}

// cgroupPath is where a container's cgroup is: the configuration's path below the mount points, or the
// name of the container there.
func cgroupPath(configured, id string) string {
	if strings.Trim(configured, "/") == "" {
		return "/" + id
	}
	return configured
}

// prepare makes and limits the cgroup, and compiles the program.
func (cr *creation) prepare() error {
	if err := fault.At("runtime/cgroup"); err != nil {
		return err
	}
	if err := cr.limit(); err != nil {
		return err
	}
	root, err := sys.Open(cr.rootfs(), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil && !(cr.app.confined && errors.Is(err, os.ErrPermission)) { // it may be another user's of the namespace
		return fmt.Errorf("root filesystem: %w", err)
	}
	cr.config.Process.Env = environ(append(cr.config.Process.Env, cr.extraEnv...), passwdToBe(cr.bundle, cr.config.Mounts, root), cr.config.Process.User.UID)
	if root != nil {
		root.Close()
	}
	out, err := cr.c.hookOutput(cr.config.Hooks)
	if err != nil {
		return err
	}
	if cr.rdt, err = cr.c.Rdt.Make(cr.config.Linux.IntelRdt); err != nil {
		return err
	}
	cr.prep, err = cr.app.prepare(cr.options(out))
	if err == nil {
		for _, w := range cr.prep.Warnings {
			cr.app.log.warn("%s", w)
		}
		err = fault.At("runtime/prepare")
	}
	return err
}

func (cr *creation) options(out [2]*os.File) runtime.Options {
	return runtime.Options{
		ID: cr.id, Spec: cr.config, Bundle: cr.bundle, Cgroup: cr.c.where(cr.group), Gate: true, NoPivot: cr.noPivot,
		NoKeyring: cr.noKeyring, ExtraFiles: cr.extra, StdioOwner: true,
		Detached: !cr.stays, HookOutput: out, RdtTasks: cr.rdt,
		HostVisible: true, InOrder: true, Hierarchies: hierarchiesOf(cr.host), Place: cr.placing(),
	}
}

// delegate finds the user who owns the container's cgroup: the root of its user namespace, where it has
// that and a cgroup namespace, and may write to its cgroup mount (config-linux.md, cgroup ownership).
func delegate(s *specs.Spec) (uint32, bool) {
	writable := slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
		return m.Destination == "/sys/fs/cgroup" && !slices.Contains(m.Options, "ro")
	})
	if !has(s.Linux, specs.UserNamespace) || !has(s.Linux, specs.CgroupNamespace) || !writable {
		return 0, false
	}
	uid := s.Process.User.UID
	for _, m := range s.Linux.UIDMappings {
		if uid >= m.ContainerID && uid-m.ContainerID < m.Size {
			return m.HostID + uid - m.ContainerID, true
		}
	}
	return 0, false
}

// extraFiles are the caller's descriptors for the container: those of socket activation, and as many more
// as it was told.
func extraFiles(preserve int) (files []*os.File, env []string, err error) {
	n := 0
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		if n, err = strconv.Atoi(os.Getenv("LISTEN_FDS")); err != nil || n < 0 {
			return nil, nil, fmt.Errorf("LISTEN_FDS=%q is not a number of descriptors", os.Getenv("LISTEN_FDS"))
		}
		env = []string{"LISTEN_FDS=" + strconv.Itoa(n), "LISTEN_PID=1"}
	}
	for fd := 3; fd < 3+n+preserve; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, nil, fmt.Errorf("unable to stat preserved-fd %d (of %d): %w", fd-3-n, preserve, err)
		}
		unix.CloseOnExec(fd) // for everyone but the container
		files = append(files, os.NewFile(uintptr(fd), "preserved"))
	}
	return files, env, nil
}

// launch starts the program up to its gate, and records the process.
func (cr *creation) launch() error {
	var err error
	if cr.console, err = newConsole(cr.config.Process.Terminal, cr.detach, cr.consoleSocket); err != nil {
		return err
	}
	seen := 0
	cr.prep.Request.Meanwhile = func(pid int) {
		cr.c.Stdio = cr.console.names()
		if start, _, err := procStat(pid); err == nil {
			seen, cr.c.Start = pid, start
		}
	}
	if cr.stays {
		cr.proc, err = launch.Start(&cr.prep.Request, cr.prep.Files, cr.console.stdio)
	} else {
		cr.proc, err = launch.StartDetached(cr.c.file, &cr.prep.Request, cr.prep.Files, cr.console.stdio)
	}
	cr.console.started()
	sys.CloseAll(cr.rdt)
	if err != nil {
		return notStarted(cr.prep.Explain(err))
	}
	if err := fault.At("runtime/launch"); err != nil {
		return err
	}
	if err := cr.adopt(cr.proc.Pid); err != nil {
		_ = cr.proc.Close()
		return err
	}
	if err := cr.hooksInBetween(); err != nil {
		return err
	}
	cr.app.log.debugf("container %s: process %d is at its gate", cr.id, cr.proc.Pid)
	cr.c.Pid = cr.proc.Pid
	if cr.c.Pid != seen {
		if cr.c.Start, _, err = procStat(cr.c.Pid); err != nil {
			return err
		}
	}
	if err := cr.console.handOver(cr.proc.Console); err != nil {
		return err
	}
	if err := sendPidfd(cr.pidfdSocket, cr.proc.Pidfd); err != nil {
		return err
	}
	if err := cr.c.saveProcess(); err != nil {
		return err
	}
	return writePidFile(cr.pidFile, cr.proc.Pid)
}

// release opens the gate, and runs what is due once the user's program runs.
func (cr *creation) release() error {
	if err := cr.prep.Explain(cr.proc.Release()); err != nil {
		return notStarted(err)
	}
	if err := unix.Flock(int(cr.c.file.Fd()), unix.LOCK_UN); err != nil {
		return os.NewSyscallError("flock", err)
	}
	return cr.c.started(cr.config.Hooks)
}
