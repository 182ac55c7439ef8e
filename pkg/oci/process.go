package oci

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process fills in what the container's first process is: args, environment, directory, terminal, rlimits.
func (t *translation) process() error {
	p := t.spec.Process
	p.Terminal = t.Config.GetTty()
	p.NoNewPrivileges = t.sc.GetNoNewPrivs()
	var err error
	if p.Args, err = t.args(); err != nil {
		return err
	}
	if p.Env, err = t.env(); err != nil {
		return err
	}
	if p.Cwd, err = t.cwd(); err != nil {
		return err
	}
	p.Rlimits = t.rlimits()
	return nil
}

// args applies the image's entrypoint rules: a command replaces entrypoint and cmd of the image, args alone
// replace its cmd.
func (t *translation) args() ([]string, error) {
	command, args := t.Config.GetCommand(), t.Config.GetArgs()
	if len(command) == 0 {
		command = t.Image.Entrypoint
		if len(args) == 0 {
			args = t.Image.Cmd
		}
	}
	if len(command) == 0 && len(args) > 0 {
		return slices.Clone(args), checkArgs("args", args)
	}
	if err := checkArgs("command", command); err != nil {
		return nil, err
	}
	return slices.Concat(command, args), checkTexts("args", args)
}

func checkArgs(field string, args []string) error {
	if len(args) == 0 {
		return errs.New(errs.Invalid, "%s: empty, and the image names none", field)
	}
	if args[0] == "" {
		return errs.New(errs.Invalid, "%s: the program's name is empty in %q", field, args)
	}
	return checkTexts(field, args)
}

func checkTexts(field string, list []string) error {
	for i, s := range list {
		if err := checkText(indexed(field, i), s); err != nil {
			return err
		}
	}
	return nil
}

// env merges, later over earlier: PATH, HOSTNAME, TERM and HOME where nobody sets them, the image's
// environment, the request's. Values are bytes; they need not be UTF-8.
func (t *translation) env() ([]string, error) {
	var e environment
	e.set("PATH", defaultPath)
	if name := t.hostname(); name != "" {
		e.set("HOSTNAME", name)
	}
	if t.Config.GetTty() {
		e.set("TERM", "xterm")
	}
	for i, kv := range t.Image.Env {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			continue // other tools write such entries and others drop them
		}
		if err := checkText(indexed("image env", i), kv); err != nil {
			return nil, err
		}
		e.set(key, value)
	}
	for i, kv := range t.Config.GetEnvs() {
		if err := checkEnv(indexed("envs", i), kv); err != nil {
			return nil, err
		}
		e.set(kv.GetKey(), string(kv.GetValue()))
	}
	if e.get("HOME") == "" { // as runc does: a shell without a home is of no use to anybody
		e.set("HOME", t.user.home)
	}
	return e.list, nil
}

func checkEnv(field string, kv *cri.KeyValue) error {
	key := kv.GetKey()
	if key == "" || strings.ContainsRune(key, '=') {
		return errs.New(errs.Invalid, "%s.key: %q cannot name an environment variable", field, key)
	}
	return checkText(field, key+"="+string(kv.GetValue()))
}

// hostname is what HOSTNAME says: the pod's name, or the node's in its network.
func (t *translation) hostname() string {
	if t.pod.network == cri.NamespaceMode_NODE {
		return t.Host.Hostname
	}
	return t.pod.hostname
}

// environment is an ordered set of variables.
type environment struct {
	list  []string
	index map[string]int
}

// get returns the value of a variable, "" where there is none.
func (e *environment) get(key string) string {
	i, ok := e.index[key]
	if !ok {
		return ""
	}
	return e.list[i][len(key)+1:]
}

func (e *environment) set(key, value string) {
	if i, ok := e.index[key]; ok {
		e.list[i] = key + "=" + value
		return
	}
	if e.index == nil {
		e.index = make(map[string]int)
	}
	e.index[key] = len(e.list)
	e.list = append(e.list, key+"="+value)
}

// cwd is the request's directory or the image's, which may be relative to the root.
func (t *translation) cwd() (string, error) {
	dir := t.Config.GetWorkingDir()
	if dir == "" {
		if dir = t.Image.WorkingDir; dir == "" {
			return "/", nil
		}
		return path.Join("/", dir), checkText("image working directory", dir)
	}
	if !path.IsAbs(dir) {
		return "", errs.New(errs.Invalid, "working_dir: %q is not absolute", dir)
	}
	return path.Clean(dir), checkText("working_dir", dir)
}

// rlimits are the operator's, as far as the daemon may set them.
func (t *translation) rlimits() []specs.POSIXRlimit {
	out := slices.Clone(t.Defaults.Rlimits)
	for i := range out {
		if hard, ok := t.Host.HardLimits[out[i].Type]; ok {
			out[i].Hard = min(out[i].Hard, hard)
			out[i].Soft = min(out[i].Soft, out[i].Hard)
		}
	}
	return out
}

// Exec returns the process that runs cmd in a container of that spec: the container's own user, environment,
// capabilities and confinement. The spec is not changed. An empty cmd is Invalid.
func Exec(spec *specs.Spec, cmd []string, tty bool) (*specs.Process, error) {
	if len(cmd) == 0 {
		return nil, errs.New(errs.Invalid, "cmd: empty")
	}
	if err := checkArgs("cmd", cmd); err != nil {
		return nil, err
	}
	p := *spec.Process
	p.Args = slices.Clone(cmd)
	p.Terminal, p.ConsoleSize = tty, nil
	p.Env = slices.Clone(p.Env)
	if tty && !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return &p, nil
}
