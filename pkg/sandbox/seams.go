package sandbox

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// Images lends root filesystems; pkg/image's Store is one. Errors carry kinds of pkg/errs.
type Images interface {
	// Get finds an image by tag, digest, ID or ID prefix; errs.NotFound when there is none.
	Get(ref string) (*image.Image, error)
	// CreateRootfs makes the writable layer of a container on an image, owned by the host ids uid and gid.
	// It is durable and idempotent.
	CreateRootfs(ctx context.Context, containerID, imageID string, uid, gid uint32) error
	// MountRootfs returns a detached mount of it; the caller closes it. userns, when given, idmaps the image's layers.
	MountRootfs(ctx context.Context, containerID string, userns *os.File) (*os.File, error)
	// RemoveRootfs forgets the layer; an absent one is no error.
	RemoveRootfs(ctx context.Context, containerID string) error
	// Rootfses lists the containers that have a writable layer.
	Rootfses() ([]string, error)
	// MountImage returns a read-only detached tree of an image (below subPath) and keeps the image for owner.
	MountImage(ctx context.Context, owner, imageID, subPath string, userns *os.File) (*os.File, error)
	// ReleaseImage drops everything owner keeps; an unknown owner is no error.
	ReleaseImage(owner string) error
	// Owners lists who keeps images.
	Owners() []string
	// Check audits the store, with deep re-hashing its content.
	Check(ctx context.Context, deep bool) ([]string, error)
}

// Networks attaches pods to networks; pkg/network's Manager is one.
type Networks interface {
	Attach(ctx context.Context, pod network.Pod) (network.Result, error)
	// Detach is idempotent and works with Netns "".
	Detach(ctx context.Context, pod network.Pod) error
	// GC removes what no pod of live owns.
	GC(ctx context.Context, live []network.Pod) error
	// Leftovers names what no pod of live owns, changing nothing.
	Leftovers(ctx context.Context, live []network.Pod) ([]string, error)
}

// Shims is the machine below the pods: cgroups, and a process per pod that launches and keeps programs.
// Paths of cgroups are relative to the mount point of every hierarchy. Package host has the real one.
type Shims interface {
	// Spawn starts the shim of a pod and connects to it. dir is the pod's run directory, which exists; shm asks for a
	// /dev/shm of the pod's own.
	Spawn(ctx context.Context, podID, dir string, shm bool) (Shim, error)
	// Dial connects to the shim that lives at dir; errs.NotFound when none does.
	Dial(ctx context.Context, podID, dir string) (Shim, error)
	// EndShim kills the pod's shim of that pid if it still lives, though nobody can talk to it. A process of another
	// kind that has the pid by now is left alone.
	EndShim(ctx context.Context, podID string, pid int) error
	// ExitRecord reads what a shim wrote about the end of a container into its run directory, if it did.
	ExitRecord(dir string) (Exit, bool)
	// MakeCgroup makes a cgroup and limits it. Idempotent.
	MakeCgroup(ctx context.Context, path string, res *specs.LinuxResources) error
	// UpdateCgroup changes limits of an existing cgroup: all or none. A nil oomScoreAdj leaves that alone.
	UpdateCgroup(ctx context.Context, path string, res *specs.LinuxResources, oomScoreAdj *int) error
	// RemoveCgroup kills what is in a cgroup and removes it with everything below. Absent is no error.
	RemoveCgroup(ctx context.Context, path string) error
	// CgroupOffer tells what limits a cgroup beside an existing one can have.
	CgroupOffer(path string) (*cgroup.Offer, error)
	// CgroupExists reports whether the machine has the cgroup.
	CgroupExists(path string) bool
	// TrimCgroup removes a cgroup and those below it unless a process is in one of them.
	TrimCgroup(ctx context.Context, path string) error
	// MakeNetns makes a network namespace, which lives by the descriptor until a process joins it.
	MakeNetns() (*os.File, error)
	// Namespace opens a namespace ("net", "user", "pid"…) of the process pid; the caller closes it.
	Namespace(pid int, kind string) (*os.File, error)
	// Shm is the source, as containers' specs name it, of the /dev/shm of a pod: its own tmpfs, or the host's.
	Shm(dir string, host bool) string
	// Connect opens a TCP connection to a loopback port inside the network namespace of pid; 0 is the host's own.
	Connect(ctx context.Context, pid int, port int32) (net.Conn, error)
	// Audit compares processes, cgroups and mounts with the pods that should own them, changing nothing.
	Audit(ctx context.Context, live []LivePod) ([]Problem, error)
}

// LivePod is what an audit has to find on the machine, and all that it may find.
type LivePod struct {
	ID         string
	Dir        string // its run directory
	ShimPid    int    // 0: it has none
	Over       bool   // it is not ready any more: its shim may live and need not
	HolderPid  int    // 0: it has none
	Parent     string // the cgroup above its own
	CgroupPath string // "": it has none
	Containers []LiveContainer
	Gone       []string // cgroups that must not exist any more
}

