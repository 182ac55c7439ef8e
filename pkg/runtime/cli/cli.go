// Package cli speaks runc's command line: flags, JSON, exit codes and the error texts that people script
// against, on top of the same prepare and launch functions that the shim's daemon uses.
//
// A container's state is a directory below --root, written before whatever it names exists, so that a
// container whose creation was cut short at any moment can be deleted by its name. What a container's
// status is, is asked of the kernel each time: the process, its gate, its freezer.
//
// Nothing of the package runs before Main, since the shim lives in the same executable.
package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/rootless"
)

// defaultRoot is where containers are kept when --root does not say; the daemon's are elsewhere.
const defaultRoot = "/run/cri-runtime"

// app is one run of the command line.
type app struct {
	name    string // what it was called as: scripts link it to "runc"
	version string
	root    string
	rootSet bool
	log     logger
	manager string       // of cgroups
	cgroups *cgroup.Host // nil until somebody asks

	rootless string // --rootless
	confined bool   // we are not the machine's root
	loose    bool   // cgroups that may not be made are done without
	sticky   bool   // root is below XDG_RUNTIME_DIR
}

// command is one of runc's verbs.
type command struct {
	name, args, usage string
	min, max          int // arguments
	stop              int // flags end after that many arguments; 0: they may stand anywhere
	setup             func(*app) ([]flag, func(args []string) error)
}

// exitError carries the exit code of a container's process, or of a command that has one of its own.
type exitError struct {
	code int
	err  error // nil: there is nothing to say
}

func (e *exitError) Error() string { return fmt.Sprint(e.err) }
func (e *exitError) Unwrap() error { return e.err }

// notStarted puts before an error of a program what runc says of its own.
func notStarted(err error) error { return fmt.Errorf("unable to start container process: %w", err) }

// Main runs the command line, args[0] included, and returns the exit code.
func Main(args []string, version string) int {
	if len(args) > 1 && args[1] == rootless.Verb {
		return rootless.Main()
	}
	a := &app{name: filepath.Base(args[0]), version: version, root: defaultRoot, log: logger{format: "text"}}
	err := fault.FromEnv()
	if err == nil {
		err = a.run(args[1:])
	}
	if err == nil {
		return 0
	}
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		if code = exit.code; exit.err == nil {
			return code
		}
	}
	a.log.fatal(err)
	return code
}

func (a *app) globals(help, version *bool) []flag {
	var criu string
	return append([]flag{
		boolean(&a.log.debug, "debug", "enable debug logging"),
		text(&a.log.file, "log", "FILE", "write errors and warnings to this file too"),
		text(&a.log.format, "log-format", "FORMAT", "format of the log: text or json"),
		{names: []string{"root"}, arg: "DIR", usage: "directory for the state of containers (default " + defaultRoot + ")",
			set: func(v string) error { a.root, a.rootSet = v, true; return nil }},
		text(&a.rootless, "rootless", "MODE", "do without cgroups that may not be made: auto, true or false (auto: when not root)"),
		hidden(text(&criu, "criu", "FILE", "")),
		boolean(version, "version v", "print the version"),
		boolean(help, "help h", "show this help"),
	}, a.managerFlags()...)
}

func (a *app) run(args []string) error {
	var help, version bool
	globals := a.globals(&help, &version)
	rest, err := parse(globals, args, 1)
	if err != nil {
		return err
	}
	if version {
		fmt.Printf("%s version %s\ncommit: %s\nspec: %s\ngo: %s\n", a.name, a.version, commit(), specs.Version, runtime.Version())
		return nil
	}
	if len(rest) == 0 || help || rest[0] == "help" || rest[0] == "h" {
		a.help(globals)
		return nil
	}
	if err := a.settle(); err != nil {
		return err
	}
	a.log.debugf("%s %q", a.name, args)
	for _, c := range commands() {
		if c.name == rest[0] {
			return a.dispatch(&c, rest[1:])
		}
	}
	return &exitError{3, fmt.Errorf("No help topic for '%s'", rest[0])} //nolint:staticcheck // runc's words and code
}

// commit is the revision that the executable was built from.
func commit() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// settle checks what the global flags say.
func (a *app) settle() error {
	if a.rootSet {
		abs, err := filepath.Abs(a.root)
		if err != nil {
			return err
		}
		if a.root = abs; abs == "/" {
			return errors.New("Option --root argument should not be set to /") //nolint:staticcheck // runc's words
		}
	}
	if err := a.settleRootless(a.rootless); err != nil {
		return err
	}
	return a.log.open()
}

func (a *app) dispatch(c *command, args []string) error {
	var help bool
	flags, action := c.setup(a)
	flags = append(flags, boolean(&help, "help h", "show this help"))
	rest, err := parse(flags, args, c.stop)
	if err != nil {
		a.commandHelp(c, flags)
		return fmt.Errorf("%s: %w", c.name, err)
	}
	if help {
		a.commandHelp(c, flags)
		return nil
	}
	word := ""
	switch n := len(rest); {
	case c.min == c.max && n != c.min:
		word = fmt.Sprintf("exactly %d", c.min)
	case n < c.min:
		word = fmt.Sprintf("a minimum of %d", c.min)
	case c.max >= 0 && n > c.max:
		word = fmt.Sprintf("a maximum of %d", c.max)
	}
	if word != "" {
		fmt.Print("Incorrect Usage.\n\n")
		a.commandHelp(c, flags)
		return fmt.Errorf("%s: %q requires %s argument(s)", a.name, c.name, word)
	}
	return action(rest)
}

// commands are the verbs, in the order of help.
func commands() []command {
	const id = "<container-id>"
	return []command{
		{name: "create", args: id, usage: "create a container", min: 1, max: 1, setup: setupCreate},
		{name: "start", args: id, usage: "run the program of a created container", min: 1, max: 1, setup: setupStart},
		{name: "run", args: id, usage: "create and start a container", min: 1, max: 1, setup: setupRun},
		{name: "exec", args: id + " <command> [argument...]", usage: "run another process in a container", min: 1, max: -1, stop: 1, setup: setupExec},
		{name: "kill", args: id + " [signal]", usage: "send a signal (SIGTERM) to a container's process", min: 1, max: 2, stop: 1, setup: setupKill},
		{name: "delete", args: id, usage: "remove a container and all it holds", min: 1, max: 1, setup: setupDelete},
		{name: "state", args: id, usage: "print the state of a container as JSON", min: 1, max: 1, setup: setupState},
		{name: "list", usage: "list the containers", min: 0, max: 0, setup: setupList},
		{name: "ps", args: id + " [ps options]", usage: "list the processes of a container", min: 1, max: -1, stop: 1, setup: setupPs},
		{name: "pause", args: id, usage: "stop the processes of a container", min: 1, max: 1, setup: setupPause},
		{name: "resume", args: id, usage: "let the processes of a paused container run again", min: 1, max: 1, setup: setupResume},
		{name: "update", args: id, usage: "change the resource limits of a container", min: 1, max: 1, setup: setupUpdate},
		{name: "spec", usage: "write a configuration to start from", min: 0, max: 0, setup: setupSpec},
		{name: "events", args: id, usage: "print statistics and out-of-memory kills of a container as JSON", min: 1, max: 1, setup: setupEvents},
		{name: "checkpoint", args: id, usage: "write a running container to files, by criu", min: 1, max: 1, setup: setupCheckpoint},
		{name: "restore", args: id, usage: "make a container of what checkpoint has written", min: 1, max: 1, setup: setupRestore},
		{name: "features", usage: "print what this runtime can do as JSON", min: 0, max: 0, setup: setupFeatures},
	}
}
