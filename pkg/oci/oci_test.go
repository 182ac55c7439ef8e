package oci

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

var update = flag.Bool("update", false, "write the golden bundles anew")

const (
	passwdFile = "root:x:0:0:root:/root:/bin/sh\n" +
		"# a comment\n" +
		"1000:x:0:0:trap:/:/bin/sh\n" +
		"00:x:0:0:trap:/:/bin/sh\n4294967296:x:0:0:trap:/:/bin/sh\n-1:x:0:0:trap:/:/bin/sh\n+0:x:0:0:trap:/:/bin/sh\n0x0:x:0:0:trap:/:/bin/sh\n" +
		"app:x:1000:1001::/home/app:/bin/sh\n" +
		"web:x:33:33::/var/www\n" +
		"odd:x:4294967296:1::/:/bin/sh\n" +
		"lf:x:500:500::/r\x01evil:/bin/sh\n" +
		"nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
	groupFile = "root:x:0:\nwheel:x:10:root,app\nstaff:x:50000:web, app\napps:x:1001:\n99:x:0:\nhuge:x:99999999999:app\n"
)

// rootfs makes a tree with account files and opens it.
func rootfs(t testing.TB, passwd, group string) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return openDir(t, dir)
}

func openDir(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// input is a small container in a pod with namespaces of its own.
func input(t testing.TB) *ContainerInput {
	t.Helper()
	return &ContainerInput{
		ID: "c1",
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"},
			Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{}},
		},
		Pod: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: "u"},
			Hostname: "pod",
			Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			}},
		},
		Image: &ocispec.ImageConfig{
			Entrypoint: []string{"/entry"}, Cmd: []string{"arg"}, WorkingDir: "/srv", Env: []string{"A=image", "B=image"},
		},
		Rootfs:      rootfs(t, passwdFile, groupFile),
		CgroupsPath: "/kubepods/podu/c1",
		Namespaces: map[specs.LinuxNamespaceType]string{
			specs.NetworkNamespace: "/proc/7/ns/net", specs.IPCNamespace: "/proc/7/ns/ipc", specs.UTSNamespace: "/proc/7/ns/uts",
		},
		Files: PodFiles{Shm: "/dev/shm", Hosts: "/pod/hosts", Hostname: "/pod/hostname", ResolvConf: "/pod/resolv.conf"},
		Defaults: &Defaults{
			Capabilities: DefaultCapabilities(), MaskedPaths: defaultMaskedPaths, ReadonlyPaths: defaultReadonlyPaths,
		},
		Host: &HostFacts{Hostname: "node", Swap: true, RRO: true, OOMScoreAdjMin: -1000},
	}
}

func (in *ContainerInput) security() *cri.LinuxContainerSecurityContext {
	return in.Config.Linux.SecurityContext
}

func (in *ContainerInput) podSecurity() *cri.LinuxSandboxSecurityContext {
	return in.Pod.Linux.SecurityContext
}

func mustTranslate(t testing.TB, in *ContainerInput) *ContainerOutput {
	t.Helper()
	out, err := Container(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wantError checks kind and text.
func wantError(t testing.TB, err error, kind errs.Kind, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s with %q", kind, texts)
	}
	if !errs.Is(err, kind) {
		t.Errorf("error is of kind %s, want %s: %v", errs.KindOf(err), kind, err)
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error does not contain %q: %v", s, err)
		}
	}
}

func golden(t *testing.T, name string, spec *specs.Spec) {
	t.Helper()
	got, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v. Run the test with -update to write it", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-golden +got). If that is meant, run the test with -update:\n%s", file, diff)
	}
}

func TestGoldenBundles(t *testing.T) {
	mapping := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
	for name, change := range map[string]func(*ContainerInput){
		"simple": func(*ContainerInput) {},
		"privileged": func(in *ContainerInput) {
			in.podSecurity().Privileged = true
			in.security().Privileged = true
			in.Defaults.PrivilegedWithoutHostDevices = true
			in.security().Seccomp = &cri.SecurityProfile{}
		},
		"host-namespaces": func(in *ContainerInput) {
			in.podSecurity().NamespaceOptions = &cri.NamespaceOption{
				Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE,
			}
			in.Namespaces = nil
			in.Host.CgroupV2 = true
		},
		"user-namespace": func(in *ContainerInput) {
			in.podSecurity().NamespaceOptions = &cri.NamespaceOption{
				UsernsOptions: &cri.UserNamespace{Uids: mapping, Gids: mapping},
			}
			in.Namespaces[specs.UserNamespace] = "/proc/7/ns/user"
			in.Namespaces[specs.PIDNamespace] = "/proc/7/ns/pid"
		},
		"everything": everything,
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			change(in)
			golden(t, name, mustTranslate(t, in).Spec)
		})
	}
}

// everything sets each field whose translation does not depend on the machine the test runs on.
func everything(in *ContainerInput) {
	in.Config.Command, in.Config.Args, in.Config.WorkingDir, in.Config.Tty = []string{"/bin/prog"}, []string{"-v"}, "/job", true
	in.Config.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("request")}, {Key: "C", Value: []byte("x=y")}}
	in.Config.Mounts = []*cri.Mount{
		{HostPath: "/proc", ContainerPath: "/host/proc", Readonly: true, MountOptions: []string{"noexec"}},
		{HostPath: "/dev/null", ContainerPath: "/etc/hosts"},
		{HostPath: "/", ContainerPath: "/host", Readonly: true, RecursiveReadOnly: true},
		{Image: &cri.ImageSpec{Image: "sha256:x"}, ContainerPath: "/img", Readonly: true, ImageSubPath: "a/b"},
	}
	in.Config.Devices = []*cri.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mynull", Permissions: "rw"}}
	in.Config.Linux.Resources = &cri.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900,
		CpusetCpus: "0-1", CpusetMems: "0", HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified: map[string]string{"memory.high": "max"},
	}
	in.Defaults.PidsLimit = 1000
	in.Defaults.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}}
	in.Defaults.DeviceOwnerFromUser = true
	sc := in.security()
	sc.RunAsUser, sc.RunAsGroup, sc.SupplementalGroups = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 3000}, []int64{4000, 10}
	sc.Capabilities = &cri.Capability{AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"CAP_MKNOD"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
	sc.ReadonlyRootfs, sc.NoNewPrivs = true, true
	sc.MaskedPaths, sc.ReadonlyPaths = []string{"/bin/ls"}, []string{"/tmp"}
}

func BenchmarkContainer(b *testing.B) {
	in := input(b)
	in.security().Seccomp = &cri.SecurityProfile{}
	in.security().RunAsUser = &cri.Int64Value{Value: 1000}
	for b.Loop() {
		mustTranslate(b, in)
	}
}
