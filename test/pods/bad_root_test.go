//go:build root

package pods

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bad is a request that is refused: with which code, and what the message names.
type bad struct {
	name    string
	request func(f *fixtures) error
	code    codes.Code
	words   string // separated by spaces
}

// fixtures are a node with objects in every state.
type fixtures struct {
	*node
	config                             *cri.PodSandboxConfig
	ready, stopped                     string // pods
	running, created, exited, terminal string // containers
	gone                               string // an id that nobody has
}

func newFixtures(t *testing.T) *fixtures {
	n := newNode(t)
	f := &fixtures{node: n, config: n.podConfig("ready", mapped), gone: strings.Repeat("0", 64)}
	f.ready = n.pod(f.config)
	f.running = n.run(f.ready, f.config, "running", "exec sleep 1000", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
	})
	f.terminal = n.run(f.ready, f.config, "terminal", "exec sleep 1000", func(c *cri.ContainerConfig) { c.Tty = true })
	f.created = n.create(f.ready, containerConfig(f.config, "created", "true"), f.config)
	f.exited = n.run(f.ready, f.config, "exited", "exit 3")
	n.ended(f.exited)
	f.stopped = n.pod(n.podConfig("stopped"))
	n.stopPod(f.stopped)
	return f
}

// all is everything that a request could have changed.
func (f *fixtures) all() string {
	f.t.Helper()
	var out []string
	for _, p := range f.pods() {
		out = append(out, "pod "+p.Id+" "+p.State.String())
	}
	for _, c := range f.containers() {
		out = append(out, "container "+c.Id+" "+c.State.String())
	}
	r, err := f.img.ListImages(f.ctx, &cri.ListImagesRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, i := range r.Images {
		out = append(out, fmt.Sprint("image ", i.Id, i.RepoTags, i.RepoDigests))
	}
	out = append(out, f.cgroups()...)
	out = append(out, f.files()...)
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// TestBadInput sends one malformed, contradictory or misplaced request after the other.
func TestBadInput(t *testing.T) {
	f := newFixtures(t)
	before, processes := f.all(), len(f.processes())
	for _, b := range slices.Concat(badPods(), badContainers(), badCalls(), badImages()) {
		t.Run(b.name, func(t *testing.T) {
			err := b.request(f)
			if code := status.Code(err); code != b.code {
				t.Fatalf("code %s, want %s: %v", code, b.code, err)
			}
			for _, w := range strings.Fields(b.words) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v: it does not name %s", err, w)
				}
			}
		})
	}
	f.check()
	// What the kernel still does takes a moment: links go with their namespace, shims end.
	for deadline := time.Now().Add(10 * time.Second); f.all() != before || len(f.processes()) != processes || len(f.links()) != 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("something changed (-before +after):\n%s\n%d processes before: %q, one link before: %q", cmp.Diff(before, f.all()), processes, f.processes(), f.links())
		}
	}
	if got := f.exec(f.running, "echo ok"); got != "ok" {
		t.Errorf("exec: %q", got)
	}
	f.removeAll()
}

