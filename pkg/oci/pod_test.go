package oci

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestSysctls(t *testing.T) {
	pod := input(t).Pod
	pod.Linux.Sysctls = map[string]string{
		"net.ipv4.ip_forward": "1", "kernel/shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "kernel.sem": "32000\t1024000000 500 32000",
		"net/ipv4/conf/eth0.100/forwarding": "0", "net.ipv4.ip_local_reserved_ports": "1,2-3", "kernel.domainname": "example.org",
		"net.ipv4.ping_group_range": "0 2147483647",
	}
	got, err := Sysctls(pod)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "kernel.sem": "32000\t1024000000 500 32000",
		"net.ipv4.conf.eth0/100.forwarding": "0", "net.ipv4.ip_local_reserved_ports": "1,2-3", "kernel.domainname": "example.org",
		"net.ipv4.ping_group_range": "0 2147483647",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if p := SysctlPath("net.ipv4.conf.eth0/100.forwarding"); p != "net/ipv4/conf/eth0.100/forwarding" {
		t.Errorf("path %s", p)
	}
}

func TestSysctlsRefused(t *testing.T) {
	for _, c := range []struct{ key, value string }{
		{"kernel.core_pattern", "|/evil"}, {"kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"}, {"kernel.shmmax", "1\nkernel.core_pattern=x"},
		{"kernel.shmmax", ""}, {"kernel.shmmax", " "}, {"kernel.shmmax", "1\x00"}, {"kernel.shmmax", strings.Repeat("1", 5000)},
		{"net.ipv4/../../kernel/core_pattern", "1"}, {"net/../kernel/core_pattern", "1"}, {"net..x", "1"}, {"net/./x", "1"}, {"net", "1"}, {"net.", "1"},
		{"", "1"}, {".net.x", "1"}, {"/net/x", "1"}, {"fs.mqueue", "1"}, {"fs.mqueue.", "1"}, {"vm.swappiness", "1"}, {"kernel.hostname", "x"},
		{"kernel.shmmax.", "1"}, {"net.ipv4.x=1", "1"}, {"net.ipv4.a b", "1"}, {"net.ipv4.a\n", "1"}, {"kernel.msgmaxx", "1"}, {"user.max_user_namespaces", "1"},
	} {
		pod := input(t).Pod
		pod.Linux.Sysctls = map[string]string{c.key: c.value}
		err := ValidatePod(pod)
		if err == nil {
			t.Errorf("%q = %q is taken", c.key, c.value)
			continue
		}
		wantError(t, err, errs.Invalid, "sysctls")
	}
	for key, ns := range map[string]*cri.NamespaceOption{
		"net.ipv4.ip_forward": {Network: cri.NamespaceMode_NODE}, "kernel.domainname": {Network: cri.NamespaceMode_NODE},
		"kernel.shmmax": {Ipc: cri.NamespaceMode_NODE}, "fs.mqueue.msg_max": {Ipc: cri.NamespaceMode_NODE},
	} {
		pod := input(t).Pod
		pod.Linux.Sysctls = map[string]string{key: "1"}
		pod.Linux.SecurityContext.NamespaceOptions = ns
		wantError(t, ValidatePod(pod), errs.Invalid, "sysctls", key, "node's")
	}
	pod := input(t).Pod
	pod.Linux.Sysctls = map[string]string{"kernel.shmmax": "1", "kernel/shmmax": "2"}
	wantError(t, ValidatePod(pod), errs.Invalid, "twice")
}

func TestPodsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*cri.PodSandboxConfig)
		text   string
	}{
		"no name":              {func(p *cri.PodSandboxConfig) { p.Metadata = nil }, "metadata.name"},
		"hostname too long":    {func(p *cri.PodSandboxConfig) { p.Hostname = strings.Repeat("a", 65) }, "hostname"},
		"hostname with a line": {func(p *cri.PodSandboxConfig) { p.Hostname = "a\nb" }, "hostname"},
		"relative logs":        {func(p *cri.PodSandboxConfig) { p.LogDirectory = "var/log" }, "log_directory"},
		"NUL in logs":          {func(p *cri.PodSandboxConfig) { p.LogDirectory = "/\x00" }, "log_directory"},
		"server no address":    {func(p *cri.PodSandboxConfig) { p.DnsConfig = &cri.DNSConfig{Servers: []string{"8.8.8.8\noptions x"}} }, "dns_config.servers[0]"},
		"search with a space":  {func(p *cri.PodSandboxConfig) { p.DnsConfig = &cri.DNSConfig{Searches: []string{"a", "b c"}} }, "dns_config.searches[1]"},
		"option with a line":   {func(p *cri.PodSandboxConfig) { p.DnsConfig = &cri.DNSConfig{Options: []string{"ndots:5\n"}} }, "dns_config.options[0]"},
		"port too high": {func(p *cri.PodSandboxConfig) {
			p.PortMappings = []*cri.PortMapping{{HostPort: 65536, ContainerPort: 1}}
		}, "port_mappings[0].host_port: 65536"},
		"negative port":        {func(p *cri.PodSandboxConfig) { p.PortMappings = []*cri.PortMapping{{ContainerPort: -1}} }, "port_mappings[0].container_port: -1"},
		"host port to nothing": {func(p *cri.PodSandboxConfig) { p.PortMappings = []*cri.PortMapping{{HostPort: 80}} }, "port_mappings[0].container_port: 0"},
		"protocol":             {func(p *cri.PodSandboxConfig) { p.PortMappings = []*cri.PortMapping{{Protocol: 5}} }, "port_mappings[0].protocol"},
		"host IP":              {func(p *cri.PodSandboxConfig) { p.PortMappings = []*cri.PortMapping{{HostIp: "localhost"}} }, "port_mappings[0].host_ip"},
		"host port twice": {func(p *cri.PodSandboxConfig) {
			p.PortMappings = []*cri.PortMapping{{HostPort: 80, ContainerPort: 1}, {HostPort: 80, ContainerPort: 1, Protocol: cri.Protocol_UDP}, {HostPort: 80, ContainerPort: 2}}
		}, "port_mappings[2].host_port: 80 is taken by port_mappings[0]"},
		"name with a line":       {func(p *cri.PodSandboxConfig) { p.Metadata.Name = "a\nb" }, `metadata.name: "a\nb"`},
		"uid with a NUL":         {func(p *cri.PodSandboxConfig) { p.Metadata.Uid = "a\x00b" }, "metadata.uid"},
		"name of a CNI argument": {func(p *cri.PodSandboxConfig) { p.Metadata.Name = "a;b=c" }, `metadata.name: "a;b=c"`},
		"namespace too long":     {func(p *cri.PodSandboxConfig) { p.Metadata.Namespace = strings.Repeat("a", 1025) }, "metadata.namespace"},
		"cgroup too long":        {func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = strings.Repeat("/a", 1025) }, "cgroup_parent"},
		"cgroup of a long part":  {func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = "/x/" + strings.Repeat("a", 256) }, "cgroup_parent"},
		"cgroup of a file":       {func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = "/cgroup.procs" }, "cgroup_parent"},
		"cgroup climbs":          {func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = "/kubepods/../../x" }, "cgroup_parent"},
		"cgroup with a line":     {func(p *cri.PodSandboxConfig) { p.Linux.CgroupParent = "/a\nb" }, "cgroup_parent"},
		"limits":                 {func(p *cri.PodSandboxConfig) { p.Linux.Resources = &cri.LinuxContainerResources{CpuShares: -1} }, "linux.resources.cpu_shares"},
		"overhead":               {func(p *cri.PodSandboxConfig) { p.Linux.Overhead = &cri.LinuxContainerResources{CpuPeriod: 1} }, "linux.overhead"},
		"group without user": {func(p *cri.PodSandboxConfig) {
			p.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 1}
		}, "run_as_group"},
		"user": {func(p *cri.PodSandboxConfig) {
			p.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: -1}
		}, "run_as_user"},
		"group ID": {func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.SupplementalGroups = []int64{1 << 40} }, "supplemental_groups[0]"},
		"policy":   {func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.SupplementalGroupsPolicy = 3 }, "supplemental_groups_policy"},
		"seccomp":  {func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.SeccompProfilePath = "x" }, "seccomp"}, //nolint:staticcheck // the deprecated field is under test
		"apparmor": {func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: 9} }, "apparmor"},
		"network mode": {func(p *cri.PodSandboxConfig) {
			p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_CONTAINER
		}, "namespace_options.network"},
		"ipc mode": {func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_TARGET }, "namespace_options.ipc"},
		"pid mode": {func(p *cri.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_TARGET }, "namespace_options.pid"},
		"pid and user ns": {func(p *cri.PodSandboxConfig) {
			m := []*cri.IDMapping{{HostId: 1, Length: 1}}
			p.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE, UsernsOptions: &cri.UserNamespace{Uids: m, Gids: m}}
		}, "namespace_options.pid"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := input(t).Pod
			c.change(pod)
			wantError(t, ValidatePod(pod), errs.Invalid, c.text)
		})
	}
	wantError(t, ValidatePod(nil), errs.Invalid, "config")
}

