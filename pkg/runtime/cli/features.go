package cli

import (
	"encoding/json"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/seccomp"
)

func setupFeatures(_ *app) ([]flag, func([]string) error) {
	return nil, func([]string) error {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "    ")
		return enc.Encode(known())
	}
}

// known is what this runtime can do on some machine; what this machine lacks is not left out
// (features.md).
func known() *features.Features {
	yes, no := true, false
	f := &features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		Hooks:        []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: runtime.MountOptions(),
		Linux: &features.Linux{
			Capabilities: runtime.Capabilities(),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Seccomp: &features.Seccomp{Enabled: &yes, Actions: words(seccomp.Actions()), Operators: words(seccomp.Operators()),
				Archs: words(seccomp.Archs()), KnownFlags: words(seccomp.Flags()), SupportedFlags: words(seccomp.Flags())},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
		},
		PotentiallyUnsafeConfigAnnotations: []string{"org.systemd.property."},

		Annotations: map[string]string{"org.opencontainers.runc.checkpoint.enabled": "true"},
	}
	f.Linux.MemoryPolicy = &features.MemoryPolicy{}
	f.Linux.MemoryPolicy.Modes, f.Linux.MemoryPolicy.Flags = runtime.MemoryPolicies()
	for _, n := range []specs.LinuxNamespaceType{specs.CgroupNamespace, specs.IPCNamespace, specs.MountNamespace, specs.NetworkNamespace,
		specs.PIDNamespace, specs.TimeNamespace, specs.UserNamespace, specs.UTSNamespace} {
		f.Linux.Namespaces = append(f.Linux.Namespaces, string(n))
	}
	return f
}

func words[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.TrimSpace(string(s))
	}
	return out
}
