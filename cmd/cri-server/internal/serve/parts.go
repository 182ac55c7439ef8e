package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/config"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/oci"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/sandbox/host"
	"github.com/cri-server/cri-server/pkg/stats"
)

// parts are the packages below the server, opened.
type parts struct {
	images  *image.Store
	nets    *network.Manager
	machine *host.Machine
	cgroups *cgroup.Host
	pods    *sandbox.Manager
	stats   *collector
	host    *oci.HostFacts
	// The AppArmor profile of containers that name none, or why there is none.
	appArmor, noAppArmor string

	closers []func() error
}

// open opens everything from the bottom up. What fails closes what was opened before it.
func open(ctx context.Context, cfg *config.Config, reg prometheus.Registerer) (_ *parts, err error) {
	p := &parts{host: oci.ProbeHost()}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	warn(p.host)
	if err := settleDriver(cfg); err != nil {
		return nil, err
	}
	if p.images, err = image.Open(ctx, imageConfig(cfg)); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.images.Close)
	if p.nets, err = network.Open(networkConfig(cfg)); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.nets.Close)
	if p.machine, err = host.New(hostConfig(cfg)); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, func() error { p.machine.Close(); return nil })
	sandboxes, err := sandboxConfig(cfg, p.host)
	if err != nil {
		return nil, err
	}
	sandboxes.OnStep = stepMetrics(reg)
	d := &sandboxes.Translate.Defaults
	d.AppArmor, d.NoAppArmor = appArmor(ctx, cfg.Container.AppArmor, p.host)
	if d.AppArmor == appArmorName {
		d.LoadAppArmor = func() error { return loadAppArmor(context.Background(), appArmorParser()) }
	}
	p.appArmor, p.noAppArmor = d.AppArmor, d.NoAppArmor
	if p.pods, err = sandbox.Open(ctx, sandboxes, p.images, p.nets, p.machine); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.pods.Close)
	if p.cgroups, err = cgroup.Probe(); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, func() error { p.cgroups.Close(); return nil })
	p.stats = &collector{stats.New(stats.Config{Source: source{p.pods}, Cgroups: stats.HostCgroups{Host: p.cgroups}, Filesystems: p.images})}
	return p, nil
}

// close closes what is open, the last first.
func (p *parts) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		if err := p.closers[i](); err != nil {
			klog.ErrorS(err, "Closing failed")
		}
	}
	p.closers = nil
}

func imageConfig(cfg *config.Config) image.Config {
	return image.Config{Root: cfg.Root, CertsDir: cfg.Image.CertsDir, AuthFiles: cfg.Image.AuthFiles, Mirror: cfg.Image.Mirror,
		Platform: cfg.Image.Platform, Pinned: cfg.Image.Pinned, Parallel: cfg.Image.Parallel}
}

func networkConfig(cfg *config.Config) network.Config {
	cache, state := networkDirs(cfg)
	return network.Config{ConfDir: cfg.Network.ConfDir, BinDirs: cfg.Network.BinDirs, CacheDir: cache, StateDir: state, NetnsDir: cfg.Network.NetnsDir,
		DefaultNetwork: network.DefaultNetwork{Enabled: cfg.Network.Default.Enabled, Subnets: cfg.Network.Default.Subnets, BridgeName: cfg.Network.Default.Bridge},
		Suffix:         cfg.Suffix(), PluginTimeout: time.Duration(cfg.Network.PluginTimeout), ExecTypes: cfg.Network.ExecTypes}
}

func hostConfig(cfg *config.Config) host.Config {
	return host.Config{Runtime: cfg.Runtime, CgroupRoot: cfg.CgroupRoot, State: cfg.State, Root: cfg.Root, ShmSize: cfg.Container.ShmSize}
}

