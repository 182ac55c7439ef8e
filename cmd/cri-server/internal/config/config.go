// Package config is cri-server's configuration: TOML files, strict about what they say.
package config

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cri-server/cri-server/pkg/errs"
)

// DefaultFile is read when no file is named. It need not exist.
const DefaultFile = "/etc/cri-server/config.toml"

// The places of a server that is not told others.
const (
	DefaultRoot  = "/var/lib/cri-server"
	DefaultState = "/run/cri-server"
)

// Default is the text of the default configuration: every key with its value and what it means.
//
//go:embed default.toml
var Default string

// Config is the whole configuration. Its keys are described in default.toml.
type Config struct {
	Root            string    `toml:"root" json:"rootDir"`
	State           string    `toml:"state" json:"stateDir"`
	Socket          string    `toml:"socket" json:"socket"`
	Runtime         string    `toml:"runtime" json:"runtime"`
	CgroupRoot      string    `toml:"cgroup_root" json:"cgroupRoot"`
	CgroupDriver    string    `toml:"cgroup_driver" json:"cgroupDriver"`
	RuntimeHandlers []string  `toml:"runtime_handlers" json:"runtimeHandlers"`
	LogLevel        int       `toml:"log_level" json:"logLevel"`
	Stream          Stream    `toml:"stream" json:"stream"`
	Debug           Debug     `toml:"debug" json:"debug"`
	Image           Image     `toml:"image" json:"image"`
	Network         Network   `toml:"network" json:"network"`
	Container       Container `toml:"container" json:"container"`
}

// Stream is the server of exec, attach and port-forward.
type Stream struct {
	Address     string   `toml:"address" json:"address"`
	BaseURL     string   `toml:"base_url" json:"baseURL"`
	TLSCert     string   `toml:"tls_cert" json:"tlsCert"`
	TLSKey      string   `toml:"tls_key" json:"tlsKey"`
	TokenTTL    Duration `toml:"token_ttl" json:"tokenTTL"`
	IdleTimeout Duration `toml:"idle_timeout" json:"idleTimeout"`
}

// Debug is the server of metrics and profiles.
type Debug struct {
	Address string `toml:"address" json:"address"`
}

// Image is where images come from.
type Image struct {
	CertsDir  string   `toml:"certs_dir" json:"certsDir"`
	AuthFiles []string `toml:"auth_files" json:"authFiles"`
	Mirror    string   `toml:"mirror" json:"mirror"`
	Platform  string   `toml:"platform" json:"platform"`
	Pinned    []string `toml:"pinned" json:"pinned"`
	Parallel  int      `toml:"parallel_layers" json:"parallelLayers"`
}

// Network is where pods are attached.
type Network struct {
	ConfDir       string         `toml:"conf_dir" json:"confDir"`
	BinDirs       []string       `toml:"bin_dirs" json:"binDirs"`
	NetnsDir      string         `toml:"netns_dir" json:"netnsDir"`
	PluginTimeout Duration       `toml:"plugin_timeout" json:"pluginTimeout"`
	ExecTypes     []string       `toml:"exec_types" json:"execTypes"`
	Default       DefaultNetwork `toml:"default" json:"default"`
}

// DefaultNetwork is the bridge network of machines without a network configuration.
type DefaultNetwork struct {
	Enabled bool           `toml:"enabled" json:"enabled"`
	Subnets []netip.Prefix `toml:"subnets" json:"subnets"`
	Bridge  string         `toml:"bridge" json:"bridge"`
}

// Container is what containers get where their request says nothing.
type Container struct {
	Capabilities                 []string `toml:"capabilities" json:"capabilities"`
	PidsLimit                    int64    `toml:"pids_limit" json:"pidsLimit"`
	ShmSize                      int64    `toml:"shm_size" json:"shmSize"`
	SeccompUnset                 bool     `toml:"seccomp_default_when_unset" json:"seccompDefaultWhenUnset"`
	SeccompProfile               string   `toml:"seccomp_profile" json:"seccompProfile"`
	AppArmor                     string   `toml:"apparmor_profile" json:"apparmorProfile"`
	PrivilegedWithoutHostDevices bool     `toml:"privileged_without_host_devices" json:"privilegedWithoutHostDevices"`
	DeviceOwnerFromUser          bool     `toml:"device_owner_from_user" json:"deviceOwnerFromUser"`
	CDISpecDirs                  []string `toml:"cdi_spec_dirs" json:"cdiSpecDirs"`
}

