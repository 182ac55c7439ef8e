package oci

import (
	"bytes"
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// maxHostname is __NEW_UTS_LEN of the kernel.
const maxHostname = 64

// ValidatePod refuses a pod config that is malformed or contradicts itself, before anything is made of it.
// Whether the objects it names exist is for those who use them.
func ValidatePod(pod *cri.PodSandboxConfig) error {
	if pod == nil {
		return errs.New(errs.Invalid, "config: missing")
	}
	if pod.GetMetadata().GetName() == "" {
		return errs.New(errs.Invalid, "config.metadata.name: empty")
	}
	for _, check := range []func(*cri.PodSandboxConfig) error{
		validateNames, validateSecurity, validatePorts, validateDNS, validateCgroup,
	} {
		if err := check(pod); err != nil {
			return err
		}
	}
	_, err := Sysctls(pod)
	return err
}

func validateNames(pod *cri.PodSandboxConfig) error {
	if h := pod.GetHostname(); len(h) > maxHostname || !charset(h, ".-_") {
		return errs.New(errs.Invalid, "hostname: %q is no host name of at most %d characters", h, maxHostname)
	}
	if dir := pod.GetLogDirectory(); dir != "" && !path.IsAbs(dir) {
		return errs.New(errs.Invalid, "log_directory: %q is not absolute", dir)
	}
	md := pod.GetMetadata()
	for field, name := range map[string]string{"name": md.GetName(), "namespace": md.GetNamespace(), "uid": md.GetUid()} {
		if strings.ContainsFunc(name, unicode.IsControl) {
			return errs.New(errs.Invalid, "config.metadata.%s: %.200q has control characters in it", field, name)
		}
		if len(name) > maxName {
			return errs.New(errs.Invalid, "config.metadata.%s: %.200q has %d bytes; at most %d", field, name, len(name), maxName)
		}
		own := pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != cri.NamespaceMode_NODE
		if own && strings.ContainsAny(name, ";=") {
			return errs.New(errs.Invalid, "config.metadata.%s: %q has a \";\" or \"=\" in it, and cannot be told to CNI plugins", field, name)
		}
	}
	return checkText("log_directory", pod.GetLogDirectory())
}

// maxName is well above what Kubernetes takes for a name, a namespace or a uid, and below what a directory entry, an
// environment or a log line could not hold.
const maxName = 1024

// The longest path of cgroup_parent, and the longest part of it: below it there are the hierarchy's mount point above and
// the pod's and containers' groups below, and the kernel takes 4096 in all.
const maxCgroupPath, maxCgroupName = 2048, 255

func validateCgroup(pod *cri.PodSandboxConfig) error {
	l := pod.GetLinux()
	parent := l.GetCgroupParent()
	if slices.Contains(strings.Split(parent, "/"), "..") || strings.ContainsFunc(parent, func(r rune) bool { return r < ' ' }) {
		return errs.New(errs.Invalid, "linux.cgroup_parent: %.200q is no cgroup path", parent)
	}
	for part := range strings.SplitSeq(parent, "/") {
		if len(parent) > maxCgroupPath || len(part) > maxCgroupName {
			return errs.New(errs.Invalid, "linux.cgroup_parent: %.200q is too long; at most %d bytes, %d between two slashes", parent, maxCgroupPath, maxCgroupName)
		}
		if strings.HasPrefix(part, "cgroup.") {
			return errs.New(errs.Invalid, "linux.cgroup_parent: %.200q has a part %q, as the kernel's own files are called", parent, part)
		}
	}
	if err := checkLimits(l.GetResources()); err != nil {
		return errs.New(errs.Invalid, "linux.%w", err)
	}
	if err := checkLimits(l.GetOverhead()); err != nil {
		return errs.New(errs.Invalid, "linux.overhead: %w", err)
	}
	return nil
}

func validateSecurity(pod *cri.PodSandboxConfig) error {
	sc := pod.GetLinux().GetSecurityContext()
	if err := validateNamespaces(sc.GetNamespaceOptions()); err != nil {
		return err
	}
	if g := sc.GetRunAsGroup(); g != nil && sc.GetRunAsUser() == nil {
		return errs.New(errs.Invalid, "security_context.run_as_group: %d without run_as_user", g.GetValue())
	}
	ids := map[string]int64{"run_as_user": sc.GetRunAsUser().GetValue(), "run_as_group": sc.GetRunAsGroup().GetValue()}
	for i, g := range sc.GetSupplementalGroups() {
		ids[indexed("supplemental_groups", i)] = g
	}
	for field, id := range ids {
		if _, err := checkID("security_context."+field, id); err != nil {
			return err
		}
	}
	if _, ok := cri.SupplementalGroupsPolicy_name[int32(sc.GetSupplementalGroupsPolicy())]; !ok {
		return errs.New(errs.Invalid, "security_context.supplemental_groups_policy: no such policy %d", sc.GetSupplementalGroupsPolicy())
	}
	//nolint:staticcheck // old kubelets and tools send the deprecated field
	if _, err := parseProfile("security_context.seccomp", sc.GetSeccomp(), sc.GetSeccompProfilePath()); err != nil {
		return err
	}
	_, err := parseProfile("security_context.apparmor", sc.GetApparmor(), "")
	return err
}

// CheckPodProfiles refuses a pod whose security profiles are not on the node, as its containers would be refused:
// the holder runs nothing that they could act on. The config must have passed ValidatePod.
func CheckPodProfiles(pod *cri.PodSandboxConfig, host *HostFacts) error {
	sc := pod.GetLinux().GetSecurityContext()
	//nolint:staticcheck // old kubelets and tools send the deprecated field
	p, err := parseProfile("security_context.seccomp", sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil {
		return err
	}
	if p.kind == cri.SecurityProfile_Localhost && p.set {
		if _, err := loadSeccomp("security_context.seccomp.localhost_ref", p.ref, &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}); err != nil {
			return err
		}
	}
	if p, err = parseProfile("security_context.apparmor", sc.GetApparmor(), ""); err != nil {
		return err
	}
	return p.checkAppArmor("security_context.apparmor", host)
}

func validateNamespaces(ns *cri.NamespaceOption) error {
	for _, m := range []struct {
		field   string
		mode    cri.NamespaceMode
		allowed []cri.NamespaceMode
	}{
		{"network", ns.GetNetwork(), []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_NODE}},
		{"ipc", ns.GetIpc(), []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_NODE}},
		{"pid", ns.GetPid(), []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_CONTAINER, cri.NamespaceMode_NODE}},
	} {
		if !slices.Contains(m.allowed, m.mode) {
			return errs.New(errs.Invalid, "namespace_options.%s: a pod sandbox cannot have mode %s", m.field, m.mode)
		}
	}
	u := ns.GetUsernsOptions()
	if err := checkUserNamespace(u); err != nil {
		return err
	}
	if u.GetMode() == cri.NamespaceMode_POD && len(u.GetUids()) > 0 && ns.GetPid() == cri.NamespaceMode_NODE {
		return errs.New(errs.Invalid, "namespace_options.pid: NODE together with a user namespace of the pod")
	}
	return nil
}

