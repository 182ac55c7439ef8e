package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cli/internal/decode"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
	"github.com/cri-server/cri-server/pkg/sys"
)

// execution is what exec is told.
type execution struct {
	app           *app
	consoleSocket string
	pidfdSocket   string
	cwd           string
	env           []string
	tty           bool
	user          string
	gids          []string
	process       string
	detach        bool
	pidFile       string
	label         string
	apparmor      string
	noNewPrivs    *bool
	caps          []string
	preserve      int
	cgroup        []string
	ignorePaused  bool

	relay *relay // of signals to the process, when we stay
}

func setupExec(a *app) ([]flag, func([]string) error) {
	e := &execution{app: a}
	flags := []flag{
		text(&e.consoleSocket, "console-socket", "PATH", "unix socket that receives the terminal's master"),
		text(&e.pidfdSocket, "pidfd-socket", "PATH", "unix socket that receives a pidfd of the process"),
		text(&e.cwd, "cwd", "DIR", "working directory in the container"),
		list(&e.env, "env e", "NAME=VALUE", "set an environment variable"),
		boolean(&e.tty, "tty t", "give the process a terminal"),
		text(&e.user, "user u", "UID[:GID]", "user and group"),
		list(&e.gids, "additional-gids g", "GID", "another group"),
		text(&e.process, "process p", "FILE", "process.json to take everything from"),
		boolean(&e.detach, "detach d", "leave the process running and return"),
		text(&e.pidFile, "pid-file", "FILE", "file that receives the process ID"),
		text(&e.label, "process-label", "LABEL", "SELinux label of the process"),
		text(&e.apparmor, "apparmor", "PROFILE", "AppArmor profile of the process"),
		{names: []string{"no-new-privs"}, usage: "set no_new_privs", set: func(v string) error {
			b, err := strconv.ParseBool(v)
			e.noNewPrivs = &b
			return err
		}},
		list(&e.caps, "cap c", "CAP", "add a capability"),
		number(&e.preserve, "preserve-fds", "hand N descriptors from 3 up to the process"),
		list(&e.cgroup, "cgroup", "PATH", "cgroup below the container's to run in"),
		boolean(&e.ignorePaused, "ignore-paused", "do not mind that the container is paused"),
	}
	return flags, func(args []string) error {
		code, err := e.do(args[0], args[1:])
		if err != nil {
			return &exitError{255, fmt.Errorf("exec failed: %w", err)}
		}
		if code != 0 {
			return &exitError{code: code}
		}
		return nil
	}
}

func (e *execution) do(id string, args []string) (int, error) {
	c, err := e.app.load(id)
	if err != nil {
		return 0, err
	}
	defer c.close()
	status, pidfd := c.look()
	if pidfd == nil {
		return 0, errors.New("cannot exec in a stopped container")
	}
	defer pidfd.Close()
	if status == statusPaused && !e.ignorePaused {
		return 0, errors.New("cannot exec in a paused container (use --ignore-paused to override)")
	}
	spec, err := c.spec()
	if err != nil {
		return 0, err
	}
	proc, err := e.build(spec, args)
	if err != nil {
		return 0, err
	}
	if err := checkTerminal(proc.Terminal, e.detach, e.consoleSocket); err != nil {
		return 0, err
	}
	p, con, err := e.start(c, pidfd, spec, proc)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	if e.detach {
		return 0, nil
	}
	code, err := attend(p, con, e.relay)
	con.close()
	return code, err
}

// start prepares and starts the process, and tells who is to know of it. A process that nobody could be
// told of is killed.
func (e *execution) start(c *container, pidfd *os.File, spec *specs.Spec, proc *specs.Process) (*launch.Process, *console, error) {
	g, err := e.group(c)
	if err != nil {
		return nil, nil, err
	}
	extra, env, err := extraFiles(e.preserve)
	if err != nil {
		return nil, nil, err
	}
	root, err := sys.Open("/proc/"+strconv.Itoa(c.Pid)+"/root", os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil && !(e.app.confined && errors.Is(err, os.ErrPermission)) {
		return nil, nil, err
	}
	proc.Env = environ(append(proc.Env, env...), passwdOf(root), proc.User.UID)
	if root != nil {
		root.Close()
	}
	place := g
	if e.ignorePaused && g != nil {
		place = struct{ runtime.Cgroup }{g} // without the method by which a paused group is refused: it waits instead
	}
	// The gate keeps the process from writing before its terminal is set up.
	prep, err := runtime.PrepareExec(context.Background(), runtime.ExecOptions{
		ID: c.ID, Spec: spec, Process: proc, Pid: c.Pid, Pidfd: pidfd, Cgroup: place, ExtraFiles: extra, StdioOwner: true, Bundle: c.Bundle,
		Gate: proc.Terminal, Confined: e.app.confined, Place: e.placing(c, g),
	})
	if err != nil {
		return nil, nil, err
	}
	defer prep.Close()
	for _, w := range prep.Warnings {
		e.app.log.warn("%s", w)
	}
	con, err := newConsole(proc.Terminal, e.detach, e.consoleSocket)
	if err != nil {
		return nil, nil, err
	}
	if !e.detach {
		e.relay = newRelay() // from here on there is a process that a signal to us would leave alone
	}
	p, err := launch.Start(&prep.Request, prep.Files, con.stdio)
	con.started()
	if err != nil {
		return nil, nil, notStarted(prep.Explain(err))
	}
	e.app.log.debugf("exec in container %s: process %d", c.ID, p.Pid)
	if err := e.announce(p, con); err != nil {
		_ = p.Kill(unix.SIGKILL)
		_, _ = p.Wait()
		p.Close()
		return nil, nil, err
	}
	if err := prep.Explain(p.Release()); err != nil {
		return nil, nil, notStarted(err)
	}
	return p, con, nil
}

// announce tells who is to know of the process.
func (e *execution) announce(p *launch.Process, con *console) error {
	if err := con.handOver(p.Console); err != nil {
		return err
	}
	if err := sendPidfd(e.pidfdSocket, p.Pidfd); err != nil {
		return err
	}
	return writePidFile(e.pidFile, p.Pid)
}

// group is the cgroup that the process is to be in.
func (e *execution) group(c *container) (runtime.Cgroup, error) {
	g, h, err := c.group()
	if err != nil {
		return nil, err
	}
	if len(e.cgroup) == 0 || c.NoCgroup {
		return c.where(g), nil
	}
	return parseSubgroup(g, h, e.cgroup)
}

// placing is creation's for a further process: born where it belongs, or moved there by the user's systemd.
func (e *execution) placing(c *container, g runtime.Cgroup) func(int, bool) error {
	if !c.held() {
		return nil
	}
	below := ""
	if s, ok := g.(*subgroup); ok {
		below = s.all
	}
	return func(pid int, born bool) error {
		if born {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), teardown)
		defer cancel()
		return systemd.Attach(ctx, *c.Unit, c.Cgroup, below, pid)
	}
}