func sandboxConfig(cfg *config.Config, facts *oci.HostFacts) (sandbox.Config, error) {
	d := oci.NewDefaults()
	if len(cfg.Container.Capabilities) > 0 {
		d.Capabilities = cfg.Container.Capabilities
	}
	d.PidsLimit, d.AppArmor, d.SeccompUnset = cfg.Container.PidsLimit, cfg.Container.AppArmor, cfg.Container.SeccompUnset
	d.PrivilegedWithoutHostDevices = cfg.Container.PrivilegedWithoutHostDevices
	d.DeviceOwnerFromUser = cfg.Container.DeviceOwnerFromUser
	var err error
	if d.Seccomp, err = seccompProfile(cfg.Container.SeccompProfile); err != nil {
		return sandbox.Config{}, err
	}
	devices, err := cdi.NewCache(cdi.WithSpecDirs(cfg.Container.CDISpecDirs...))
	if err != nil {
		return sandbox.Config{}, fmt.Errorf("read CDI specifications: %w", err)
	}
	return sandbox.Config{Root: cfg.Root, State: cfg.State, CgroupRoot: cfg.CgroupRoot, Systemd: cfg.CgroupDriver == driverSystemd, Handlers: cfg.RuntimeHandlers,
		Translate: sandbox.Translate{Defaults: *d, Host: *facts, CDI: devices}}, nil
}

// seccompProfile reads a profile in the runtime specification's format.
func seccompProfile(file string) (*specs.LinuxSeccomp, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read container.seccomp_profile: %w", err)
	}
	var p specs.LinuxSeccomp
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read container.seccomp_profile (%s): %w", file, err)
	}
	return &p, nil
}

// stepMetrics counts the steps of long jobs.
func stepMetrics(reg prometheus.Registerer) func(job, step string, took time.Duration, err error) {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "cri_server_step_duration_seconds", Help: "How long the steps of long jobs took.",
		Buckets: prometheus.ExponentialBuckets(0.00005, 2, 20), // 50 µs to 26 s
	}, []string{"job", "step"})
	failed := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cri_server_step_failures_total", Help: "Steps of long jobs that failed.",
	}, []string{"job", "step"})
	if reg != nil {
		reg.MustRegister(seconds, failed)
	}
	return func(job, step string, took time.Duration, err error) {
		seconds.WithLabelValues(job, step).Observe(took.Seconds())
		if err != nil {
			failed.WithLabelValues(job, step).Inc()
		}
	}
}

// Check implements admin.Service.
func (p *parts) Check(ctx context.Context, deep bool) ([]sandbox.Problem, error) {
	problems, err := p.pods.Check(ctx)
	more, ierr := checkImages(ctx, p.images, deep)
	return append(problems, more...), errors.Join(err, ierr)
}

// checkImages re-hashes what the store holds; what a shallow look finds, the audit of the pods has found.
func checkImages(ctx context.Context, images *image.Store, deep bool) ([]sandbox.Problem, error) {
	if !deep {
		return nil, nil
	}
	found, err := images.Check(ctx, true)
	var out []sandbox.Problem
	for _, f := range found {
		out = append(out, sandbox.Problem{Kind: "blob", Subject: f, Detail: "found by re-hashing"})
	}
	return out, err
}

// EnableDefaultNetwork implements admin.Service.
func (p *parts) EnableDefaultNetwork(ctx context.Context) error { return p.nets.EnableDefault(ctx) }

// RemoveDefaultNetwork implements admin.Service.
func (p *parts) RemoveDefaultNetwork(ctx context.Context) error { return p.nets.RemoveDefault(ctx) }

// Pull implements admin.Service.
func (p *parts) Pull(ctx context.Context, ref string, progress func(image.Progress)) (string, error) {
	return p.images.Pull(ctx, ref, image.PullOptions{Progress: progress})
}

// Audit is Check for a server that does not run.
func Audit(ctx context.Context, cfg *config.Config, deep bool) ([]sandbox.Problem, error) {
	if _, err := os.Stat(cfg.Root); errors.Is(err, os.ErrNotExist) {
		return nil, nil // nothing was ever served from there
	}
	ic := imageConfig(cfg)
	ic.ReadOnly = true
	images, err := image.Open(ctx, ic)
	if err != nil {
		return nil, err
	}
	defer images.Close()
	nc := networkConfig(cfg)
	nc.ReadOnly = true
	nets, err := network.Open(nc)
	if err != nil {
		return nil, err
	}
	defer nets.Close()
	machine, err := host.New(hostConfig(cfg))
	if err != nil {
		return nil, err
	}
	defer machine.Close()
	sc, err := sandboxConfig(cfg, oci.ProbeHost())
	if err != nil {
		return nil, err
	}
	problems, err := sandbox.Audit(ctx, sc, images, nets, machine)
	more, ierr := checkImages(ctx, images, deep)
	return append(problems, more...), errors.Join(err, ierr)
}
