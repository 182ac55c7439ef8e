package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// podFacts is what containers need to know of their pod's config.
type podFacts struct {
	privileged        bool
	network, pid, ipc cri.NamespaceMode
	uids, gids        []specs.LinuxIDMapping // empty: the node's user namespace
	hostname          string
	selinux           *cri.SELinuxOption
}

func factsOf(pod *cri.PodSandboxConfig) podFacts {
	sc := pod.GetLinux().GetSecurityContext()
	ns := sc.GetNamespaceOptions()
	f := podFacts{
		privileged: sc.GetPrivileged(),
		network:    ns.GetNetwork(), pid: ns.GetPid(), ipc: ns.GetIpc(),
		hostname: pod.GetHostname(),
		selinux:  sc.GetSelinuxOptions(),
	}
	if u := ns.GetUsernsOptions(); u.GetMode() == cri.NamespaceMode_POD {
		f.uids, f.gids = idMappings(u.GetUids()), idMappings(u.GetGids())
	}
	return f
}

func (f *podFacts) userns() bool { return len(f.uids) > 0 }

func idMappings(in []*cri.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range in {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// UserNamespace returns the mappings of the user namespace a pod asks for, nil for the node's. The config
// must have passed ValidatePod.
func UserNamespace(pod *cri.PodSandboxConfig) (uids, gids []specs.LinuxIDMapping) {
	f := factsOf(pod)
	return f.uids, f.gids
}

// namespaces fills in spec.Linux.Namespaces. Network, IPC and UTS are always the pod's: a namespace option
// of the container may repeat what the pod has, not change it. The pid namespace is the container's choice,
// but for the node's: that is what a pod is admitted with. Kubelets ask for it with the sandbox or not at all, and
// containerd, too, gives it only where the sandbox has it.
func (t *translation) namespaces() error {
	l := t.spec.Linux
	l.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if t.pod.userns() {
		l.UIDMappings, l.GIDMappings = t.pod.uids, t.pod.gids
		if err := t.join(specs.UserNamespace); err != nil {
			return err
		}
	}
	opts := t.sc.GetNamespaceOptions()
	if opts != nil {
		if err := t.checkNamespaceOptions(opts); err != nil {
			return err
		}
	}
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		mode cri.NamespaceMode
	}{{specs.NetworkNamespace, t.pod.network}, {specs.IPCNamespace, t.pod.ipc}, {specs.UTSNamespace, t.pod.network}} {
		if ns.mode == cri.NamespaceMode_NODE && t.Namespaces[ns.kind] == "" {
			continue // the node's, which is where the runtime starts from
		}
		if err := t.join(ns.kind); err != nil {
			return err
		}
	}
	if t.Host.CgroupV2 && !t.sc.GetPrivileged() {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return t.pidNamespace(opts)
}

func (t *translation) checkNamespaceOptions(opts *cri.NamespaceOption) error {
	for _, ns := range []struct {
		field     string
		want, pod cri.NamespaceMode
	}{{"network", opts.GetNetwork(), t.pod.network}, {"ipc", opts.GetIpc(), t.pod.ipc}} {
		// POD is the zero value, so it cannot be told from unset, and in a pod that shares the node's
		// namespace the two are the same.
		if ns.want != cri.NamespaceMode_POD && ns.want != ns.pod {
			return errs.New(errs.Invalid, "namespace_options.%s: %s contradicts the pod sandbox's %s", ns.field, ns.want, ns.pod)
		}
	}
	u := opts.GetUsernsOptions()
	switch {
	case u == nil:
		return nil
	case u.GetMode() == cri.NamespaceMode_NODE && !t.pod.userns(), u.GetMode() == cri.NamespaceMode_POD && t.pod.userns() && len(u.GetUids()) == 0 && len(u.GetGids()) == 0:
		return nil
	case u.GetMode() == cri.NamespaceMode_POD && t.pod.userns() && sameMappings(idMappings(u.GetUids()), t.pod.uids) && sameMappings(idMappings(u.GetGids()), t.pod.gids):
		return nil
	}
	return errs.New(errs.Invalid, "namespace_options.userns_options: %s contradicts the pod sandbox's", u)
}

func (t *translation) pidNamespace(opts *cri.NamespaceOption) error {
	mode := opts.GetPid()
	if opts == nil || mode == cri.NamespaceMode_POD && t.pod.pid == cri.NamespaceMode_NODE {
		mode = t.pod.pid
	}
	add := func(path string) {
		t.spec.Linux.Namespaces = append(t.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: path})
	}
	switch mode {
	case cri.NamespaceMode_NODE:
		if t.pod.pid != cri.NamespaceMode_NODE {
			return errs.New(errs.Invalid, "namespace_options.pid: NODE contradicts the pod sandbox's %s", t.pod.pid)
		}
		if t.pod.userns() {
			return errs.New(errs.Invalid, "namespace_options.pid: NODE cannot be had in a pod with a user namespace")
		}
	case cri.NamespaceMode_CONTAINER:
		add("")
	case cri.NamespaceMode_TARGET:
		id := opts.GetTargetId()
		if id == "" {
			return errs.New(errs.Invalid, "namespace_options.target_id: empty with pid mode TARGET")
		}
		if t.TargetPID == "" {
			return errs.New(errs.NotFound, "namespace_options.target_id: no container %q runs in this pod", id)
		}
		add(t.TargetPID)
	case cri.NamespaceMode_POD:
		path := t.Namespaces[specs.PIDNamespace]
		if path == "" {
			return errs.New(errs.Invalid, "namespace_options.pid: POD contradicts the pod sandbox's %s", t.pod.pid)
		}
		add(path)
	default:
		return errs.New(errs.Invalid, "namespace_options.pid: no such mode %d", mode)
	}
	return nil
}

// join adds a namespace of the pod by path.
func (t *translation) join(kind specs.LinuxNamespaceType) error {
	path := t.Namespaces[kind]
	if path == "" {
		return errs.New(errs.Conflict, "join the pod's %s namespace (pod sandbox of container %s): it is gone", kind, t.ID)
	}
	t.spec.Linux.Namespaces = append(t.spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
	return nil
}

func (t *translation) hasNamespace(kind specs.LinuxNamespaceType) bool {
	for _, ns := range t.spec.Linux.Namespaces {
		if ns.Type == kind {
			return true
		}
	}
	return false
}

func sameMappings(a, b []specs.LinuxIDMapping) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// maxID is the highest user or group ID: 2^32-1 means "leave unchanged" to the kernel.
const maxID = 1<<32 - 2

// checkUserNamespace is ValidatePod's part for userns_options.
func checkUserNamespace(u *cri.UserNamespace) error {
	const field = "namespace_options.userns_options"
	if u == nil {
		return nil
	}
	switch u.GetMode() {
	case cri.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return errs.New(errs.Invalid, "%s: mappings with mode NODE", field)
		}
		return nil
	case cri.NamespaceMode_POD:
	default:
		return errs.New(errs.Invalid, "%s.mode: %s; a user namespace is POD or NODE", field, u.GetMode())
	}
	uids, gids := idMappings(u.GetUids()), idMappings(u.GetGids())
	for _, m := range []struct {
		name string
		list []specs.LinuxIDMapping
	}{{"uids", uids}, {"gids", gids}} {
		if err := checkMapping(field+"."+m.name, m.list); err != nil {
			return err
		}
	}
	if !sameMappings(uids, gids) {
		return errs.New(errs.Invalid, "%s: uids %v and gids %v differ", field, uids, gids)
	}
	return nil
}

func checkMapping(field string, list []specs.LinuxIDMapping) error {
	if len(list) != 1 {
		return errs.New(errs.Invalid, "%s: %d mappings; exactly one is supported", field, len(list))
	}
	m := list[0]
	switch {
	case m.ContainerID != 0:
		return errs.New(errs.Invalid, "%s: container_id %d; the mapping must start at 0", field, m.ContainerID)
	case m.Size == 0:
		return errs.New(errs.Invalid, "%s: length 0", field)
	case uint64(m.HostID)+uint64(m.Size)-1 > maxID:
		return errs.New(errs.Invalid, "%s: host_id %d with length %d is past the last ID, %d", field, m.HostID, m.Size, uint32(maxID))
	}
	return nil
}