// build is the process: that of a file, or the container's own with what the flags change.
func (e *execution) build(spec *specs.Spec, args []string) (*specs.Process, error) {
	if e.process != "" {
		data, err := os.ReadFile(e.process)
		if err != nil {
			return nil, err
		}
		var p specs.Process
		if err := decode.JSON(data, &p); err != nil {
			return nil, fmt.Errorf("%s: %w", e.process, err)
		}
		inherit(&p, spec.Process)
		return &p, checkProcess(&p)
	}
	if len(args) == 0 {
		return nil, errors.New("exec args cannot be empty")
	}
	p := spec.Process
	p.Args, p.Terminal = args, e.tty
	p.Env = append(p.Env, e.env...)
	if e.cwd != "" {
		p.Cwd = e.cwd
	}
	if e.apparmor != "" {
		p.ApparmorProfile = e.apparmor
	}
	if e.label != "" {
		p.SelinuxLabel = e.label
	}
	if e.noNewPrivs != nil {
		p.NoNewPrivileges = *e.noNewPrivs
	}
	e.addCaps(p)
	if err := e.setUser(p); err != nil {
		return nil, err
	}
	return p, checkProcess(p)
}

// inherit gives a process that a file describes what the file does not speak of and the container's process has, as far
// as it confines or sets its share: not its user, environment and resource limits.
func inherit(p, of *specs.Process) {
	if p.Capabilities == nil {
		p.Capabilities = of.Capabilities
	}
	if p.User.Umask == nil {
		p.User.Umask = of.User.Umask
	}
	if p.ApparmorProfile == "" {
		p.ApparmorProfile = of.ApparmorProfile
	}
	if p.SelinuxLabel == "" {
		p.SelinuxLabel = of.SelinuxLabel
	}
	if p.IOPriority == nil {
		p.IOPriority = of.IOPriority
	}
	if p.Scheduler == nil {
		p.Scheduler = of.Scheduler
	}
	if p.ExecCPUAffinity == nil {
		p.ExecCPUAffinity = of.ExecCPUAffinity
	}
}

// addCaps adds to what the container has. Ambient capabilities need inheritable ones, which are not added.
func (e *execution) addCaps(p *specs.Process) {
	if len(e.caps) == 0 {
		return
	}
	if p.Capabilities == nil {
		p.Capabilities = &specs.LinuxCapabilities{}
	}
	c := p.Capabilities
	c.Bounding = append(c.Bounding, e.caps...)
	c.Effective = append(c.Effective, e.caps...)
	c.Permitted = append(c.Permitted, e.caps...)
	if c.Inheritable != nil {
		c.Ambient = append(c.Ambient, e.caps...)
	}
}

func (e *execution) setUser(p *specs.Process) error {
	if e.user != "" {
		uid, gid, both := strings.Cut(e.user, ":")
		var err error
		if p.User.UID, err = parseUserID("uid", uid); err != nil {
			return err
		}
		if both {
			if p.User.GID, err = parseUserID("gid", gid); err != nil {
				return err
			}
		}
	}
	for _, g := range e.gids {
		gid, err := parseUserID("additional-gids", g)
		if err != nil {
			return err
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, gid)
	}
	return nil
}

// parseUserID reads a number that is a user or group. What does not fit would become another one's: 2^32
// is root after truncation, and 2^32-1 means "leave it" to the kernel.
func parseUserID(what, s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("bad %s: %w", what, err)
	}
	if n == 1<<32-1 {
		return 0, fmt.Errorf("bad %s: %d is no user or group", what, n)
	}
	return uint32(n), nil
}
