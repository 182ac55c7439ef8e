package sandbox

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/store"
)

var (
	podSchema       = store.Schema{Kind: "pod", Version: 1}
	containerSchema = store.Schema{Kind: "container", Version: 1}
)

// podRecord is what pod.json holds: causes, from which every state is derived. The zero ReadyAt is a pod that is
// being created; it has the record before it has anything that could leak.
type podRecord struct {
	ID           string
	BootID       string // of the boot in which its processes live
	Config       message[*cri.PodSandboxConfig]
	Handler      string
	CreatedAt    time.Time // when RunPodSandbox was asked for
	ReadyAt      time.Time
	StoppedAt    time.Time // when it ceased to be ready, for whatever cause
	TornDownAt   time.Time // when nothing of it was left but records, logs and root filesystems
	Removing     bool      // somebody asked for its removal
	Message      string
	HolderPid    int
	ShimPid      int
	Network      network.Result
	CgroupParent string // the cgroup above its own
	OwnsParent   bool   // we chose CgroupParent, for this pod alone
	MadeAbove    string // the topmost cgroup above its own that did not exist before; "" when all did
	CgroupPath   string
}

func (r *podRecord) creating() bool { return r.ReadyAt.IsZero() && r.StoppedAt.IsZero() }
func (r *podRecord) ready() bool    { return !r.ReadyAt.IsZero() && r.StoppedAt.IsZero() }

func (r *podRecord) hostNetwork() bool {
	return namespaceOptions(r.Config.M).GetNetwork() == cri.NamespaceMode_NODE
}

func (r *podRecord) hostIPC() bool {
	return namespaceOptions(r.Config.M).GetIpc() == cri.NamespaceMode_NODE
}

func namespaceOptions(c *cri.PodSandboxConfig) *cri.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (r *podRecord) public() *Pod {
	p := &Pod{
		ID: r.ID, Config: r.Config.M, Handler: r.Handler, CreatedAt: r.CreatedAt, Ready: r.ready(), Message: r.Message,
		HolderPid: r.HolderPid, ShimPid: r.ShimPid, Network: r.Network, CgroupPath: r.CgroupPath, Cgroup: r.CgroupParent,
	}
	if !r.TornDownAt.IsZero() {
		p.Network = network.Result{} // its addresses may be another pod's by now
	}
	return p
}

