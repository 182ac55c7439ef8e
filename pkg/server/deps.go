package server

import (
	"context"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// Sandboxes is what the server asks of pkg/sandbox. Identifiers may be given in full or as a prefix that
// one object has; an unknown one is errs.NotFound from every method but the Stop and Remove ones, whose
// NotFound the server takes for success.
type Sandboxes interface {
	RunPod(ctx context.Context, config *cri.PodSandboxConfig, handler string) (id string, err error)
	StopPod(ctx context.Context, id string) error
	RemovePod(ctx context.Context, id string) error
	UpdatePod(ctx context.Context, id string, overhead, resources *cri.LinuxContainerResources) error
	Pod(id string) (*sandbox.Pod, error)
	Pods() []*sandbox.Pod

	CreateContainer(ctx context.Context, podID string, config *cri.ContainerConfig, pod *cri.PodSandboxConfig) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, timeout time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	UpdateContainer(ctx context.Context, id string, resources *cri.LinuxContainerResources, annotations map[string]string) error
	ReopenLog(ctx context.Context, id string) error
	Container(id string) (*sandbox.Container, error)
	Containers() []*sandbox.Container

	// ExecSync runs a command to its end. The outputs are capped by the callee; a timeout of 0 is none.
	ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, exit int32, err error)
	// Subscribe delivers every change from now on until ctx ends. The channel is closed then, or when
	// the reader is too slow.
	Subscribe(ctx context.Context) <-chan sandbox.Event
}

// Images is what the server asks of pkg/image.
type Images interface {
	Pull(ctx context.Context, ref string, opts image.PullOptions) (id string, err error)
	Get(ref string) (*image.Image, error)
	List() []*image.Image
	Remove(ctx context.Context, ref string) error
	FsUsage(ctx context.Context) (images, containers image.Usage, err error)
}

// Networks is what the server asks of pkg/network.
type Networks interface {
	Status(ctx context.Context) network.Status
}

// Stats measures pods and containers. Identifiers and those of filters are full ones; an unknown one is
// errs.NotFound from Container and Pod, and lets nothing through in a filter.
type Stats interface {
	Container(id string) (*cri.ContainerStats, error)
	Containers(filter *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) // the running ones
	Pod(id string) (*cri.PodSandboxStats, error)
	Pods(filter *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) // the ready ones
	Metrics() ([]*cri.PodSandboxMetrics, error)                             // of the ready ones
	// Descriptors is the same for the life of the process; Metrics uses no other names.
	Descriptors() []*cri.MetricDescriptor
}

// Streams hands out the one-time URLs of pkg/stream.
type Streams interface {
	GetExec(*cri.ExecRequest) (*cri.ExecResponse, error)
	GetAttach(*cri.AttachRequest) (*cri.AttachResponse, error)
	GetPortForward(*cri.PortForwardRequest) (*cri.PortForwardResponse, error)
}
