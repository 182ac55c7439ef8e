package oci

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestPidNamespaces(t *testing.T) {
	const none, own = "none", ""
	options := func(mode cri.NamespaceMode) *cri.NamespaceOption {
		return &cri.NamespaceOption{Pid: mode, TargetId: "c0"}
	}
	for name, c := range map[string]struct {
		pod       cri.NamespaceMode
		container *cri.NamespaceOption
		shared    bool // the pod has a pid namespace
		want      string
	}{
		"pod's by default":               {cri.NamespaceMode_POD, nil, true, "/proc/7/ns/pid"},
		"own by default":                 {cri.NamespaceMode_CONTAINER, nil, false, own},
		"node's by default":              {cri.NamespaceMode_NODE, nil, false, none},
		"own in a sharing pod":           {cri.NamespaceMode_POD, options(cri.NamespaceMode_CONTAINER), true, own},
		"target":                         {cri.NamespaceMode_CONTAINER, options(cri.NamespaceMode_TARGET), false, "/proc/9/ns/pid"},
		"pod's where it has the node's":  {cri.NamespaceMode_NODE, options(cri.NamespaceMode_POD), false, none},
		"own where the pod has the node": {cri.NamespaceMode_NODE, options(cri.NamespaceMode_CONTAINER), false, own},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			in.podSecurity().NamespaceOptions.Pid = c.pod
			in.security().NamespaceOptions = c.container
			in.TargetPID = "/proc/9/ns/pid"
			if c.shared {
				in.Namespaces[specs.PIDNamespace] = "/proc/7/ns/pid"
			}
			got := none
			for _, ns := range mustTranslate(t, in).Spec.Linux.Namespaces {
				if ns.Type == specs.PIDNamespace {
					got = ns.Path
				}
			}
			if got != c.want {
				t.Errorf("pid namespace %q, want %q", got, c.want)
			}
		})
	}
}

func TestNamespacesRefused(t *testing.T) {
	mapping := []*cri.IDMapping{{HostId: 1, Length: 5}}
	option := func(o *cri.NamespaceOption) func(*ContainerInput) {
		return func(in *ContainerInput) { in.security().NamespaceOptions = o }
	}
	own := cri.NamespaceMode_CONTAINER
	checkRefusals(t, map[string]refusal{
		"node network in a pod with its own": {option(&cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: own}), errs.Invalid, []string{"namespace_options.network", "NODE"}},
		"container network":                  {option(&cri.NamespaceOption{Network: own, Pid: own}), errs.Invalid, []string{"namespace_options.network"}},
		"node ipc in a pod with its own":     {option(&cri.NamespaceOption{Ipc: cri.NamespaceMode_NODE, Pid: own}), errs.Invalid, []string{"namespace_options.ipc"}},
		"node pid in a sharing pod": {func(in *ContainerInput) {
			in.podSecurity().NamespaceOptions.Pid, in.Namespaces[specs.PIDNamespace] = cri.NamespaceMode_POD, "/proc/7/ns/pid"
			in.security().NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}
		}, errs.Invalid, []string{"namespace_options.pid", "NODE", "POD"}},
		"node pid in a pod without":            {option(&cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}), errs.Invalid, []string{"namespace_options.pid", "NODE", "CONTAINER"}},
		"user namespace of a pod without":      {option(&cri.NamespaceOption{Pid: own, UsernsOptions: &cri.UserNamespace{}}), errs.Invalid, []string{"userns_options"}},
		"pid of a pod that has none":           {option(&cri.NamespaceOption{}), errs.Invalid, []string{"namespace_options.pid", "CONTAINER"}},
		"no such mode":                         {option(&cri.NamespaceOption{Pid: 7}), errs.Invalid, []string{"namespace_options.pid"}},
		"target without ID":                    {option(&cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET}), errs.Invalid, []string{"target_id"}},
		"target that is not there":             {option(&cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: "c9"}), errs.NotFound, []string{"target_id", `"c9"`}},
		"user namespace the pod does not have": {option(&cri.NamespaceOption{Pid: own, UsernsOptions: &cri.UserNamespace{Uids: mapping, Gids: mapping}}), errs.Invalid, []string{"userns_options"}},
		"node pid in a user namespace": {func(in *ContainerInput) {
			*in = *usernsInput(t)
			in.podSecurity().NamespaceOptions.Pid = cri.NamespaceMode_NODE
			in.security().NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}
		}, errs.Invalid, []string{"namespace_options.pid", "user namespace"}},
		"the holder is gone": {func(in *ContainerInput) { in.Namespaces = nil }, errs.Conflict, []string{"network"}},
	})
}

