package oci

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts lays out spec.Mounts: the kernel's file systems, the pod's files, the request's mounts, parents
// before children. A mount of the request takes the place of one of ours at or below its path.
func (t *translation) mounts() error {
	requested, err := t.requestedMounts()
	if err != nil {
		return err
	}
	covered := func(dest string) bool {
		return slices.ContainsFunc(requested, func(m requestedMount) bool { return within(m.Destination, dest) })
	}
	for _, m := range slices.Concat(t.kernelMounts(), t.podMounts()) {
		if !covered(m.Destination) {
			t.spec.Mounts = append(t.spec.Mounts, m)
		}
	}
	slices.SortStableFunc(requested, func(a, b requestedMount) int { return depth(a.Destination) - depth(b.Destination) })
	for _, m := range requested {
		if m.image != nil {
			t.out.ImageVolumes = append(t.out.ImageVolumes, ImageVolume{
				Index: len(t.spec.Mounts), Request: m.request, Image: m.image.GetImage(), SubPath: m.subPath,
			})
		}
		t.spec.Mounts = append(t.spec.Mounts, m.Mount)
	}
	return nil
}

// within reports whether dest is parent or below it. Both are clean absolute paths.
func within(parent, dest string) bool {
	return dest == parent || strings.HasPrefix(dest, strings.TrimSuffix(parent, "/")+"/")
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// kernelMounts are those every container has. In a user namespace a file system of a namespace that the
// pod shares with the node cannot be mounted anew (the kernel wants its owner), so the node's is bound.
func (t *translation) kernelMounts() []specs.Mount {
	const nosuid, noexec, nodev = "nosuid", "noexec", "nodev"
	access := "ro"
	if t.sc.GetPrivileged() {
		access = "rw"
	}
	bound := func(kind specs.LinuxNamespaceType) bool { return t.pod.userns() && !t.hasNamespace(kind) }

	proc := specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{nosuid, noexec, nodev}}
	mqueue := specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{nosuid, noexec, nodev}}
	sysfs := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{nosuid, noexec, nodev, access}}
	if bound(specs.IPCNamespace) {
		mqueue = bind("/dev/mqueue", "/dev/mqueue", nosuid, noexec, nodev)
	}
	if t.pod.userns() && t.pod.network == cri.NamespaceMode_NODE {
		sysfs = bind("/sys", "/sys", nosuid, noexec, nodev, access)
	}
	devpts := []string{nosuid, noexec, "newinstance", "ptmxmode=0666", "mode=0620"}
	if !t.pod.userns() || t.pod.gids[0].Size > ttyGroup {
		devpts = append(devpts, "gid=5")
	}
	return []specs.Mount{
		proc,
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{nosuid, "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: devpts},
		mqueue,
		sysfs,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{nosuid, noexec, nodev, "relatime", access}},
	}
}

// ttyGroup is the group that owns terminals on every Linux distribution.
const ttyGroup = 5

// podMounts are the files all containers of a pod share. They are written by the server, so a container
// with a read-only root file system gets them read-only.
func (t *translation) podMounts() []specs.Mount {
	access := "rw"
	if t.sc.GetReadonlyRootfs() {
		access = "ro"
	}
	var out []specs.Mount
	if t.Files.Shm != "" {
		out = append(out, bind("/dev/shm", t.Files.Shm, "nosuid", "noexec", "nodev", "rw"))
	}
	for _, f := range []struct{ dest, source string }{
		{"/etc/hostname", t.Files.Hostname}, {"/etc/hosts", t.Files.Hosts}, {"/etc/resolv.conf", t.Files.ResolvConf},
	} {
		if f.source == "" {
			continue
		}
		out = append(out, bind(f.dest, f.source, access))
		if t.Label.Mount != "" && !t.sc.GetPrivileged() {
			t.out.Relabel = append(t.out.Relabel, Relabel{Path: f.source, Label: t.Label.Mount, Shared: true})
		}
	}
	return out
}

func bind(dest, source string, options ...string) specs.Mount {
	return specs.Mount{Destination: path.Clean(dest), Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate"}, options...)}
}