// LiveContainer is a container of a LivePod.
type LiveContainer struct {
	ID         string
	Pid        int    // 0: it does not run
	CgroupPath string // "": it has none
}

// Shim is a connection to the shim of one pod. All methods may be called from several goroutines.
type Shim interface {
	// Pid is the shim's process.
	Pid() int
	// Holder starts the process that holds the pod's namespaces and returns its host pid.
	Holder(ctx context.Context, req *HolderRequest) (pid int, err error)
	// Start launches a container's process and returns its host pid once it is about to exec.
	Start(ctx context.Context, req *StartRequest) (pid int, err error)
	// Exec launches one more process in a container.
	Exec(ctx context.Context, req *ExecRequest) (Process, error)
	// Signal sends sig to a container's first process; errs.NotFound when it has ended.
	Signal(ctx context.Context, id string, sig syscall.Signal) error
	// States tells of the holder and every container the shim has not forgotten.
	States(ctx context.Context) ([]ProcState, error)
	// Events yields exits in the order they happened; it is closed when the connection ends.
	Events() <-chan ShimEvent
	// ReopenLog makes what the container prints from now on go to log. The caller keeps and closes its file.
	ReopenLog(ctx context.Context, id string, log *os.File) error
	// Attach joins the container's standard streams; those not asked for are nil. The caller closes them.
	Attach(ctx context.Context, id string, stdin, stdout, stderr bool) (*Attached, error)
	// Resize sets the size of a container's terminal.
	Resize(ctx context.Context, id string, size Size) error
	// CloseStdin ends a container's standard input.
	CloseStdin(ctx context.Context, id string) error
	// Forget drops what the shim keeps about an exited container. An unknown one is no error.
	Forget(ctx context.Context, id string) error
	// Shutdown ends the shim, its holder and what else it still runs, and waits until it is gone.
	Shutdown(ctx context.Context) error
	// Done is closed when the shim's process has died.
	Done() <-chan struct{}
	// Close ends the connection; the shim lives on.
	Close() error
}

// HolderRequest says which namespaces a pod gets and how they are set up.
type HolderRequest struct {
	PodID      string
	CgroupPath string
	Namespaces []specs.LinuxNamespaceType // to be made; with a user namespace all others are made inside it
	Netns      *os.File                   // a network namespace to join; nil: none
	UIDMaps    []specs.LinuxIDMapping
	GIDMaps    []specs.LinuxIDMapping
	Hostname   string            // set when a UTS namespace is made
	Sysctls    map[string]string // by path below /proc/sys in dotted form (oci.SysctlPath), set in the pod's namespaces
}

// StartRequest is a container to launch. The files stay the caller's.
type StartRequest struct {
	ID, PodID  string
	HolderPid  int
	Spec       *specs.Spec
	Bundle     string           // directory of its config.json, for hooks
	HostIPC    bool             // /dev/shm is the host's
	Rootfs     *os.File         // detached mount
	Mounts     map[int]*os.File // index in Spec.Mounts -> detached tree
	CgroupPath string           // made and limited
	Log        *os.File         // nil: what it prints is dropped
	Stdin      bool
	StdinOnce  bool
	TTY        bool
	HoldOutput bool     // a terminal's, until somebody attaches
	Dir        *os.File // the container's run directory, where its exit record goes
}

// ExecRequest is one more process for a container. The files stay the caller's; stdio is nil with TTY.
type ExecRequest struct {
	ID, ContainerID string
	Pid             int // of the container's first process
	Spec            *specs.Spec
	Process         *specs.Process
	CgroupPath      string
	Stdio           [3]*os.File
}

// Process is a process that Exec launched.
type Process interface {
	Pid() int
	// Console is the terminal's master, nil without one. It is closed by Close.
	Console() *os.File
	// Wait blocks until the process ended.
	Wait(ctx context.Context) (Exit, error)
	// KillTree kills the process and its descendants in the container.
	KillTree(ctx context.Context) error
	Resize(size Size) error
	Close() error
}

// Attached are the streams of an attached container.
type Attached struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
}

// Size is a terminal's.
type Size struct{ Width, Height uint16 }

// Exit is how a process ended. Code is the exit status, or 128 + the signal that killed it.
type Exit struct {
	Code      int32
	At        time.Time
	OOMKilled bool
}

// HolderID is the ID under which a shim speaks of the pod's holder.
const HolderID = "holder"

// ShimEvent tells of the end of a container or of the holder (HolderID).
type ShimEvent struct {
	ID   string
	Exit Exit
}

// ProcState is what a shim knows of a container or the holder.
type ProcState struct {
	ID        string
	Pid       int
	StartedAt time.Time
	Exited    bool
	Exit      Exit // when Exited
}