func TestCgroupNamespace(t *testing.T) {
	in := input(t)
	has := func() bool {
		for _, ns := range mustTranslate(t, in).Spec.Linux.Namespaces {
			if ns.Type == specs.CgroupNamespace {
				return true
			}
		}
		return false
	}
	if has() {
		t.Error("cgroup v1 containers get a cgroup namespace")
	}
	in.Host.CgroupV2 = true
	if !has() {
		t.Error("cgroup v2 containers get none")
	}
	in.security().Privileged, in.podSecurity().Privileged, in.Defaults.PrivilegedWithoutHostDevices = true, true, true
	if has() {
		t.Error("privileged containers do not see the node's cgroups")
	}
}

func TestUserNamespaceOptions(t *testing.T) {
	ids := func(container, host, length uint32) *cri.IDMapping {
		return &cri.IDMapping{ContainerId: container, HostId: host, Length: length}
	}
	one := []*cri.IDMapping{ids(0, 1000, 65536)}
	for name, c := range map[string]struct {
		opts *cri.UserNamespace
		text string // "" is valid
	}{
		"none":               {nil, ""},
		"node":               {&cri.UserNamespace{Mode: cri.NamespaceMode_NODE}, ""},
		"pod without maps":   {&cri.UserNamespace{}, "uids: 0 mappings"},
		"pod":                {&cri.UserNamespace{Uids: one, Gids: one}, ""},
		"up to the last ID":  {&cri.UserNamespace{Uids: []*cri.IDMapping{ids(0, 1<<32-2, 1)}, Gids: []*cri.IDMapping{ids(0, 1<<32-2, 1)}}, ""},
		"node with maps":     {&cri.UserNamespace{Mode: cri.NamespaceMode_NODE, Uids: one, Gids: one}, "NODE"},
		"container":          {&cri.UserNamespace{Mode: cri.NamespaceMode_CONTAINER}, "CONTAINER"},
		"target":             {&cri.UserNamespace{Mode: cri.NamespaceMode_TARGET, Uids: one, Gids: one}, "TARGET"},
		"two maps":           {&cri.UserNamespace{Uids: append(one, ids(65536, 9, 1)), Gids: append(one, ids(65536, 9, 1))}, "2 mappings"},
		"zero is not mapped": {&cri.UserNamespace{Uids: []*cri.IDMapping{ids(1, 1000, 5)}, Gids: []*cri.IDMapping{ids(1, 1000, 5)}}, "container_id 1"},
		"empty range":        {&cri.UserNamespace{Uids: []*cri.IDMapping{ids(0, 1000, 0)}, Gids: one}, "length 0"},
		"past the last ID":   {&cri.UserNamespace{Uids: []*cri.IDMapping{ids(0, 1<<32-2, 2)}, Gids: one}, "past the last"},
		"uids and gids":      {&cri.UserNamespace{Uids: one, Gids: []*cri.IDMapping{ids(0, 2000, 65536)}}, "differ"},
		"uids alone":         {&cri.UserNamespace{Uids: one}, "gids: 0 mappings"},
		"gids alone":         {&cri.UserNamespace{Gids: one}, "uids: 0 mappings"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := input(t).Pod
			pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = c.opts
			err := ValidatePod(pod)
			if c.text == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, errs.Invalid, "userns_options", c.text)
		})
	}
	uids, gids := UserNamespace(usernsInput(t).Pod)
	want := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	if !cmp.Equal(uids, want) || !cmp.Equal(gids, want) {
		t.Errorf("mappings %v, %v", uids, gids)
	}
}
