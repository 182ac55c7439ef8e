// Package plugin runs the plugins loopback, bridge, ptp, portmap and host-local of the CNI project in process.
//
// They take the configuration of the reference plugins (github.com/containernetworking/plugins v1.9) and
// give the same results; what they make in the kernel is the same but for the packet rules, which are
// elements of constant rules (package nft), and for the name of the host's end of a veth pair, which
// follows from the container's ID so that it can be found without a record.
package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/network/internal/netns"
	"github.com/cri-server/cri-server/pkg/network/internal/nft"
)

// Call is one invocation of a plugin: what the CNI specification passes by environment and standard input.
type Call struct {
	Command     string // ADD, DEL, CHECK, STATUS, GC or VERSION
	ContainerID string
	Netns       string
	IfName      string
	Args        string
	Path        string
	Config      []byte
}

// Delegate runs another plugin for the same call, and returns what it printed. The bridge uses it for
// address management that is not in process.
type Delegate func(ctx context.Context, typ string, c *Call) ([]byte, error)

// Runner runs plugins in the network namespace it was made in. It may be used concurrently.
type Runner struct {
	rules    *nft.Table
	host     *netlink.Handle
	suffix   string
	binds    string
	delegate Delegate

	visits  netns.Pool
	bridges sync.Mutex // one change to bridges and their addresses at a time
	leases  leaseStores
}

// New returns a runner whose packet rules go to rules. The suffix sets the names of its veth pairs apart
// from those of other servers on the host. A namespace whose path begins with binds has that name for as
// long as the pod is attached only. The caller closes the runner.
func New(rules *nft.Table, suffix, binds string, delegate Delegate) (*Runner, error) {
	h, err := newHandle()
	if err != nil {
		return nil, err
	}
	return &Runner{rules: rules, host: h, suffix: suffix, binds: binds, delegate: delegate}, nil
}

// Close closes the runner's sockets and ends its threads.
func (r *Runner) Close() error {
	r.host.Close()
	return r.visits.Close()
}

// newHandle opens a route socket in the calling thread's network namespace.
func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a route socket: %w", err)
	}
	if err := h.SetStrictCheck(true); err != nil { // the kernel filters dumps: a node has many links
		h.Close()
		return nil, fmt.Errorf("open a route socket: %w", err)
	}
	return h, nil
}

// Supports says whether the plugin of that type runs in process with that configuration.
func Supports(typ string, config []byte) bool {
	switch typ {
	case "loopback", "host-local":
		return true
	case "bridge":
		c, err := parseBridge(config, "")
		return err != nil || !c.needsReference()
	case "ptp":
		c, err := parseBridge(config, "")
		return err != nil || !c.ptpNeedsReference()
	case "portmap":
		c, err := parsePortmap(config)
		return err != nil || !c.needsReference()
	}
	return false
}

// IPAM returns the type of the address management that the plugin of this configuration calls, "" for none.
func IPAM(config []byte) string {
	var c struct {
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	}
	_ = json.Unmarshal(config, &c) // what cannot be read has no IPAM; the plugin itself will say so
	return c.IPAM.Type
}

// Run runs one command of one plugin and returns what the plugin would print. DEL is idempotent.
func (r *Runner) Run(ctx context.Context, typ string, c *Call) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.Command == "VERSION" {
		var b bytesWriter
		err := version.All.Encode(&b)
		return b, err
	}
	var p interface {
		add(context.Context, *Call) (types.Result, error)
		del(context.Context, *Call) error
		check(context.Context, *Call) error
	}
	switch typ {
	case "loopback":
		p = loopback{r}
	case "bridge":
		p = bridge{r}
	case "ptp":
		p = ptp{r}
	case "portmap":
		p = portmap{r}
	case "host-local":
		p = hostLocal{r}
	default:
		return nil, errs.New(errs.Unsupported, "run CNI plugin %q: it is not one of those in process", typ)
	}
	switch c.Command {
	case "ADD":
		res, err := p.add(ctx, c)
		if err != nil {
			return nil, err
		}
		return encode(res, c.Config)
	case "DEL":
		return nil, p.del(ctx, c)
	case "CHECK":
		return nil, p.check(ctx, c)
	case "STATUS", "GC": // nothing of ours is kept that the manager's own sweep does not see
		return nil, nil
	}
	return nil, errs.New(errs.Unsupported, "run CNI plugin %s: unknown command %q", typ, c.Command)
}

type bytesWriter []byte

func (b *bytesWriter) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

// encode prints a result in the version that the configuration asks for.
func encode(res types.Result, config []byte) ([]byte, error) {
	var d version.ConfigDecoder
	ver, err := d.Decode(config)
	if err != nil {
		return nil, fmt.Errorf("read the configuration's cniVersion: %w", err)
	}
	if res, err = res.GetAsVersion(ver); err != nil {
		return nil, fmt.Errorf("convert the result to CNI version %s: %w", ver, err)
	}
	return json.Marshal(res)
}

// previous returns the result of the plugins before in the chain, or nil.
func previous(c *types.NetConf) (*current.Result, error) {
	if c.RawPrevResult == nil {
		return nil, nil
	}
	if err := version.ParsePrevResult(c); err != nil {
		return nil, fmt.Errorf("read prevResult: %w", err)
	}
	res, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, fmt.Errorf("convert prevResult: %w", err)
	}
	return res, nil
}

// Owner is how the packet rules name a pod's attachment.
func Owner(containerID, ifname string) string { return containerID + "/" + ifname }

// VethName returns the name of the host's end of the veth pair of a pod's interface.
func VethName(suffix, containerID, ifname string) string {
	sum := sha256.Sum256([]byte(suffix + "\x00" + containerID + "\x00" + ifname))
	return "veth" + hex.EncodeToString(sum[:])[:11]
}

func notFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf) || errors.Is(err, unix.ENODEV)
}
