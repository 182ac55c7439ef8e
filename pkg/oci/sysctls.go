package oci

import (
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// ipcSysctls are those of the kernel.* family that an IPC namespace has of its own (ipc/ipc_sysctl.c).
var ipcSysctls = []string{
	"kernel.auto_msgmni", "kernel.msg_next_id", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.sem_next_id",
	"kernel.shm_next_id", "kernel.shm_rmid_forced", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
}

// Sysctls returns a pod's sysctls under canonical keys (SysctlKey), or an Invalid error for one that does
// not belong to a namespace of the pod's own: such a write would reach the node.
func Sysctls(pod *cri.PodSandboxConfig) (map[string]string, error) {
	f := factsOf(pod)
	var out map[string]string
	for k, v := range pod.GetLinux().GetSysctls() {
		key, err := SysctlKey(k)
		if err == nil {
			err = f.checkSysctl(k, key)
		}
		if err != nil {
			return nil, err
		}
		if !validSysctlValue(v) {
			return nil, errs.New(errs.Invalid, "sysctls: value %q of %q", v, k)
		}
		if old, twice := out[key]; twice && old != v {
			return nil, errs.New(errs.Invalid, "sysctls: %q is given twice, as %q and %q", key, old, v)
		}
		if out == nil {
			out = make(map[string]string)
		}
		out[key] = v
	}
	return out, nil
}

// checkSysctl says whether the key belongs to a namespace that the pod does not share with the node.
func (f *podFacts) checkSysctl(given, key string) error {
	var namespace string
	var mode cri.NamespaceMode
	switch {
	case strings.HasPrefix(key, "net."):
		namespace, mode = "network", f.network
	case slices.Contains(ipcSysctls, key), strings.HasPrefix(key, "fs.mqueue."):
		namespace, mode = "ipc", f.ipc
	case key == "kernel.domainname":
		namespace, mode = "uts", f.network
	default:
		return errs.New(errs.Invalid, "sysctls: %q is not one of a pod's namespaces; setting it would change the node", given)
	}
	if mode == cri.NamespaceMode_NODE {
		return errs.New(errs.Invalid, "sysctls: %q cannot be set in a pod that shares the node's %s namespace", given, namespace)
	}
	return nil
}

// SysctlKey brings a sysctl's name into its canonical form: components separated by dots, a dot inside a
// component (an interface such as eth0.100) written as a slash. As with sysctl(8), the first separator of
// the given name says which form it is in.
func SysctlKey(name string) (string, error) {
	key := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		key = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	parts := strings.Split(key, ".")
	for _, part := range parts {
		if part == "" || part[0] == '/' || strings.Contains(part, "//") || !charset(part, "_-/") {
			return "", errs.New(errs.Invalid, "sysctls: %q names no sysctl", name)
		}
	}
	if len(parts) < 2 || len(key) > 253 {
		return "", errs.New(errs.Invalid, "sysctls: %q names no sysctl", name)
	}
	return key, nil
}

// SysctlPath gives the path of a canonical key below /proc/sys.
func SysctlPath(key string) string {
	return strings.NewReplacer(".", "/", "/", ".").Replace(key)
}

// validSysctlValue allows what sysctls hold: numbers, lists, words, addresses. No line ends, and none of
// the characters that join several settings in other tools ("1+kernel.core_pattern=|/evil").
func validSysctlValue(v string) bool {
	return strings.TrimSpace(v) != "" && len(v) <= 4096 && charset(v, " \t._,:-")
}

// charset reports whether s has only ASCII letters, digits and the other characters given.
func charset(s, others string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return true
}
