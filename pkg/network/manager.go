package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/network/internal/netns"
	"github.com/cri-server/cri-server/pkg/network/internal/nft"
	"github.com/cri-server/cri-server/pkg/network/internal/plugin"
)

// Manager attaches pods to the configured network of the network namespace it was opened in. Its methods
// may be called concurrently for different pods; the caller serializes those for one pod.
type Manager struct {
	cfg    Config
	cni    *libcni.CNIConfig
	runner *plugin.Runner
	rules  *nft.Table

	mu     sync.Mutex // guards the configuration that is in use
	loaded loadedConf
	defNet *libcni.NetworkConfigList

	probing   sync.Mutex // guards what follows, and lets one STATUS run at a time
	probe     statusProbe
	forward   string // what other packet filters do to pods
	forwardAt time.Time
}

// The places of Attach, of its plugins and of Detach that a test can stop at.
const (
	FaultRecorded = "Attach/recorded"
	FaultBound    = "Attach/bound"
	FaultAdded    = "Attach/added"
	FaultDeleted  = "Detach/deleted"
	FaultUnbound  = "Detach/unbound"
)

// Faults are all places that a test can stop at, in the order in which a pod's life passes them.
var Faults = []string{FaultRecorded, FaultBound, plugin.FaultLeased, plugin.FaultPlugged, plugin.FaultConfigured, plugin.FaultMapped, FaultAdded,
	plugin.FaultSilenced, FaultDeleted, FaultUnbound}

var safeName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

const (
	defaultPluginTimeout = time.Minute
	cleanupTimeout       = 30 * time.Second
)

