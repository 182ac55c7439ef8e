// Package runtime turns an OCI configuration into a program that makes the container (compile), with
// everything the program needs opened beforehand (prepare). pkg/runtime/launch then starts it, in this
// process or in a shim.
//
// The order is: Prepare (or PrepareExec, PrepareHolder) opens sources, root filesystem, namespaces and
// cgroup files, compiles and seals the program, and returns a Prepared: a launch.Request and the
// descriptors that travel with it. The program itself uses no path of the host, so it runs the same in a
// launcher whose mount namespace is nearly empty. What goes wrong in the program comes back as an
// operation's index; Prepared.Explain makes a sentence of it.
package runtime

import (
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Cgroup is where a process is placed: pkg/runtime/cgroup's Group.
type Cgroup interface {
	// Path is the cgroup's path relative to each hierarchy's mount point.
	Path() string
	// TaskFiles opens the "tasks" files of the v1 hierarchies for writing; none on v2.
	TaskFiles() ([]*os.File, error)
	// Dir opens the cgroup's directory in the v2 hierarchy, nil where there is none.
	Dir() (*os.File, error)
}

// Options are what Prepare makes a container of. Files in it stay the caller's, and open until Start.
type Options struct {
	ID     string      // names the container in errors and in its session keyring
	Spec   *specs.Spec // not modified
	Bundle string      // directory that relative paths of Spec.Root and mount sources start from

	// Rootfs is a detached mount of the root filesystem, attached as it is. Nil: Spec.Root.Path is cloned.
	Rootfs *os.File
	// MountFDs are detached trees that take the place of the Source of Spec.Mounts[index].
	MountFDs map[int]*os.File
	// Namespaces are joined by descriptor (of a namespace, or the pidfd of a process in it) in place of
	// the Path in the configuration. A namespace that is in the configuration neither with a Path nor
	// here is made new; the one that is not in the configuration is the launcher's.
	Namespaces map[specs.LinuxNamespaceType]*os.File
	// Cgroup is made and limited already. Nil: the launcher's cgroups.
	Cgroup Cgroup
	// Place puts the process into Cgroup where its launcher may not have it born there (launch.Request.Place). Nil: it may.
	Place func(pid int, born bool) error
	// Gate stops the program when all is done but the user's program has not been exec'd.
	Gate bool
	// Clamp reduces capabilities and hard limits that this process may not give to what it may; without
	// it they are errors.
	Clamp bool
	// HostVisible allows a configuration without a mount namespace: its mounts are made at Spec.Root.Path in
	// the launcher's, where the caller removes them, and the root filesystem is entered by chroot.
	HostVisible bool
	// InOrder keeps the order of Spec.Mounts in /proc/self/mountinfo too, but for bound files, which costs three or four calls a bind mount.
	InOrder bool
	// NoPivot enters the root filesystem by chroot, for root filesystems that pivot_root refuses.
	NoPivot bool
	// NoKeyring leaves the launcher's session keyring in place.
	NoKeyring bool
	// ExtraFiles become descriptors 3 and up of the container's process.
	ExtraFiles []*os.File
	// StdioOwner gives those stdio files that are pipes to the container's user.
	StdioOwner bool
	// Detached says that the process that opens the gate is not the one that starts the program: it is the
	// one who tells the seccomp agent then (launch.Process.SetNotify with what Agent returns).
	Detached bool

	// HostMounts is the host's mount namespace, for a launcher that is in another one. A container whose
	// hooks see the host's files (prestart, createRuntime, createContainer) starts in a copy of it, with its
	// root filesystem at Spec.Root.Path, which must be a directory there.
	HostMounts *os.File
	// Confined says that the launcher is not the machine's root: it has no privileges at all, or those of a
	// user namespace. Device nodes are then the host's, bound; oom_score_adj stays where it may not be lowered;
	// and a container without a cgroup of its own cannot write to the host's.
	Confined bool
	// UserFirst joins the user namespace before the others: a launcher without privileges has none for them
	// until it is there.
	UserFirst bool
	// Hierarchies are the host's, of a caller who knows them; nil: they are looked for in the mount table, once a process.
	Hierarchies []Hierarchy
	// RdtTasks are the files of resctrl groups that the process joins (Rdt.Make).
	RdtTasks []*os.File
	// HookOutput are opened for appending and receive what the last createContainer or startContainer hook
	// wrote. Nil: files in memory, which Explain reads.
	HookOutput [2]*os.File
}

// ExecOptions are what PrepareExec makes a further process of a container of. Files stay the caller's.
type ExecOptions struct {
	ID      string                         // of the container, for errors and its session keyring
	Spec    *specs.Spec                    // of the container: its namespaces, mappings, seccomp profile; not modified
	Process *specs.Process                 // what to run; nil capabilities are none
	Pid     int                            // of the container's process
	Pidfd   *os.File                       // of the same; nil: opened from Pid
	Cgroup  Cgroup                         // the container's; nil: the launcher's
	Bundle  string                         // of the container, for its seccomp agent
	Place   func(pid int, born bool) error // as in Options

	Gate, Clamp, NoKeyring, StdioOwner, Confined bool // as in Options
	ExtraFiles                                   []*os.File
}

// HolderOptions are what PrepareHolder makes the process that holds a pod's namespaces of.
type HolderOptions struct {
	ID string // of the pod, for errors
	// Namespaces to make; any of network, ipc, uts, user, pid, cgroup. With pid the holder is PID 1 of
	// the pod and reaps its orphans.
	Namespaces []specs.LinuxNamespaceType
	// Join are namespaces to be joined instead, by descriptor.
	Join map[specs.LinuxNamespaceType]*os.File
	// UIDMappings and GIDMappings are needed with a user namespace.
	UIDMappings, GIDMappings []specs.LinuxIDMapping
	Hostname, Domainname     string            // set in the new UTS namespace when not empty
	Sysctls                  map[string]string // written in the new namespaces
	Cgroup                   Cgroup
	OOMScoreAdj              *int
	Gate, Clamp              bool
	SelinuxLabel             string // current label of the holder
	ApparmorProfile          string
}