func validatePorts(pod *cri.PodSandboxConfig) error {
	type place struct {
		proto cri.Protocol
		ip    netip.Addr
		port  int32
	}
	taken := map[place]int{}
	for i, p := range pod.GetPortMappings() {
		field := indexed("port_mappings", i)
		if _, ok := cri.Protocol_name[int32(p.GetProtocol())]; !ok {
			return errs.New(errs.Invalid, "%s.protocol: no such protocol %d", field, p.GetProtocol())
		}
		for name, port := range map[string]int32{"host_port": p.GetHostPort(), "container_port": p.GetContainerPort()} {
			if port < 0 || port > 65535 {
				return errs.New(errs.Invalid, "%s.%s: %d is no port", field, name, port)
			}
		}
		if p.GetHostPort() != 0 && p.GetContainerPort() == 0 {
			return errs.New(errs.Invalid, "%s.container_port: 0 with host_port %d", field, p.GetHostPort())
		}
		at := place{proto: p.GetProtocol(), port: p.GetHostPort()}
		if ip := p.GetHostIp(); ip != "" {
			addr, err := netip.ParseAddr(ip)
			if err != nil {
				return errs.New(errs.Invalid, "%s.host_ip: %q is no IP address", field, ip)
			}
			at.ip = addr
		}
		if first, ok := taken[at]; ok && at.port != 0 && p.GetContainerPort() != pod.GetPortMappings()[first].GetContainerPort() {
			return errs.New(errs.Invalid, "%s.host_port: %d is taken by %s already", field, at.port, indexed("port_mappings", first))
		}
		taken[at] = i
	}
	return nil
}

func validateDNS(pod *cri.PodSandboxConfig) error {
	dns := pod.GetDnsConfig()
	for i, s := range dns.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			return errs.New(errs.Invalid, "%s: %q is no IP address", indexed("dns_config.servers", i), s)
		}
	}
	for field, list := range map[string][]string{"searches": dns.GetSearches(), "options": dns.GetOptions()} {
		for i, s := range list {
			if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' || r == ';' }) {
				return errs.New(errs.Invalid, "%s: %q cannot stand in resolv.conf", indexed("dns_config."+field, i), s)
			}
		}
	}
	return nil
}

// ResolvConf returns the pod's /etc/resolv.conf. Without a DNS config, or with an empty one, it is the
// node's.
func ResolvConf(dns *cri.DNSConfig, node []byte) []byte {
	var b bytes.Buffer
	if s := dns.GetSearches(); len(s) > 0 {
		b.WriteString("search " + strings.Join(s, " ") + "\n")
	}
	for _, s := range dns.GetServers() {
		b.WriteString("nameserver " + s + "\n")
	}
	if o := dns.GetOptions(); len(o) > 0 {
		b.WriteString("options " + strings.Join(o, " ") + "\n")
	}
	if b.Len() == 0 {
		return slices.Clone(node)
	}
	return b.Bytes()
}

// PodHostname returns the name of a pod's UTS namespace: its own, or where it has none the node's.
func PodHostname(pod *cri.PodSandboxConfig, node string) string {
	if h := pod.GetHostname(); h != "" && pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != cri.NamespaceMode_NODE {
		return h
	}
	return node
}

// Hostname returns the content of /etc/hostname.
func Hostname(name string) []byte { return []byte(name + "\n") }

// Hosts returns the /etc/hosts of a pod with these addresses, for containers whose client mounts none. A
// pod in the node's network has the node's file instead.
func Hosts(name string, ips []string) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range ips {
		if name != "" {
			b.WriteString(ip + "\t" + name + "\n")
		}
	}
	return b.Bytes()
}
