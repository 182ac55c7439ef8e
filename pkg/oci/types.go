// Package oci translates CRI configuration into an OCI runtime bundle.
//
// It is the only package that knows both vocabularies: CRI messages come in, a specs.Spec goes out, and
// pkg/runtime reads that without knowing of pods. Every field of the CRI is either translated, validated
// and refused by name, or known to act elsewhere; testdata/fields.txt is the list.
//
// The package changes nothing on the machine. What it reads is what a translation cannot do without: the
// account files of the root filesystem it is given (by descriptor, never leaving that tree), host paths
// named by the kubelet, seccomp profiles, CDI specs. Two sources of values are kept apart throughout: the
// request, which comes from the kubelet and is obeyed once it is well formed, and the image config, which
// is hostile data.
//
// Errors carry a kind of pkg/errs: Invalid for a malformed or contradictory field, NotFound for an object
// a field names that does not exist, Unsupported for what this kernel cannot do. All name field and value.
package oci

import (
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerInput is all that Container reads. Nothing in it is changed or kept.
type ContainerInput struct {
	ID     string
	Config *cri.ContainerConfig
	Pod    *cri.PodSandboxConfig // as the pod was made
	Image  *ocispec.ImageConfig  // hostile data; nil is an empty one
	Rootfs *os.File              // root of the root filesystem, for the account files; any O_PATH directory does

	CgroupsPath string // of the container, below every hierarchy's mount point; its leaf ends in the ID

	// Namespaces are the pod's namespaces by path, /proc/<holder pid>/ns/<type>. A type the pod shares with
	// the node has no entry; pid has one only when the pod shares its own.
	Namespaces map[specs.LinuxNamespaceType]string
	// TargetPID is the pid namespace of the container that namespace_options.target_id names, "" when the
	// caller found no such container running in this pod.
	TargetPID string

	Files    PodFiles
	Label    Label // the pod's SELinux label, which containers without options of their own share
	CDI      CDI   // nil: requests for CDI devices are refused
	Defaults *Defaults
	Host     *HostFacts
}

// PodFiles are the paths of what all containers of a pod share, as the runtime's mount namespace sees them.
// An empty path mounts nothing.
type PodFiles struct {
	Shm        string // a tmpfs
	Hosts      string // /etc/hosts, unless the kubelet mounts one
	Hostname   string // /etc/hostname
	ResolvConf string // /etc/resolv.conf
}

// CDI resolves fully qualified CDI device names. tags.cncf.io/container-device-interface's cache is one.
type CDI interface {
	// InjectDevices edits the spec and returns the names it does not know, with an error if there are any.
	InjectDevices(spec *specs.Spec, devices ...string) (unresolved []string, err error)
}

// Defaults are the operator's choices for what a request leaves open.
type Defaults struct {
	Capabilities  []string            // "CAP_CHOWN"; of an unprivileged container before add and drop
	Rlimits       []specs.POSIXRlimit // of every container
	PidsLimit     int64               // 0 or less: none of the container's own
	MaskedPaths   []string            // see maskedPaths
	ReadonlyPaths []string            // see maskedPaths
	AppArmor      string              // profile for RuntimeDefault and for unset; "" is none
	LoadAppArmor  func() error        // loads that profile again when it is gone; nil: it is somebody else's
	NoAppArmor    string              // why there is none, where the kernel has AppArmor: RuntimeDefault is refused with it
	Seccomp       *specs.LinuxSeccomp // replaces the built-in RuntimeDefault profile when not nil
	SeccompUnset  bool                // a request without a profile gets RuntimeDefault instead of none
	// PrivilegedWithoutHostDevices keeps the node's devices out of privileged containers.
	PrivilegedWithoutHostDevices bool
	// DeviceOwnerFromUser gives devices to the container's user instead of their owner on the node.
	DeviceOwnerFromUser bool
}

// HostFacts is what the machine and the daemon's own privileges allow.
type HostFacts struct {
	Hostname       string            // of the node, HOSTNAME of containers in its network
	CgroupV2       bool              // every controller is on the unified hierarchy
	Swap           bool              // the memory controller accounts swap
	Capabilities   map[string]bool   // the daemon's bounding set; nil is every capability
	HardLimits     map[string]uint64 // hard rlimits that cannot be raised; nil when the daemon may raise them
	OOMScoreAdjMin int               // the lowest oom_score_adj the daemon may give
	AppArmor       bool              // the LSM is enabled
	AppArmorLoaded func(string) bool // whether a profile is loaded; nil is "cannot tell", which is taken for yes
	SELinux        bool              // the LSM is enabled
	RRO            bool              // mount_setattr(2): recursive read-only mounts, Linux 5.12
}

// Label is an SELinux label pair; empty where SELinux is off.
type Label struct{ Process, Mount string }

// ContainerOutput is a container in OCI's vocabulary, and what its CRI status shows.
type ContainerOutput struct {
	Spec         *specs.Spec // Root.Path is left to the caller
	User         *cri.ContainerUser
	Mounts       []*cri.Mount // the request's, host paths resolved
	ImageVolumes []ImageVolume
	Relabel      []Relabel
	StopSignal   string // canonical name, "SIGTERM", "SIGRTMIN+3"
}

// ImageVolume is a mount whose source is an image: the caller attaches a detached tree at that index.
type ImageVolume struct {
	Index   int // in Spec.Mounts
	Request int // in ContainerConfig.Mounts and ContainerOutput.Mounts
	Image   string
	SubPath string
}

// Relabel asks for the SELinux label of a volume to become the container's before it starts.
type Relabel struct {
	Path   string
	Label  string
	Shared bool
}