func badPods() []bad {
	pod := func(name string, code codes.Code, words string, edit func(c *cri.PodSandboxConfig)) bad {
		return bad{"RunPodSandbox/" + name, func(f *fixtures) error {
			id, err := f.tryPod(f.podConfig("bad", edit))
			if err == nil {
				f.removePod(id)
			}
			return err
		}, code, words}
	}
	sysctl := func(name, key, value string) bad {
		return pod("sysctl "+name, codes.InvalidArgument, key, func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{key: value} })
	}
	security := func(name, words string, edit func(sc *cri.LinuxSandboxSecurityContext)) bad {
		return pod(name, codes.InvalidArgument, words, func(c *cri.PodSandboxConfig) { edit(c.Linux.SecurityContext) })
	}
	namespaces := func(name, words string, edit func(o *cri.NamespaceOption)) bad {
		return security(name, words, func(sc *cri.LinuxSandboxSecurityContext) { edit(sc.NamespaceOptions) })
	}
	users := func(name, words string, mode cri.NamespaceMode, ids ...*cri.IDMapping) bad {
		return namespaces("userns "+name, words, func(o *cri.NamespaceOption) {
			o.UsernsOptions = &cri.UserNamespace{Mode: mode, Uids: ids, Gids: ids}
		})
	}
	port := func(name, words string, p *cri.PortMapping) bad {
		return pod("port "+name, codes.InvalidArgument, words, func(c *cri.PodSandboxConfig) { c.PortMappings = []*cri.PortMapping{p} })
	}
	const invalid = codes.InvalidArgument
	return []bad{
		{"RunPodSandbox/no config", func(f *fixtures) error { _, err := f.tryPod(nil); return err }, invalid, "config"},
		pod("no metadata", invalid, "config.metadata", func(c *cri.PodSandboxConfig) { c.Metadata = nil }),
		pod("no name", invalid, "metadata.name", func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" }),
		{"RunPodSandbox/unknown handler", func(f *fixtures) error {
			_, err := f.rt.RunPodSandbox(f.ctx, &cri.RunPodSandboxRequest{Config: f.podConfig("bad"), RuntimeHandler: "kata"})
			return err
		}, invalid, `runtime_handler "kata"`},
		{"RunPodSandbox/another of the same name", func(f *fixtures) error {
			_, err := f.tryPod(f.podConfig("ready"))
			return err
		}, codes.AlreadyExists, "default/ready uid-ready"},
		pod("hostname of 65", invalid, "hostname", func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 65) }),
		pod("hostname with a line end", invalid, "hostname", func(c *cri.PodSandboxConfig) { c.Hostname = "a\n127.0.0.1 evil" }),
		pod("log directory relative", invalid, "log_directory logs", func(c *cri.PodSandboxConfig) { c.LogDirectory = "logs" }),
		pod("log directory with NUL", invalid, "log_directory", func(c *cri.PodSandboxConfig) { c.LogDirectory = "/var/tmp/a\x00b" }),
		pod("log directory below a file", invalid, "log_directory /etc/passwd/logs", func(c *cri.PodSandboxConfig) { c.LogDirectory = "/etc/passwd/logs" }),
		pod("log directory that is a file", invalid, "log_directory /etc/passwd", func(c *cri.PodSandboxConfig) { c.LogDirectory = "/etc/passwd" }),
		pod("log directory too long", invalid, "log_directory", func(c *cri.PodSandboxConfig) { c.LogDirectory = "/var/tmp/" + strings.Repeat("a", 300) }),
		pod("absent seccomp profile", codes.NotFound, "seccomp.localhost_ref /no/such/profile", func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile"}
		}),
		security("seccomp profile that is none", "seccomp.localhost_ref /etc/passwd", func(sc *cri.LinuxSandboxSecurityContext) {
			sc.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/etc/passwd"}
		}),
		pod("cgroup parent climbs", invalid, "cgroup_parent ../../x", func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../x" }),
		pod("cgroup parent with NUL", invalid, "cgroup_parent", func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/a\x00b" }),
		pod("overhead negative", invalid, "overhead -5", func(c *cri.PodSandboxConfig) {
			c.Linux.Overhead = &cri.LinuxContainerResources{MemoryLimitInBytes: -5}
		}),
		pod("dns server", invalid, "dns_config.servers[0] example.com", func(c *cri.PodSandboxConfig) { c.DnsConfig = &cri.DNSConfig{Servers: []string{"example.com"}} }),
		pod("dns search", invalid, "dns_config.searches[0]", func(c *cri.PodSandboxConfig) {
			c.DnsConfig = &cri.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}}
		}),
		pod("dns option", invalid, "dns_config.options[0]", func(c *cri.PodSandboxConfig) { c.DnsConfig = &cri.DNSConfig{Options: []string{"ndots:2 a"}} }),
		port("above 65535", "port_mappings[0].host_port 65536", &cri.PortMapping{HostPort: 65536, ContainerPort: 80}),
		port("negative", "port_mappings[0].container_port -1", &cri.PortMapping{HostPort: 80, ContainerPort: -1}),
		port("protocol", "port_mappings[0].protocol 9", &cri.PortMapping{HostPort: 80, ContainerPort: 80, Protocol: 9}),
		port("host address", "port_mappings[0].host_ip 1.2.3.256", &cri.PortMapping{HostPort: 80, ContainerPort: 80, HostIp: "1.2.3.256"}),
		sysctl("of the host", "kernel.core_pattern", "|/bin/sh"),
		sysctl("unknown", "net.core.no_such_thing", "1"),
		sysctl("climbs", "net.ipv4.../../kernel/core_pattern", "|/bin/sh"),
		sysctl("with another in its value", "kernel.shm_rmid_forced", "1+kernel.core_pattern=|/bin/sh"),
		sysctl("with a line end", "kernel.shm_rmid_forced", "1\n2"),
		sysctl("that the kernel refuses", "kernel.shm_rmid_forced", "17"),
		sysctl("without a name", "", "1"),
		pod("sysctl of the node's network", invalid, "net.ipv4.ip_forward", func(c *cri.PodSandboxConfig) {
			c.Hostname, c.Linux.SecurityContext.NamespaceOptions.Network = "", cri.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}),
		pod("sysctl of the node's IPC", invalid, "kernel.shmmax", func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"kernel.shmmax": "1"}
		}),
		security("group without user", "run_as_group 5", func(sc *cri.LinuxSandboxSecurityContext) { sc.RunAsGroup = &cri.Int64Value{Value: 5} }),
		security("user -1", "run_as_user -1", func(sc *cri.LinuxSandboxSecurityContext) { sc.RunAsUser = &cri.Int64Value{Value: -1} }),
		security("user 2^32", "run_as_user 4294967296", func(sc *cri.LinuxSandboxSecurityContext) { sc.RunAsUser = &cri.Int64Value{Value: 1 << 32} }),
		security("user 2^32-1", "run_as_user 4294967295", func(sc *cri.LinuxSandboxSecurityContext) { sc.RunAsUser = &cri.Int64Value{Value: 1<<32 - 1} }),
		security("supplemental group", "supplemental_groups[0] -7", func(sc *cri.LinuxSandboxSecurityContext) { sc.SupplementalGroups = []int64{-7} }),
		security("group policy", "supplemental_groups_policy 9", func(sc *cri.LinuxSandboxSecurityContext) { sc.SupplementalGroupsPolicy = 9 }),
		security("seccomp type", "seccomp 9", func(sc *cri.LinuxSandboxSecurityContext) { sc.Seccomp = &cri.SecurityProfile{ProfileType: 9} }),
		namespaces("network CONTAINER", "network CONTAINER", func(o *cri.NamespaceOption) { o.Network = cri.NamespaceMode_CONTAINER }),
		namespaces("network unknown", "network 77", func(o *cri.NamespaceOption) { o.Network = 77 }),
		namespaces("ipc TARGET", "ipc TARGET", func(o *cri.NamespaceOption) { o.Ipc = cri.NamespaceMode_TARGET }),
		namespaces("pid TARGET", "pid TARGET", func(o *cri.NamespaceOption) { o.Pid = cri.NamespaceMode_TARGET }),
		users("CONTAINER", "userns CONTAINER", cri.NamespaceMode_CONTAINER, &cri.IDMapping{HostId: 100000, Length: 65536}),
		users("TARGET", "userns TARGET", cri.NamespaceMode_TARGET, &cri.IDMapping{HostId: 100000, Length: 65536}),
		users("two mappings", "userns", cri.NamespaceMode_POD, &cri.IDMapping{HostId: 100000, Length: 10}, &cri.IDMapping{HostId: 200000, ContainerId: 10, Length: 10}),
		users("0 unmapped", "userns", cri.NamespaceMode_POD, &cri.IDMapping{HostId: 100000, ContainerId: 1, Length: 10}),
		users("no mapping", "userns 0", cri.NamespaceMode_POD),
		users("NODE with a mapping", "userns NODE", cri.NamespaceMode_NODE, &cri.IDMapping{HostId: 100000, Length: 10}),
		users("no length", "userns", cri.NamespaceMode_POD, &cri.IDMapping{HostId: 100000}),
		users("beyond 2^32", "userns", cri.NamespaceMode_POD, &cri.IDMapping{HostId: 4294967290, Length: 10}),
	}
}

