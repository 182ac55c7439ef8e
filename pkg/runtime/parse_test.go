package runtime

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestMountOptions(t *testing.T) {
	for _, c := range []struct {
		options string
		want    mountOptions
	}{
		{"", mountOptions{}},
		{"ro nosuid nodev noexec", mountOptions{
			flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC,
			set:   unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		}},
		{"ro rw", mountOptions{clr: unix.MOUNT_ATTR_RDONLY}},
		{"rw ro", mountOptions{flags: unix.MS_RDONLY, set: unix.MOUNT_ATTR_RDONLY}},
		{"rbind rro rslave", mountOptions{bind: true, rec: true, setRec: unix.MOUNT_ATTR_RDONLY, propagation: unix.MS_SLAVE, propRec: true}},
		{"rro rrw", mountOptions{clrRec: unix.MOUNT_ATTR_RDONLY}},
		{"bind noatime", mountOptions{bind: true, flags: unix.MS_NOATIME, set: unix.MOUNT_ATTR_NOATIME, clr: unix.MOUNT_ATTR__ATIME}},
		{"relatime", mountOptions{flags: unix.MS_RELATIME, clr: unix.MOUNT_ATTR__ATIME}},
		{"rnoatime", mountOptions{setRec: unix.MOUNT_ATTR_NOATIME, clrRec: unix.MOUNT_ATTR__ATIME}},
		{"strictatime nodiratime", mountOptions{
			flags: unix.MS_STRICTATIME | unix.MS_NODIRATIME, set: unix.MOUNT_ATTR_STRICTATIME | unix.MOUNT_ATTR_NODIRATIME, clr: unix.MOUNT_ATTR__ATIME,
		}},
		{"shared", mountOptions{propagation: unix.MS_SHARED}},
		{"private rshared", mountOptions{propagation: unix.MS_SHARED, propRec: true}},
		{"sync rsync mode=755 size=1m defaults", mountOptions{flags: unix.MS_SYNCHRONOUS, data: []string{"rsync", "mode=755", "size=1m"}}},
		{"remount tmpcopyup idmap", mountOptions{remount: true, copyUp: true, idmap: true}},
		{"ridmap", mountOptions{idmap: true, ridmap: true}},
	} {
		got, err := parseMountOptions(strings.Fields(c.options))
		if err != nil || got.flags != c.want.flags || got.set != c.want.set || got.clr != c.want.clr || got.setRec != c.want.setRec ||
			got.clrRec != c.want.clrRec || got.propagation != c.want.propagation || got.propRec != c.want.propRec || got.bind != c.want.bind ||
			got.rec != c.want.rec || got.remount != c.want.remount || got.copyUp != c.want.copyUp || got.idmap != c.want.idmap ||
			got.ridmap != c.want.ridmap || !slices.Equal(got.data, c.want.data) {
			t.Errorf("%q: got %+v, %v, want %+v", c.options, got, err, c.want)
		}
	}
	if _, err := parseMountOptions([]string{"a\x00b"}); err == nil {
		t.Error("a NUL is an option")
	}
}