// Duration is a time.Duration written as "1m30s".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v < 0 {
		err = errors.New("a duration cannot be negative")
	}
	*d = Duration(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Load reads the files in order, a later one overriding what it names, on top of the defaults. No files means
// DefaultFile, if there is one. An unknown key is an error with its file and line. The result is not
// finished: flags may still override it, and Finish fills in what depends on other keys.
func Load(files ...string) (*Config, error) {
	cfg := &Config{}
	if err := parse(cfg, "default configuration", []byte(Default)); err != nil {
		return nil, err
	}
	optional := len(files) == 0
	if optional {
		files = []string{DefaultFile}
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if optional && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		if err := parse(cfg, f, b); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

func parse(cfg *Config, file string, b []byte) error {
	err := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields().Decode(cfg)
	var strict *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		var lines []string
		for _, e := range strict.Errors {
			row, _ := e.Position()
			lines = append(lines, fmt.Sprintf("line %d: %s", row, strings.Join(e.Key(), ".")))
		}
		return errs.New(errs.Invalid, "configuration (%s): unknown key, %s. See \"cri-server config default\".", file, strings.Join(lines, "; "))
	case errors.As(err, &decode):
		row, col := decode.Position()
		return errs.New(errs.Invalid, "configuration (%s): line %d, column %d: %w", file, row, col, err)
	case err != nil:
		return errs.New(errs.Invalid, "configuration (%s): %w", file, err)
	}
	return nil
}

// Finish fills in the keys that were left empty from those that were not, and checks them all.
func (c *Config) Finish() error {
	var err error
	for _, d := range []struct {
		key string
		dir *string
	}{{"root", &c.Root}, {"state", &c.State}} {
		if *d.dir == "" {
			return errs.New(errs.Invalid, "configuration: %s is empty", d.key)
		}
		if *d.dir, err = filepath.Abs(*d.dir); err != nil {
			return err
		}
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.State, "cri-server.sock")
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = "/cri-server"
		if c.Root != DefaultRoot {
			c.CgroupRoot += "-" + c.Suffix()
		}
	}
	if c.Runtime == "" {
		if c.Runtime, err = findRuntime(); err != nil {
			return err
		}
	}
	return c.check()
}

func (c *Config) check() error {
	if c.Debug.Address != "" {
		host, _, err := net.SplitHostPort(c.Debug.Address)
		if err != nil {
			return errs.New(errs.Invalid, "configuration: debug.address (%q): %w", c.Debug.Address, err)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return errs.New(errs.Invalid, "configuration: debug.address (%q): profiles show memory, so only loopback addresses are served", c.Debug.Address)
		}
	}
	for _, h := range c.RuntimeHandlers {
		if h == "" {
			return errs.New(errs.Invalid, "configuration: runtime_handlers: the handler \"\" is always there, do not list it")
		}
	}
	switch c.CgroupDriver {
	case "cgroupfs", "systemd", "auto":
	default:
		return errs.New(errs.Invalid, "configuration: cgroup_driver (%q): it is cgroupfs, systemd or auto", c.CgroupDriver)
	}
	if strings.Contains("/"+c.CgroupRoot+"/", "/../") {
		return errs.New(errs.Invalid, "configuration: cgroup_root (%q): a cgroup path has no \"..\"", c.CgroupRoot)
	}
	return nil
}

// Suffix sets what this server makes on the host apart from other servers': bridges, nft tables, cgroups and
// network namespaces carry it. It is a hash of the root directory.
func (c *Config) Suffix() string {
	sum := sha256.Sum256([]byte(c.Root))
	return hex.EncodeToString(sum[:4])
}

// findRuntime looks for cri-runtime beside this executable, then on PATH.
func findRuntime() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own executable: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), "cri-runtime")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		p := filepath.Join(dir, "cri-runtime")
		if st, err := os.Stat(p); filepath.IsAbs(p) && err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", errs.New(errs.NotFound, "cri-runtime (%s): neither beside cri-server nor on PATH. Install it there, or name it in the configuration as \"runtime\".", beside)
}