// netns is the path of the pod's network namespace while its holder lives.
func (r *podRecord) netns() string {
	if r.HolderPid == 0 {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/net", r.HolderPid)
}

// network is the pod as pkg/network wants it; netns is a path of its network namespace.
func (r *podRecord) network(netns string) network.Pod {
	md := r.Config.M.GetMetadata()
	p := network.Pod{ID: r.ID, Name: md.GetName(), Namespace: md.GetNamespace(), UID: md.GetUid(), Netns: netns, Annotations: r.Config.M.GetAnnotations(),
		CgroupParent: r.Config.M.GetLinux().GetCgroupParent()}
	if d := r.Config.M.GetDnsConfig(); d != nil {
		p.DNS = network.DNS{Servers: d.GetServers(), Searches: d.GetSearches(), Options: d.GetOptions()}
	}
	for _, m := range r.Config.M.GetPortMappings() {
		if m.GetHostPort() == 0 {
			continue
		}
		p.Ports = append(p.Ports, network.PortMapping{
			HostIP: m.GetHostIp(), HostPort: m.GetHostPort(), ContainerPort: m.GetContainerPort(), Protocol: protocols[m.GetProtocol()],
		})
	}
	return p
}

var protocols = map[cri.Protocol]string{cri.Protocol_TCP: "tcp", cri.Protocol_UDP: "udp", cri.Protocol_SCTP: "sctp"}

// containerRecord is what containers/<id>.json holds. The zero CreatedAt is a container that is being created.
// Environment variables are not in it: they may be secrets, and only the bundle on tmpfs needs them.
type containerRecord struct {
	ID, PodID  string
	BootID     string
	Config     message[*cri.ContainerConfig]
	ImageID    string
	ImageRef   string
	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	Removing   bool
	ExitCode   int32
	Reason     string
	Message    string
	Pid        int
	LogPath    string
	CgroupPath string
	StopSignal string
	User       message[*cri.ContainerUser]
	Resources  message[*cri.LinuxContainerResources]
	Mounts     []message[*cri.Mount]
	Volumes    []volume
	// RootUID and RootGID are the host's ids of the container's root.
	RootUID, RootGID uint32
}

// volume is an image mounted into a container: Index is that of Spec.Mounts.
type volume struct {
	Index   int
	ImageID string
	SubPath string
}

func (r *containerRecord) creating() bool { return r.CreatedAt.IsZero() }
func (r *containerRecord) exited() bool   { return !r.FinishedAt.IsZero() }
func (r *containerRecord) running() bool  { return !r.StartedAt.IsZero() && !r.exited() }

func (r *containerRecord) public() *Container {
	c := &Container{
		ID: r.ID, PodID: r.PodID, Config: r.Config.M, ImageID: r.ImageID, ImageRef: r.ImageRef,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt,
		ExitCode: r.ExitCode, Reason: r.Reason, Message: r.Message, LogPath: r.LogPath, CgroupPath: r.CgroupPath,
		StopSignal: r.StopSignal, User: r.User.M, Resources: r.Resources.M,
	}
	if r.running() {
		c.Pid = r.Pid
	}
	for _, m := range r.Mounts {
		c.Mounts = append(c.Mounts, m.M)
	}
	return c
}

// message puts a protobuf message into a JSON record.
type message[M proto.Message] struct{ M M }

func (m message[M]) MarshalJSON() ([]byte, error) {
	if !m.M.ProtoReflect().IsValid() {
		return []byte("null"), nil
	}
	return protojson.MarshalOptions{AllowPartial: true}.Marshal(m.M)
}

func (m *message[M]) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	var zero M
	msg, ok := zero.ProtoReflect().New().Interface().(M)
	if !ok {
		return fmt.Errorf("decode %T", zero)
	}
	if err := (protojson.UnmarshalOptions{AllowPartial: true, DiscardUnknown: true}).Unmarshal(data, msg); err != nil {
		return err
	}
	m.M = msg
	return nil
}

var _ json.Marshaler = message[*cri.Mount]{}

// onDisk is the record without what must not reach the disk.
func (r *containerRecord) onDisk() *containerRecord {
	c := *r
	if len(r.Config.M.GetEnvs()) > 0 {
		c.Config.M, _ = proto.Clone(r.Config.M).(*cri.ContainerConfig)
		c.Config.M.Envs = nil
	}
	return &c
}

// layout names the files of the state directories.
type layout struct{ root, state string }

func (l layout) pods() string                    { return filepath.Join(l.root, "pods") }
func (l layout) pod(id string) string            { return filepath.Join(l.root, "pods", id) }
func (l layout) podRecord(id string) string      { return filepath.Join(l.pod(id), "pod.json") }
func (l layout) containers(pod string) string    { return filepath.Join(l.pod(pod), "containers") }
func (l layout) container(pod, id string) string { return filepath.Join(l.containers(pod), id+".json") }
func (l layout) runs() string                    { return filepath.Join(l.state, "pods") }
func (l layout) run(pod string) string           { return filepath.Join(l.state, "pods", pod) }
func (l layout) bundle(pod, id string) string    { return filepath.Join(l.run(pod), id) }
func (l layout) spec(pod, id string) string      { return filepath.Join(l.bundle(pod, id), "config.json") }

// pkg/image has .trash and lock in the same directory.
func (l layout) rootTrash() string  { return filepath.Join(l.root, ".trash-pods") }
func (l layout) stateTrash() string { return filepath.Join(l.state, ".trash") }
func (l layout) lock() string       { return filepath.Join(l.root, "pods.lock") }
func (l layout) torn() string       { return filepath.Join(l.root, "torn") }
func (l layout) ballast() string    { return filepath.Join(l.root, "ballast") }