func TestPodsTaken(t *testing.T) {
	for name, pod := range map[string]*cri.PodSandboxConfig{
		"least": {Metadata: &cri.PodSandboxMetadata{Name: "x"}},
		"much": {
			Metadata: &cri.PodSandboxMetadata{Name: "x"}, Hostname: "a.b-c", LogDirectory: "/var/log/pods/x",
			DnsConfig:    &cri.DNSConfig{Servers: []string{"10.0.0.10", "fd00::1", "fe80::1%eth0"}, Searches: []string{"a.svc", "."}, Options: []string{"ndots:5"}},
			PortMappings: []*cri.PortMapping{{ContainerPort: 80}, {HostPort: 8080, ContainerPort: 80, HostIp: "::1", Protocol: cri.Protocol_SCTP}, {}},
			Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "kubepods-pod1.slice", Resources: &cri.LinuxContainerResources{CpuQuota: -1}},
		},
	} {
		if err := ValidatePod(pod); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPodFiles(t *testing.T) {
	node := []byte("nameserver 127.0.0.53\n")
	if got := ResolvConf(nil, node); string(got) != string(node) {
		t.Errorf("without a config: %q", got)
	}
	if got := ResolvConf(&cri.DNSConfig{}, node); string(got) != string(node) {
		t.Errorf("with an empty one: %q", got)
	}
	dns := &cri.DNSConfig{Servers: []string{"10.0.0.10", "fd00::1"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5", "edns0"}}
	if got := string(ResolvConf(dns, node)); got != "search a b\nnameserver 10.0.0.10\nnameserver fd00::1\noptions ndots:5 edns0\n" {
		t.Errorf("%q", got)
	}
	if got := string(Hosts("web", []string{"10.1.2.3", "fd00::2"})); !strings.HasSuffix(got, "10.1.2.3\tweb\nfd00::2\tweb\n") || !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n") {
		t.Errorf("%q", got)
	}
	pod := input(t).Pod
	if got := PodHostname(pod, "node"); got != "pod" {
		t.Errorf("hostname %q", got)
	}
	pod.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	if got := PodHostname(pod, "node"); got != "node" || string(Hostname(got)) != "node\n" {
		t.Errorf("hostname in the node's network %q", got)
	}
}

// Whatever is accepted stays below /proc/sys in a family of the pod's namespaces.
func FuzzSysctls(f *testing.F) {
	for _, k := range []string{"net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/x", "kernel.shmmax", "net/../kernel/x", "net.a/b.c", "a..b"} {
		f.Add(k, "1")
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		got, err := Sysctls(&cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{key: value}}})
		if err != nil {
			return
		}
		for k, v := range got {
			path := SysctlPath(k)
			if strings.ContainsAny(v, "\n\x00+=|") {
				t.Errorf("value %q", v)
			}
			for _, part := range strings.Split(path, "/") {
				if part == "" || strings.Trim(part, ".") == "" {
					t.Errorf("%q becomes path %q", key, path)
				}
			}
			if !within("net", path) && !within("kernel", path) && !within("fs/mqueue", path) {
				t.Errorf("%q becomes path %q", key, path)
			}
			if again, err := SysctlKey(k); err != nil || again != k {
				t.Errorf("%q is not canonical: %q, %v", k, again, err)
			}
		}
	})
}