func badContainers() []bad {
	in := func(name string, code codes.Code, words string, pod func(f *fixtures) string, edit func(f *fixtures, c *cri.ContainerConfig)) bad {
		return bad{"CreateContainer/" + name, func(f *fixtures) error {
			id, err := f.tryCreate(pod(f), containerConfig(f.config, "bad", "true", func(c *cri.ContainerConfig) { edit(f, c) }), f.config)
			if err == nil {
				f.remove(id)
			}
			return err
		}, code, words}
	}
	ready := func(f *fixtures) string { return f.ready }
	as := func(*fixtures, *cri.ContainerConfig) {}
	coded := func(name string, code codes.Code, words string, edit func(c *cri.ContainerConfig)) bad {
		return in(name, code, words, ready, func(_ *fixtures, c *cri.ContainerConfig) { edit(c) })
	}
	container := func(name, words string, edit func(c *cri.ContainerConfig)) bad {
		return coded(name, codes.InvalidArgument, words, edit)
	}
	security := func(name, words string, edit func(sc *cri.LinuxContainerSecurityContext)) bad {
		return container(name, words, func(c *cri.ContainerConfig) { edit(c.Linux.SecurityContext) })
	}
	resources := func(name, words string, r *cri.LinuxContainerResources) bad {
		return container("resources "+name, words, func(c *cri.ContainerConfig) { c.Linux.Resources = r })
	}
	mount := func(name string, code codes.Code, words string, m *cri.Mount) bad {
		return coded("mount "+name, code, words, func(c *cri.ContainerConfig) { c.Mounts = []*cri.Mount{m} })
	}
	const invalid, absent = codes.InvalidArgument, codes.NotFound
	return []bad{
		in("no pod named", invalid, "pod_sandbox_id", func(*fixtures) string { return "" }, as),
		in("absent pod", absent, "000000", func(f *fixtures) string { return f.gone }, as),
		in("pod id with a path", absent, "", func(f *fixtures) string { return "../" + f.ready }, as),
		in("stopped pod", codes.FailedPrecondition, "ready", func(f *fixtures) string { return f.stopped }, as),
		{"CreateContainer/no config", func(f *fixtures) error { _, err := f.tryCreate(f.ready, nil, f.config); return err }, invalid, "config"},
		container("no metadata", "config.metadata", func(c *cri.ContainerConfig) { c.Metadata = nil }),
		container("no name", "metadata.name", func(c *cri.ContainerConfig) { c.Metadata.Name = "" }),
		coded("another of the same name", codes.AlreadyExists, "running", func(c *cri.ContainerConfig) { c.Metadata.Name = "running" }),
		container("no image", "image", func(c *cri.ContainerConfig) { c.Image = nil }),
		coded("absent image", absent, "registry.test/none:1", func(c *cri.ContainerConfig) { c.Image = &cri.ImageSpec{Image: "registry.test/none:1"} }),
		container("malformed image", "image", func(c *cri.ContainerConfig) { c.Image = &cri.ImageSpec{Image: "a b:::"} }),
		container("log path climbs", "log_path ../../x", func(c *cri.ContainerConfig) { c.LogPath = "../../x" }),
		container("log path with NUL", "log_path", func(c *cri.ContainerConfig) { c.LogPath = "a\x00b" }),
		container("log path is the directory", "log_path .", func(c *cri.ContainerConfig) { c.LogPath = "a/.." }),
		container("log path of dots", "log_path .", func(c *cri.ContainerConfig) { c.LogPath = "./." }),
		container("log path too long", "log_path 5000", func(c *cri.ContainerConfig) { c.LogPath = strings.Repeat("a", 5000) }),
		container("log path of many parts", "log_path 6000", func(c *cri.ContainerConfig) { c.LogPath = strings.Repeat("a/", 3000) }),
		container("command with NUL", "command", func(c *cri.ContainerConfig) { c.Command = []string{"a\x00b"} }),
		container("argument too long", "command", func(c *cri.ContainerConfig) { c.Command = []string{"sh", strings.Repeat("a", 1<<18)} }),
		container("working directory relative", "working_dir tmp", func(c *cri.ContainerConfig) { c.WorkingDir = "tmp" }),
		container("environment name", "envs[0] A=B", func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A=B", Value: []byte("c")}} }),
		container("environment name empty", "envs[0]", func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Value: []byte("c")}} }),
		container("environment with NUL", "envs[0]", func(c *cri.ContainerConfig) { c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("b\x00c")}} }),
		container("stop signal", "stop_signal 9999", func(c *cri.ContainerConfig) { c.StopSignal = 9999 }),
		container("windows", "windows", func(c *cri.ContainerConfig) { c.Windows = &cri.WindowsContainerConfig{} }),
		mount("of nothing", absent, "mounts[0].host_path /no/such/path", &cri.Mount{HostPath: "/no/such/path", ContainerPath: "/x"}),
		mount("relative", invalid, "mounts[0].host_path etc", &cri.Mount{HostPath: "etc", ContainerPath: "/x"}),
		mount("to nowhere", invalid, "mounts[0].container_path", &cri.Mount{HostPath: "/etc"}),
		mount("over the root", invalid, "mounts[0].container_path", &cri.Mount{HostPath: "/etc", ContainerPath: "/x/.."}),
		mount("propagation", invalid, "mounts[0].propagation", &cri.Mount{HostPath: "/etc", ContainerPath: "/x", Propagation: 9}),
		mount("shared from private", invalid, "mounts[0].propagation", &cri.Mount{HostPath: "/etc", ContainerPath: "/x", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}),
		mount("recursively read-only, writable", invalid, "recursive_read_only", &cri.Mount{HostPath: "/etc", ContainerPath: "/x", RecursiveReadOnly: true}),
		mount("option", invalid, "mount_options[0] suid", &cri.Mount{HostPath: "/etc", ContainerPath: "/x", MountOptions: []string{"suid"}}),
		mount("absent image", absent, "ImageVolumeMountFailed", &cri.Mount{Image: &cri.ImageSpec{Image: "registry.test/none:1"}, ContainerPath: "/x", Readonly: true}),
		mount("image path climbs", invalid, "ImageVolumeMountFailed ../..", &cri.Mount{Image: &cri.ImageSpec{Image: busybox}, ImageSubPath: "../..", ContainerPath: "/x", Readonly: true}),
		mount("image path absent", absent, "ImageVolumeMountFailed none", &cri.Mount{Image: &cri.ImageSpec{Image: busybox}, ImageSubPath: "none", ContainerPath: "/x", Readonly: true}),
		coded("device absent", absent, "/dev/none", func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/none", ContainerPath: "/dev/none", Permissions: "rwm"}}
		}),
		container("device permissions", "devices[0].permissions x", func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "x"}}
		}),
		container("device that is none", "devices[0].host_path /etc/passwd", func(c *cri.ContainerConfig) {
			c.Devices = []*cri.Device{{HostPath: "/etc/passwd", ContainerPath: "/dev/x", Permissions: "r"}}
		}),
		coded("CDI device", absent, "vendor.com/device=none", func(c *cri.ContainerConfig) { c.CDIDevices = []*cri.CDIDevice{{Name: "vendor.com/device=none"}} }),
		resources("memory negative", "memory_limit_in_bytes -5", &cri.LinuxContainerResources{MemoryLimitInBytes: -5}),
		resources("swap below memory", "memory_swap_limit_in_bytes", &cri.LinuxContainerResources{MemoryLimitInBytes: 1 << 30, MemorySwapLimitInBytes: 1 << 20}),
		resources("cpuset", "cpuset_cpus zero", &cri.LinuxContainerResources{CpusetCpus: "zero"}),
		resources("absent CPU", "resources.cpuset_cpus 4000", &cri.LinuxContainerResources{CpusetCpus: "4000"}),
		resources("absent memory node", "resources.cpuset_mems 63", &cri.LinuxContainerResources{CpusetMems: "0,63"}),
		resources("absent huge pages", "resources.hugepage_limits[0].page_size 16MB", &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "16MB", Limit: 16 << 20}}}),
		resources("unified of no controller", "resources.unified nosuch.max", &cri.LinuxContainerResources{Unified: map[string]string{"nosuch.max": "1"}}),
		resources("unified of no file", "resources.unified memory.nosuch", &cri.LinuxContainerResources{Unified: map[string]string{"memory.nosuch": "1"}}),
		resources("memory of one byte", "memory_limit_in_bytes 1", &cri.LinuxContainerResources{MemoryLimitInBytes: 1}),
		resources("cpu period", "cpu_period 7", &cri.LinuxContainerResources{CpuPeriod: 7, CpuQuota: 10000}),
		resources("oom score", "oom_score_adj 1001", &cri.LinuxContainerResources{OomScoreAdj: 1001}),
		resources("unified", "unified", &cri.LinuxContainerResources{Unified: map[string]string{"../memory.max": "1"}}),
		resources("huge pages", "hugepage_limits", &cri.LinuxContainerResources{HugepageLimits: []*cri.HugepageLimit{{PageSize: "3QB", Limit: 1}}}),
		security("capability", "NO_SUCH_CAP", func(sc *cri.LinuxContainerSecurityContext) {
			sc.Capabilities = &cri.Capability{AddCapabilities: []string{"NO_SUCH_CAP"}}
		}),
		security("privileged in a pod that is not", "privileged", func(sc *cri.LinuxContainerSecurityContext) { sc.Privileged = true }),
		security("user 2^32", "run_as_user 4294967296", func(sc *cri.LinuxContainerSecurityContext) { sc.RunAsUser = &cri.Int64Value{Value: 1 << 32} }),
		security("user -1", "run_as_user -1", func(sc *cri.LinuxContainerSecurityContext) { sc.RunAsUser = &cri.Int64Value{Value: -1} }),
		security("group without user", "run_as_group 5", func(sc *cri.LinuxContainerSecurityContext) { sc.RunAsGroup = &cri.Int64Value{Value: 5} }),
		security("user and user name", "run_as_user", func(sc *cri.LinuxContainerSecurityContext) {
			sc.RunAsUser, sc.RunAsUsername = &cri.Int64Value{Value: 5}, "root"
		}),
		security("user name 4294967296", "4294967296", func(sc *cri.LinuxContainerSecurityContext) { sc.RunAsUsername = "4294967296" }),
		security("masked path", "masked_paths[0] etc", func(sc *cri.LinuxContainerSecurityContext) { sc.MaskedPaths = []string{"etc"} }),
		security("pid of the node", "namespace_options.pid NODE", func(sc *cri.LinuxContainerSecurityContext) {
			sc.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}
		}),
		security("user namespace in a pod that has none", "userns", func(sc *cri.LinuxContainerSecurityContext) {
			sc.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{}}
		}),
		security("no process to join", "target_id", func(sc *cri.LinuxContainerSecurityContext) {
			sc.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET}
		}),
		coded("user name that the image has not", absent, "run_as_username nobody", func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "nobody" }),
		coded("absent container to join", absent, "000000", func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: strings.Repeat("0", 64)}
		}),
		in("exited container to join", absent, "target_id", ready, func(f *fixtures, c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: f.exited}
		}),
		coded("absent seccomp profile", absent, "/no/such/profile", func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile"}
		}),
		security("seccomp profile that is none", "seccomp", func(sc *cri.LinuxContainerSecurityContext) {
			sc.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/etc/passwd"}
		}),
	}
}
