package serve

import (
	"regexp"
	"runtime"
	"strings"

	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/config"
	"github.com/cri-server/cri-server/pkg/oci"
	"github.com/cri-server/cri-server/pkg/server"
	"github.com/cri-server/cri-server/pkg/sys"
)

// features are what this machine can do.
func features(h *oci.HostFacts) server.Features {
	return server.Features{
		UserNamespaces:           sys.Has(sys.IdmapTmpfs), // a pod's /dev/shm and volumes are tmpfs
		RecursiveReadOnlyMounts:  h.RRO,
		SupplementalGroupsPolicy: true,
		UserNamespacesHostNet:    true,
		MountOptions:             true,
	}
}

// missing lists what the server's own privileges do not allow it to give to containers.
func missing(h *oci.HostFacts) []string {
	var out []string
	if h.Capabilities != nil {
		for _, c := range []string{"CAP_SYS_RESOURCE", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_MKNOD"} {
			if !h.Capabilities[c] {
				out = append(out, c)
			}
		}
	}
	return out
}

// warn says once what is clamped from here on.
func warn(h *oci.HostFacts) {
	if m := missing(h); len(m) > 0 {
		klog.InfoS("Running with fewer capabilities than root has: what containers ask for beyond is left out, limits and OOM scores are clamped", "missing", m)
	}
}

// info is the verbose part of Status.
func info(cfg *config.Config, p *parts) map[string]any {
	features := map[string]bool{}
	for f := sys.ExecMemfd; f.String() != "unknown"; f++ {
		features[f.String()] = sys.Has(f)
	}
	return map[string]any{
		"config": cfg,
		"host": map[string]any{
			"go": runtime.Version(), "cgroup": p.cgroups.Mode().String(), "kernelFeatures": features,
			"swap": p.host.Swap, "apparmor": p.host.AppArmor, "apparmorDefault": p.appArmor, "apparmorDefaultMissing": p.noAppArmor, "selinux": p.host.SELinux, "recursiveReadOnly": p.host.RRO,
			"missingCapabilities": missing(p.host),
		},
	}
}

var semantic = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

// semver makes a semantic version, which the CRI asks for, of what git describes.
func semver(version string) string {
	v := strings.TrimPrefix(version, "v")
	if semantic.MatchString(v) {
		return v
	}
	build := strings.Map(func(r rune) rune {
		if r == '-' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, v)
	return "0.0.0-dev+" + build
}