func TestTarget(t *testing.T) {
	for in, want := range map[string]string{"/a": "a", "a/b/": "a/b", "//a/../b": "b", "/../../etc": "etc"} {
		if got, err := target(in); got != want || err != nil {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "/", ".", "/..", "a\x00"} {
		if got, err := target(in); err == nil {
			t.Errorf("%q is %q", in, got)
		}
	}
}

func TestSysctlNames(t *testing.T) {
	for in, want := range map[string]struct {
		path string
		ns   uintptr
	}{
		"net.ipv4.ip_forward":               {"sys/net/ipv4/ip_forward", unix.CLONE_NEWNET},
		"net/ipv4/conf/eth0.1/forwarding":   {"sys/net/ipv4/conf/eth0.1/forwarding", unix.CLONE_NEWNET},
		"net.ipv4.conf.eth0/1.forwarding":   {"sys/net/ipv4/conf/eth0.1/forwarding", unix.CLONE_NEWNET},
		"kernel.shm_rmid_forced":            {"sys/kernel/shm_rmid_forced", unix.CLONE_NEWIPC},
		"fs.mqueue.msg_max":                 {"sys/fs/mqueue/msg_max", unix.CLONE_NEWIPC},
		"kernel.domainname":                 {"sys/kernel/domainname", unix.CLONE_NEWUTS},
		"user.max_mnt_namespaces":           {"sys/user/max_mnt_namespaces", unix.CLONE_NEWUSER},
		"kernel.core_pattern":               {"sys/kernel/core_pattern", 0},
		"vm.overcommit_memory":              {"sys/vm/overcommit_memory", 0},
		"kernel.shm_rmid_forced.kernel.sem": {"sys/kernel/shm_rmid_forced/kernel/sem", 0},
	} {
		path, err := sysctlPath(in)
		if err != nil || path != want.path || sysctlNamespace(path) != want.ns {
			t.Errorf("%s: %s %#x, %v", in, path, sysctlNamespace(path), err)
		}
	}
	for _, in := range []string{"", "/proc/x", ".x", "net/../kernel/panic", "net....kernel", "a\x00"} {
		if path, err := sysctlPath(in); err == nil {
			t.Errorf("%q is %s", in, path)
		}
	}
}

func TestSplitOptions(t *testing.T) {
	got := splitOptions([]string{`lowerdir=/a\,b:/c,upperdir=/u`, "", `context="u:r:t:s0,c1",ro`, "a,,b", `x=\`})
	if want := []string{`lowerdir=/a\,b:/c`, "upperdir=/u", `context="u:r:t:s0,c1"`, "ro", "a", "b", `x=\`}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		arg    string
		env    []string
		want   []string
		looked bool
	}{
		{"/bin/x", []string{"PATH=/a"}, []string{"/bin/x"}, false},
		{"./x", nil, []string{"./x"}, false},
		{"x", []string{"PATH=/a:/b/"}, []string{"/a/x", "/b/x"}, true},
		{"x", []string{"PATH=:/b:"}, []string{"./x", "/b/x", "./x"}, true},
		{"x", []string{"PATH=/a", "PATH=/z"}, []string{"/z/x"}, true},
		{"x", []string{"XPATH=/a"}, nil, true},
		{"", []string{"PATH=/a"}, nil, true},
	} {
		got, looked := candidates(&specs.Process{Args: []string{c.arg}, Env: c.env})
		if !slices.Equal(got, c.want) || looked != c.looked {
			t.Errorf("%q %v: %v, %v", c.arg, c.env, got, looked)
		}
	}
}

func TestHierarchies(t *testing.T) {
	list := parseHierarchies(hybrid)
	want := []Hierarchy{
		{"/sys/fs/cgroup/unified", true, ""}, {"/sys/fs/cgroup/systemd", false, "none,name=systemd"},
		{"/sys/fs/cgroup/cpu,cpuacct", false, "cpu,cpuacct"},
	}
	if !slices.Equal(list, want) {
		t.Errorf("got %+v", list)
	}
	for i, name := range []string{"unified", "systemd", "cpu,cpuacct"} {
		if got := list[i].name(); got != name {
			t.Errorf("%+v is called %q", list[i], got)
		}
	}
	v2 := parseHierarchies("25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n31 1 0:9 /sub /mnt rw - cgroup cgroup rw,cpu\nbroken line\n")
	if !slices.Equal(v2, []Hierarchy{{"/sys/fs/cgroup", true, ""}}) || v2[0].name() != "" {
		t.Errorf("got %+v", v2)
	}
}

func TestHostID(t *testing.T) {
	two := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100, Size: 10}, {ContainerID: 1000, HostID: 5, Size: 1}}
	for id, want := range map[uint32]uint32{0: 100, 9: 109, 10: 65534, 1000: 5, 1001: 65534} {
		if got := hostID(two, id); got != want {
			t.Errorf("%d is %d on the host, want %d", id, got, want)
		}
	}
	if hostID(nil, 7) != 7 {
		t.Error("without mappings an id is itself")
	}
}

func TestKernelMounts(t *testing.T) {
	got := kernelMounts(`22 1 0:20 / /proc rw,nosuid - proc proc rw
23 1 0:21 / /sys rw shared:1 - sysfs sysfs rw
24 1 0:22 / /tmp rw - tmpfs proc rw
25 1 0:20 / /a\040b rw - proc none rw
torn`)
	if want := []string{"/proc", "/sys", "/a b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
