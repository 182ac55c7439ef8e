// Package serve wires cri-server together and runs it.
package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/config"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/server"
	"github.com/cri-server/cri-server/pkg/stream"
)

// stopTime is how long calls under way may take to end when the server is told to stop. Pods go on anyway.
const stopTime = 10 * time.Second

// Run serves until ctx ends or a signal says so. What it makes lies in the directories of cfg. The containers
// outlive it.
func Run(ctx context.Context, cfg *config.Config, version string) error {
	if err := fault.FromEnv(); err != nil {
		return err
	}
	unix.Umask(0o077)
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE) // a closed terminal or log must not take the server down
	if os.Getpid() == 1 {
		go new(reaper).run(ctx)
	}
	for _, d := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	parts, err := open(ctx, cfg, reg)
	if err != nil {
		return err
	}
	defer parts.close()
	streams, err := stream.Listen(stream.Config{Addr: cfg.Stream.Address, BaseURL: cfg.Stream.BaseURL, TLSCert: cfg.Stream.TLSCert, TLSKey: cfg.Stream.TLSKey,
		TTL: time.Duration(cfg.Stream.TokenTTL), IdleTimeout: time.Duration(cfg.Stream.IdleTimeout)}, parts.pods)
	if err != nil {
		return err
	}
	defer streams.Close()
	srv := server.New(server.Config{
		Sandboxes: parts.pods, Images: parts.images, Networks: parts.nets, Stats: parts.stats, Streams: streams, Admin: parts,
		Version: semver(version), Handlers: cfg.RuntimeHandlers, Features: features(parts.host), Systemd: cfg.CgroupDriver == driverSystemd,
		Info: func() map[string]any { return info(cfg, parts) }, Metrics: reg,
		Spec: func(c *sandbox.Container) ([]byte, error) { return os.ReadFile(specFile(cfg, c)) },
	})
	listener, err := listen(cfg.Socket)
	if err != nil {
		return err
	}
	debug, err := serveDebug(cfg.Debug.Address, reg)
	if err != nil {
		return err
	}
	defer debug.Close()
	ended := make(chan error, 2)
	go func() { ended <- streams.Serve() }()
	go func() { ended <- srv.Serve(listener) }()
	klog.InfoS("Serving", "socket", cfg.Socket, "version", version, "streams", streams.Addr(), "debug", debug.addr(), "root", cfg.Root, "state", cfg.State)
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady) // without a service manager there is nobody to tell
	return wait(ctx, srv, ended)
}

// wait returns when the server was told to stop, and has, or when serving failed.
func wait(ctx context.Context, srv *server.Server, ended <-chan error) error {
	var err error
	select {
	case <-ctx.Done():
		klog.InfoS("Stopping")
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	case err = <-ended:
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	srv.Stop(limit)
	return err
}

// listen takes over the socket of a service manager, or makes one. A socket that a service manager holds
// stays open across a restart: clients wait instead of failing.
func listen(path string) (net.Listener, error) {
	ls, err := server.Activated()
	if err != nil {
		return nil, err
	}
	if len(ls) > 1 {
		return nil, errors.New("take over sockets: a service manager handed over more than one")
	}
	if len(ls) == 1 {
		return ls[0], nil
	}
	return server.Listen(path)
}

// networkDirs are where pkg/network keeps things.
func networkDirs(cfg *config.Config) (cache, state string) {
	return filepath.Join(cfg.Root, "cni"), filepath.Join(cfg.Root, "network")
}

// specFile is where pkg/sandbox writes a container's spec.
func specFile(cfg *config.Config, c *sandbox.Container) string {
	return filepath.Join(cfg.State, "pods", c.PodID, c.ID, "config.json")
}
