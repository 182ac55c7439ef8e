package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/network/internal/plugin"
)

// Reasons of a network that is not ready, for the node's condition.
const (
	reasonNotReady = "NetworkPluginNotReady"

	maxConf      = 1 << 20
	statusEvery  = 2 * time.Second // how long the answer of exec'd STATUS plugins is believed
	statusBudget = 5 * time.Second
)

// fileID says whether a file is the one that was read, without reading it.
type fileID struct {
	path        string
	dev, ino    uint64
	size, mtime int64
}

func identify(path string) (fileID, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return fileID{}, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	return fileID{path, st.Dev, st.Ino, fi.Size(), fi.ModTime().UnixNano()}, nil
}

// loadedConf is the configuration that was read last, or why it could not be.
type loadedConf struct {
	id   fileID
	list *libcni.NetworkConfigList
	err  error
}

// network returns the list that pods are attached with now: the first of the configuration directory in
// lexicographic order, or the default network. Files that changed are read again.
func (m *Manager) network() (*libcni.NetworkConfigList, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path, err := firstConf(m.cfg.ConfDir)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "no network configuration: %w", err)
	}
	if path == "" {
		if m.defNet != nil {
			return m.defNet, nil
		}
		return nil, errs.New(errs.Unavailable, "no network configuration: %s is empty. Install a network add-on, or run \"cri-server network enable-default\" on a single-node test box", m.cfg.ConfDir)
	}
	id, err := identify(path)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "no network configuration: %w", err)
	}
	// A list may take plugins from a directory of its name: then its own file says too little.
	if m.loaded.id != id || m.loaded.list == nil || !m.loaded.list.LoadOnlyInlinedPlugins && hasPluginDir(path, m.loaded.list.Name) {
		list, err := readConf(path)
		m.loaded = loadedConf{id, list, err}
	}
	if m.loaded.err != nil {
		return nil, errs.New(errs.Unavailable, "no usable network configuration (%s): %w", path, m.loaded.err)
	}
	return m.loaded.list, nil
}

func hasPluginDir(conf, name string) bool {
	fi, err := os.Stat(filepath.Join(filepath.Dir(conf), name))
	return err == nil && fi.IsDir()
}

// firstConf returns the first configuration file of the directory, or "".
func firstConf(dir string) (string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			return filepath.Join(dir, e.Name()), nil
		}
	}
	return "", nil
}

// readConf reads a list, or a single plugin's configuration as a list of one.
func readConf(path string) (*libcni.NetworkConfigList, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxConf {
		return nil, errs.New(errs.Invalid, "it is not a regular file of at most %d bytes", maxConf)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(path) != ".conflist" && !isList(data) {
		if data, err = listOfOne(data); err != nil {
			return nil, err
		}
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("network name: %w", err)
	}
	if !list.LoadOnlyInlinedPlugins {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(path), list.Name)
		if err != nil {
			return nil, err
		}
		if list, err = inline(list, more); err != nil {
			return nil, err
		}
	}
	return list, checkList(list)
}

// listOfOne makes the configuration of a single plugin, a format of old, a list.
func listOfOne(data []byte) ([]byte, error) {
	conf, err := libcni.NetworkPluginConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"cniVersion": conf.Network.CNIVersion, "name": conf.Network.Name, "loadOnlyInlinedPlugins": true, "plugins": []json.RawMessage{data}})
}

func isList(data []byte) bool {
	var l struct {
		Plugins json.RawMessage `json:"plugins"`
	}
	return json.Unmarshal(data, &l) == nil && l.Plugins != nil
}

// inline makes a list with plugins of other files one that can be kept and read again as a whole.
func inline(list *libcni.NetworkConfigList, more []*libcni.PluginConfig) (*libcni.NetworkConfigList, error) {
	if len(more) == 0 {
		return list, nil
	}
	raw := map[string]any{}
	if err := json.Unmarshal(list.Bytes, &raw); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	for _, p := range append(list.Plugins, more...) {
		plugins = append(plugins, p.Bytes)
	}
	raw["plugins"] = plugins
	data, err := json.Marshal(raw)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

func checkList(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return fmt.Errorf("network name: %w", err)
	}
	if len(list.Plugins) == 0 {
		return errs.New(errs.Invalid, "it has no plugins")
	}
	for _, p := range list.Plugins {
		if !safeName.MatchString(p.Network.Type) {
			return errs.New(errs.Invalid, "plugin type %q: it may have letters, digits, dots, dashes and underscores only", p.Network.Type)
		}
	}
	if list.CNIVersion == "" {
		return nil // 0.1.0 by the specification
	}
	for _, v := range version.All.SupportedVersions() {
		if v == list.CNIVersion {
			return nil
		}
	}
	return errs.New(errs.Unsupported, "cniVersion %q is not known; up to %s is", list.CNIVersion, version.Current())
}

// statusProbe remembers what the exec'd plugins of a list said to STATUS.
type statusProbe struct {
	list *libcni.NetworkConfigList
	at   time.Time
	err  error
}

// Status says whether a pod could be attached now, and why not. It reads the configuration again if that
// changed, asks the plugins that know STATUS, and puts packet rules back that somebody flushed. It may
// block for a few seconds on an exec'd plugin.
func (m *Manager) Status(ctx context.Context) Status {
	list, err := m.network()
	if err == nil {
		err = m.probeList(ctx, list)
	}
	if err != nil {
		return Status{Reason: reasonNotReady, Message: "Network plugin returns error: " + err.Error()}
	}
	s := Status{Ready: true}
	var warnings []string
	if err := m.rules.Restore(); err != nil {
		warnings = append(warnings, "packet rules: "+err.Error())
	}
	if w := m.forwardWarning(); w != "" {
		warnings = append(warnings, w)
	}
	s.Message = strings.Join(warnings, "; ")
	return s
}

// programs finds the program of every plugin of the list that is exec'd, address management included. One
// that is missing must be known before the first plugin runs: DEL would stop at it for ever.
func (m *Manager) programs(list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		if typ := p.Network.Type; !m.runsInProcess(typ, p.Bytes) {
			_, err := findProgram(typ, m.cfg.BinDirs)
			switch {
			case err != nil && m.inProcess(typ):
				return fmt.Errorf("network %s: its configuration asks for what only the reference plugin does: %w", list.Name, err)
			case err != nil:
				return fmt.Errorf("network %s: %w", list.Name, err)
			}
		}
		if ipam := plugin.IPAM(p.Bytes); ipam != "" && !m.runsInProcess(ipam, nil) {
			if _, err := findProgram(ipam, m.cfg.BinDirs); err != nil {
				return fmt.Errorf("network %s: %w", list.Name, err)
			}
		}
	}
	return nil
}

// probeList asks the plugins for their status.
func (m *Manager) probeList(ctx context.Context, list *libcni.NetworkConfigList) error {
	if err := m.programs(list); err != nil {
		return err
	}
	if !m.execs(list) {
		return nil // those in process have nothing to say
	}
	m.probing.Lock()
	defer m.probing.Unlock()
	if m.probe.list == list && time.Since(m.probe.at) < statusEvery {
		return m.probe.err
	}
	ctx, cancel := context.WithTimeout(ctx, statusBudget)
	defer cancel()
	m.probe = statusProbe{list: list, err: m.cni.GetStatusNetworkList(ctx, list)}
	m.probe.at = time.Now()
	return m.probe.err
}
