package network

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/network/internal/plugin"
	"github.com/cri-server/cri-server/pkg/network/internal/runexec"
)

// builtin prefixes the "path" of a plugin that may run in process. No file has such a path.
const builtin = "builtin:"

// executor is libcni's seam: it finds and runs plugins.
type executor Manager

// FindInPath names the program of a plugin type, or the plugin in process. A type is a file name and
// nothing else (CVE-2021-20206).
func (e *executor) FindInPath(typ string, paths []string) (string, error) {
	if !safeName.MatchString(typ) || typ == "." || typ == ".." {
		return "", errs.New(errs.Invalid, "CNI plugin type %q: it may have letters, digits, dots, dashes and underscores only", typ)
	}
	if (*Manager)(e).inProcess(typ) {
		return builtin + typ, nil
	}
	return findProgram(typ, paths)
}

func findProgram(typ string, paths []string) (string, error) {
	for _, dir := range paths {
		p := filepath.Join(dir, typ)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", errs.New(errs.NotFound, "CNI plugin %q: no such program in %s. Install it there", typ, strings.Join(paths, ", "))
}

// inProcess says whether the type is one of those in process at all.
func (m *Manager) inProcess(typ string) bool {
	return plugin.Supports(typ, []byte("{}")) && !slices.Contains(m.cfg.ExecTypes, typ)
}

// runsInProcess says whether the plugin runs in process with this configuration.
func (m *Manager) runsInProcess(typ string, config []byte) bool {
	return m.inProcess(typ) && plugin.Supports(typ, config)
}

// execs says whether any plugin of the list is exec'd, address management included.
func (m *Manager) execs(list *libcni.NetworkConfigList) bool {
	for _, p := range list.Plugins {
		if !m.runsInProcess(p.Network.Type, p.Bytes) {
			return true
		}
		if ipam := plugin.IPAM(p.Bytes); ipam != "" && !m.runsInProcess(ipam, nil) {
			return true
		}
	}
	return false
}

// ExecPlugin runs one command of a plugin: in process, or as a program in a process group of its own with
// a deadline and bounded output.
func (e *executor) ExecPlugin(ctx context.Context, path string, config []byte, environ []string) ([]byte, error) {
	m := (*Manager)(e)
	typ, ok := strings.CutPrefix(path, builtin)
	if !ok {
		return m.execProgram(ctx, path, config, environ)
	}
	call := callOf(environ, config)
	if plugin.Supports(typ, config) {
		return m.runner.Run(ctx, typ, call)
	}
	program, err := findProgram(typ, m.cfg.BinDirs)
	if err != nil { // the plugin in process says what it does not support
		if _, rerr := m.runner.Run(ctx, typ, call); rerr != nil {
			return nil, rerr
		}
		return nil, err
	}
	return m.execProgram(ctx, program, config, environ)
}

// Decode reads what a plugin printed for VERSION.
func (e *executor) Decode(data []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(data)
}

// callOf reads the plugin protocol's environment. Of a variable that is there twice the last counts.
func callOf(environ []string, config []byte) *plugin.Call {
	c := &plugin.Call{Config: config}
	fields := map[string]*string{"CNI_COMMAND": &c.Command, "CNI_CONTAINERID": &c.ContainerID, "CNI_NETNS": &c.Netns,
		"CNI_IFNAME": &c.IfName, "CNI_ARGS": &c.Args, "CNI_PATH": &c.Path}
	for _, kv := range environ {
		if k, v, _ := strings.Cut(kv, "="); fields[k] != nil {
			*fields[k] = v
		}
	}
	return c
}

// delegate runs an address management plugin for a plugin in process.
func (m *Manager) delegate(ctx context.Context, typ string, c *plugin.Call) ([]byte, error) {
	e := (*executor)(m)
	path, err := e.FindInPath(typ, m.cfg.BinDirs)
	if err != nil {
		return nil, err
	}
	env := append(os.Environ(), "CNI_COMMAND="+c.Command, "CNI_CONTAINERID="+c.ContainerID, "CNI_NETNS="+c.Netns,
		"CNI_IFNAME="+c.IfName, "CNI_ARGS="+c.Args, "CNI_PATH="+c.Path)
	return e.ExecPlugin(ctx, path, c.Config, env)
}

func (m *Manager) execProgram(ctx context.Context, path string, config []byte, environ []string) ([]byte, error) {
	res, err := runexec.Run(ctx, runexec.Program{Path: path, Env: withoutOurs(environ), Stdin: config, Timeout: m.cfg.PluginTimeout})
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, quoted(res.Stderr))
	}
	if res.State.Success() {
		return res.Stdout, nil
	}
	// The protocol has a plugin print its error as JSON on standard output.
	var cniErr types.Error
	if json.Unmarshal(res.Stdout, &cniErr) == nil && (cniErr.Msg != "" || cniErr.Code != 0) {
		return nil, &cniErr
	}
	return nil, fmt.Errorf("plugin %s failed (%s)%s", path, res.State, quoted(append(res.Stdout, res.Stderr...)))
}

// withoutOurs removes from the environment what the service manager meant for this process alone.
func withoutOurs(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "NOTIFY_SOCKET" || name == "WATCHDOG_PID" || name == "WATCHDOG_USEC" || strings.HasPrefix(name, "LISTEN_")
	})
}

// quoted is the end of an output, for an error message.
func quoted(out []byte) string {
	const most = 1024
	s := strings.TrimSpace(string(out))
	if s == "" {
		return ""
	}
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return fmt.Sprintf(": %q", s)
}
