// Package sandbox decides and records the life of every pod and container.
package sandbox

import (
	"fmt"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/network"
)

// Pod is a snapshot of a pod. It is immutable: commit replaces it whole, readers hold it without a lock.
type Pod struct {
	ID         string
	Config     *cri.PodSandboxConfig
	Handler    string
	CreatedAt  time.Time
	Ready      bool   // READY of the CRI: its holder lives and nobody stopped it
	Message    string // why it is not ready, when that was not asked for
	HolderPid  int    // 0 when it has none
	ShimPid    int
	Network    network.Result // IPs, until it is torn down
	CgroupPath string         // of the holder, below every hierarchy's mount point
	Cgroup     string         // the pod's own parent cgroup as the kubelet gave it
}

// Namespaces lists the namespaces that the pod's holder holds, with paths that lead to them while it lives; none when it has
// no holder. Those it does not list are the node's or each container's own.
func (p *Pod) Namespaces() []specs.LinuxNamespace {
	if p.HolderPid == 0 {
		return nil
	}
	var out []specs.LinuxNamespace
	for _, t := range podNamespaces(p.Config) {
		out = append(out, specs.LinuxNamespace{Type: t, Path: namespacePath(p.HolderPid, t)})
	}
	return out
}

// namespacePath is where proc(5) has a namespace of a process.
func namespacePath(pid int, t specs.LinuxNamespaceType) string {
	name := string(t)
	if t == specs.NetworkNamespace {
		name = "net"
	}
	return fmt.Sprintf("/proc/%d/ns/%s", pid, name)
}

// HoldOutput is an annotation of containers with a terminal: with "true" their output waits there until the first client
// attaches, who sees all of it.
const HoldOutput = "cri-server.run/hold-output"

// State is where a container is in its life; it is derived from the timestamps and never stored.
type State uint8

// The states of a container.
const (
	Created State = iota
	Running
	Exited
	Unknown
)

// Container is a snapshot of a container, immutable as Pod is.
type Container struct {
	ID, PodID  string
	Config     *cri.ContainerConfig
	ImageID    string // config digest
	ImageRef   string // repo digest when known, else ImageID
	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int32
	Reason     string // "Completed", "Error", "OOMKilled", "StartError", "ShimDied"
	Message    string
	Pid        int    // in the host's pid namespace, 0 when not running
	LogPath    string // absolute, "" when it has none
	CgroupPath string
	StopSignal string                       // the one in force: config, image, SIGTERM
	User       *cri.ContainerUser           // as resolved at create
	Resources  *cri.LinuxContainerResources // as applied last
	Mounts     []*cri.Mount                 // as resolved
}

// String names the state as messages do.
func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Running:
		return "running"
	case Exited:
		return "exited"
	}
	return "unknown"
}

// State derives the container's state.
func (c *Container) State() State {
	switch {
	case !c.FinishedAt.IsZero():
		return Exited
	case !c.StartedAt.IsZero():
		return Running
	}
	return Created
}

// EventType says what happened to a container or pod.
type EventType uint8

// The events of GetContainerEvents.
const (
	EventCreated EventType = iota
	EventStarted
	EventStopped
	EventDeleted
)

// Event is one change, with the snapshots as they were right after it. Container is nil for an event of
// the pod itself.
type Event struct {
	Type      EventType
	At        time.Time
	Pod       *Pod
	Container *Container
}

// Problem is one finding of an audit: something on the machine that no record explains, or a record
// that the machine does not bear out.
type Problem struct {
	Kind    string // "mount", "cgroup", "process", "netns", "lease", "nft", "directory", "record", "blob", or Note
	Subject string
	Detail  string
}

// Note is the kind of a finding that is no disagreement: something a person may want to know.
const Note = "note"