// Open makes a manager. It reads what an earlier one kept, and changes nothing on the host, except that it
// brings up the default network where the configuration or an earlier EnableDefault asks for it.
func Open(cfg Config) (*Manager, error) {
	if !safeName.MatchString(cfg.Suffix) || len(cfg.Suffix) > 11 {
		return nil, errs.New(errs.Invalid, "open network: suffix %q is not of 1 to 11 letters, digits, dots, dashes and underscores", cfg.Suffix)
	}
	if cfg.PluginTimeout == 0 {
		cfg.PluginTimeout = defaultPluginTimeout
	}
	if cfg.DefaultNetwork.BridgeName == "" {
		cfg.DefaultNetwork.BridgeName = "cri-" + cfg.Suffix
	}
	if !cfg.ReadOnly {
		if err := os.MkdirAll(filepath.Join(cfg.StateDir, attachmentsDir), 0o700); err != nil {
			return nil, fmt.Errorf("open network: %w", err)
		}
	}
	m := &Manager{cfg: cfg, rules: nft.New("cri_" + cfg.Suffix)}
	var err error
	if m.runner, err = plugin.New(m.rules, cfg.Suffix, m.bindPath(""), m.delegate); err != nil {
		return nil, err
	}
	m.cni = libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, (*executor)(m))
	if cfg.ReadOnly {
		return m, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	if err := m.openDefault(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Close frees the manager's sockets. Pods stay attached.
func (m *Manager) Close() error {
	return errors.Join(m.runner.Close(), m.rules.Close())
}

// Attach gives the pod's network namespace its loopback and the configured network. It blocks as long as
// the plugins do, within the context and Config.PluginTimeout for each that is exec'd. When it fails it has
// undone what it could; Detach does the rest.
func (m *Manager) Attach(ctx context.Context, pod Pod) (Result, error) {
	if err := validate(&pod); err != nil {
		return Result{}, err
	}
	list, err := m.network()
	if err != nil {
		return Result{}, err
	}
	if pod.Netns == "" {
		return Result{}, errs.New(errs.Invalid, "attach pod %s: it has no network namespace", pod.ID)
	}
	if err := m.programs(list); err != nil {
		return Result{}, errs.With(errs.Unavailable, err)
	}
	a := &attachment{ID: pod.ID, Network: list.Name, Config: list.Bytes, Exec: m.execs(list)}
	if _, err := runtimeConf(&pod, ""); err != nil { // before anything is recorded that would have to be undone
		return Result{}, err
	}
	if err := m.record(a); err != nil {
		return Result{}, err
	}
	err = fault.At(FaultRecorded)
	var res Result
	if err == nil {
		res, err = m.attach(ctx, pod, list, a.Exec)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		if derr := m.Detach(undo, pod); derr != nil {
			err = fmt.Errorf("%w (and undoing it failed: %w)", err, derr)
		}
		return Result{}, fmt.Errorf("attach pod %s/%s to network %s: %w", pod.Namespace, pod.Name, list.Name, err)
	}
	return res, nil
}

func (m *Manager) attach(ctx context.Context, pod Pod, list *libcni.NetworkConfigList, execs bool) (Result, error) {
	if first := list.Plugins[0]; slices.Contains([]string{"bridge", "ptp"}, first.Network.Type) && m.runsInProcess(first.Network.Type, first.Bytes) {
		ctx = plugin.WithLoopback(ctx)
	} else if err := m.runner.LoopbackUp(pod.Netns); err != nil {
		return Result{}, err
	}
	path := pod.Netns
	if execs {
		var err error
		if path, err = m.bind(pod); err != nil {
			return Result{}, err
		}
	}
	if err := fault.At(FaultBound); err != nil {
		return Result{}, err
	}
	rt, err := runtimeConf(&pod, path)
	if err != nil {
		return Result{}, err
	}
	got, err := m.cni.AddNetworkList(ctx, list, rt)
	if err == nil {
		err = fault.At(FaultAdded)
	}
	if err != nil {
		return Result{}, err
	}
	return resultOf(got)
}

// resultOf takes the pod's addresses out of what the plugins said: those of its interface, or where they
// name no interface, all.
func resultOf(got types.Result) (Result, error) {
	res, err := current.NewResultFromResult(got)
	if err != nil {
		return Result{}, fmt.Errorf("read the plugins' result: %w", err)
	}
	var own, other []string
	for _, ipc := range res.IPs {
		if ipc == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(ipc.Address.IP)
		if !ok {
			return Result{}, errs.New(errs.Unknown, "the plugins' result has a malformed address %q", ipc.Address.String())
		}
		mine := true
		if i := ipc.Interface; i != nil {
			if *i < 0 || *i >= len(res.Interfaces) || res.Interfaces[*i] == nil {
				return Result{}, errs.New(errs.Unknown, "the plugins' result names interface %d of %d", *i, len(res.Interfaces))
			}
			mine = res.Interfaces[*i].Name == IfName && res.Interfaces[*i].Sandbox != ""
		}
		if mine {
			own = append(own, a.Unmap().String())
		} else {
			other = append(other, a.Unmap().String())
		}
	}
	if len(own) == 0 {
		own = other
	}
	if len(own) == 0 {
		return Result{}, errs.New(errs.Unknown, "the plugins gave the pod no address")
	}
	return Result{IPs: own}, nil
}

// Detach takes the pod off the network it was attached to, whatever the configuration says by now: links,
// leases, packet rules and the namespace's name. It is idempotent, needs no network namespace, and undoes a
// half-made Attach. After an error it is to be called again.
func (m *Manager) Detach(ctx context.Context, pod Pod) error {
	if err := validate(&pod); err != nil {
		return err
	}
	a, err := m.recorded(pod.ID)
	if err != nil {
		return err
	}
	if a == nil {
		return nil // never attached, or detached before
	}
	list, err := m.list(a)
	if err != nil {
		return err
	}
	if list != nil {
		if err := m.delete(ctx, pod, a, list); err != nil {
			return err
		}
	}
	if err := fault.At(FaultDeleted); err != nil {
		return err
	}
	if err := m.rules.RemoveAll(plugin.Owner(pod.ID, IfName)); err != nil {
		return err
	}
	if err := m.unbind(pod.ID); err != nil {
		return err
	}
	if err := fault.At(FaultUnbound); err != nil {
		return err
	}
	return m.forget(pod.ID)
}

// delete has the plugins undo their work (CNI DEL).
func (m *Manager) delete(ctx context.Context, pod Pod, a *attachment, list *libcni.NetworkConfigList) error {
	rt, err := runtimeConf(&pod, m.livePath(pod, a.Exec))
	if err != nil { // hostile names and annotations never got past Attach; without them the rest is still undone
		rt = &libcni.RuntimeConf{ContainerID: pod.ID, IfName: IfName, Args: [][2]string{{"K8S_POD_INFRA_CONTAINER_ID", pod.ID}}}
	}
	if _, cached, cerr := m.cni.GetNetworkListCachedConfig(list, rt); cerr == nil && cached != nil {
		cached.NetNS = rt.NetNS
		rt = cached
	}
	if err := m.cni.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("detach pod %s/%s (%s) from network %s: %w", pod.Namespace, pod.Name, pod.ID, list.Name, err)
	}
	return nil
}

// livePath returns the path of the pod's network namespace for plugins, or "" when it is gone.
func (m *Manager) livePath(pod Pod, execs bool) string {
	path := pod.Netns
	if execs {
		path = m.bindPath(pod.ID)
	}
	if path == "" {
		return ""
	}
	ns, err := netns.Open(path)
	if err != nil || ns == nil {
		return ""
	}
	ns.Close()
	return path
}

// CheckPod asks the plugins whether what Attach made is still there (CNI CHECK). Lists that switch it off,
// or whose version does not know it, pass. A pod that is not attached is errs.NotFound.
func (m *Manager) CheckPod(ctx context.Context, pod Pod) error {
	if err := validate(&pod); err != nil {
		return err
	}
	a, err := m.recorded(pod.ID)
	if err != nil {
		return err
	}
	if a == nil {
		return errs.New(errs.NotFound, "check network of pod %s: it is not attached", pod.ID)
	}
	list, err := m.list(a)
	if err != nil {
		return err
	}
	if list == nil {
		return errs.New(errs.Unknown, "check network of pod %s: its record is damaged", pod.ID)
	}
	rt, err := runtimeConf(&pod, m.livePath(pod, a.Exec))
	if err != nil {
		return err
	}
	if _, cached, cerr := m.cni.GetNetworkListCachedConfig(list, rt); cerr == nil && cached != nil {
		cached.NetNS = rt.NetNS
		rt = cached
	}
	err = m.cni.CheckNetworkList(ctx, list, rt)
	if errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check network of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

func validate(pod *Pod) error {
	if !safeName.MatchString(pod.ID) || pod.ID == "." || pod.ID == ".." || len(pod.ID) > 200 {
		return errs.New(errs.Invalid, "pod ID %q is not made of letters, digits, dots, dashes and underscores", pod.ID)
	}
	return nil
}
