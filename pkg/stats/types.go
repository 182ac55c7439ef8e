// Package stats samples cgroups, network counters and filesystems, keeps the last window of each object and
// answers the CRI's statistics and metrics from that.
//
// Nothing runs in the background: a sample is taken when somebody asks, and a rate spans the time since the
// last sample that is old enough. Expensive walks (the size of a writable layer) are remembered and carry
// the time they were made. The package knows pods and containers only as the small structs here, and the
// machine through interfaces of its own, so that tests hand it made-up ones.
package stats

import (
	"math"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/image"
)

// Pod is what statistics need to know of a pod sandbox.
type Pod struct {
	ID          string
	Metadata    *cri.PodSandboxMetadata
	Labels      map[string]string
	Annotations map[string]string
	Parent      string // cgroup the client gave; the pod's own when a kubelet did, else perhaps shared
	Holder      string // cgroup of the holder, "" without one
	HolderPid   int    // 0 when it has none
	HostNetwork bool
	CreatedAt   time.Time
}

// Container is what statistics need to know of a container.
type Container struct {
	ID, PodID   string
	Metadata    *cri.ContainerMetadata
	Labels      map[string]string
	Annotations map[string]string
	Image       string // as a person knows it
	Cgroup      string // below every hierarchy's mount point
	Pid         int    // 0 when not running
	StartedAt   time.Time
	Resources   *cri.LinuxContainerResources // as applied last; may be nil
}

// Running reports whether there is a process to measure.
func (c *Container) Running() bool { return c.Pid != 0 }

// Source lists what is there now. Both calls take no lock that a sample could wait for.
type Source interface {
	StatsPods() []Pod
	StatsContainers() []Container
}

// Cgroups measures one cgroup by its path below the hierarchies' mount points. A group that does not exist
// is an error of kind NotFound.
type Cgroups interface {
	Usage(path string) (*Usage, error)
	Pids(path string) ([]int, error)
}

// Filesystems measures writable layers. *image.Store is one. It may walk the whole layer.
type Filesystems interface {
	RootfsUsage(containerID string) (image.Usage, error)
}

// Usage is one sample of a cgroup. Times are nanoseconds, sizes bytes; what the kernel does not say is zero.
type Usage struct {
	CPU     CPU
	Memory  Memory
	Pids    Pids
	Devices []DeviceIO
	Hugetlb []Hugetlb
	// Pressure is nil where the kernel keeps none for the group.
	CPUPressure, MemoryPressure, IOPressure *Pressure
	OOMKills                                uint64
}

// CPU is time spent, and time taken away by the quota.
type CPU struct {
	Total, User, System       uint64
	Periods, ThrottledPeriods uint64
	ThrottledTime             uint64
}

// Unlimited is a limit that is none.
const Unlimited = math.MaxUint64

// Memory is what the group holds. Limits may be Unlimited.
type Memory struct {
	Usage, MaxUsage, WorkingSet uint64
	RSS, Cache, MappedFile      uint64
	Kernel                      uint64
	Swap                        uint64
	PageFaults, MajorPageFaults uint64
	Failures                    uint64 // how often the limit was hit
	Limit, SwapLimit            uint64 // SwapLimit is of swap alone
}

// Pids are tasks: threads, as the controller counts them. Limit may be Unlimited.
type Pids struct{ Current, Limit uint64 }

// DeviceIO is what went to and from one block device.
type DeviceIO struct {
	Major, Minor                         uint64
	ReadBytes, WriteBytes, Reads, Writes uint64

	name string // filled in by the collector
}

// Hugetlb is what the group holds of one size of huge pages, "2MB".
type Hugetlb struct {
	PageSize        string
	Usage, MaxUsage uint64
}

// Pressure is a PSI file: how long some, or all, tasks waited.
type Pressure struct{ Some, Full PressureLine }

// PressureLine is one of its lines: averages in percent, the total in nanoseconds.
type PressureLine struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}
