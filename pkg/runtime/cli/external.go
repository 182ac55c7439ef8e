package cli

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/criu"
	"github.com/cri-server/cri-server/pkg/sys"
)

// nullDevice is what masked files are covered with, and the name that images have for it.
const nullDevice = "/dev/null"

// outer is a mount that comes from outside of the container: criu writes down its name, and finds it by that.
type outer struct {
	dest   string // in the container, links followed
	source string // on the host
}

// outerMounts are the bind mounts of a configuration: what it is restored with are those of the live bundle, whatever
// the images say.
func outerMounts(spec *specs.Spec, bundle string, rootfs *os.File, h *cgroup.Host, group string) ([]outer, error) {
	var out []outer
	add := func(dest, source string) error {
		real, err := sys.ResolveInRoot(rootfs, dest)
		if err == nil {
			out = append(out, outer{"/" + real, source})
		}
		return err
	}
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		var err error
		switch {
		case isBind(m):
			err = add(m.Destination, inBundle(bundle, m.Source))
		case (m.Type == "cgroup" || m.Type == "cgroup2") && h.Mode() != cgroup.V2 && !has(spec.Linux, specs.CgroupNamespace):
			for _, t := range h.Hierarchies() { // without a namespace they are shown by bind mounts
				if err == nil {
					err = add(path.Join(m.Destination, filepath.Base(t.Mount)), filepath.Join(t.Mount, group))
				}
			}
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	for _, d := range spec.Linux.Devices {
		if err := add(d.Path, d.Path); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	return out, nil
}

func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || m.Type == "rbind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func inBundle(bundle, p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(bundle, p)
}

// external tells criu what of a running container is not its own.
func (cp *checkpoint) external(c *container, spec *specs.Spec, h *cgroup.Host, opts *rpc.CriuOpts) error {
	rootfs, err := os.Open(c.Rootfs)
	if err != nil {
		return err
	}
	defer rootfs.Close()
	mounts, err := outerMounts(spec, c.Bundle, rootfs, h, c.Cgroup)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		opts.ExtMnt = append(opts.ExtMnt, &rpc.ExtMountMap{Key: ptr(m.dest), Val: ptr(m.dest)})
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", c.Pid))
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range spec.Linux.MaskedPaths {
		if f, err := sys.OpenAt(root, p, unix.O_PATH, 0, sys.InRoot); err == nil {
			st, err := f.Stat()
			f.Close()
			if err == nil && !st.IsDir() { // directories are covered with a filesystem of the container's
				opts.ExtMnt = append(opts.ExtMnt, &rpc.ExtMountMap{Key: ptr(path.Clean(p)), Val: ptr(nullDevice)})
			}
		}
	}
	return cp.writeDescriptors(c, opts)
}

type externalKind struct {
	kind      specs.LinuxNamespaceType
	name, key string
}

// externalKinds are the namespaces that criu joins by a descriptor, and its names for them.
var externalKinds = []externalKind{{specs.NetworkNamespace, "net", "extRootNetNS"}, {specs.PIDNamespace, "pid", "extRootPidNS"}}

// externalNamespaces names the namespaces that the container only joined.
func externalNamespaces(opts *rpc.CriuOpts, list []specs.LinuxNamespace) error {
	for _, e := range externalKinds {
		for _, n := range list {
			if n.Type != e.kind || n.Path == "" {
				continue
			}
			var st unix.Stat_t
			if err := unix.Stat(n.Path, &st); err != nil {
				return &os.PathError{Op: "stat", Path: n.Path, Err: err}
			}
			opts.External = append(opts.External, fmt.Sprintf("%s[%d]:%s", e.name, st.Ino, e.key))
		}
	}
	return nil
}

// joinedNamespaces tells criu which namespaces to restore into. The files are criu's from FirstFD up, and the caller's to
// close.
func joinedNamespaces(opts *rpc.CriuOpts, list []specs.LinuxNamespace) (files []*os.File, err error) {
	names := map[specs.LinuxNamespaceType]string{specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.MountNamespace: "mnt", specs.UserNamespace: "user"}
	for _, n := range list {
		if n.Path == "" {
			continue
		}
		i := slices.IndexFunc(externalKinds, func(e externalKind) bool { return e.kind == n.Type })
		switch {
		case i >= 0:
			f, err := os.Open(n.Path)
			if err != nil {
				sys.CloseAll(files)
				return nil, fmt.Errorf("Requested %s namespace %s does not exist: %w", n.Type, n.Path, err) //nolint:staticcheck // runc's words
			}
			opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: ptr(externalKinds[i].key), Fd: ptr(int32(criu.FirstFD + len(files)))})
			files = append(files, f)
		case names[n.Type] != "":
			opts.JoinNs = append(opts.JoinNs, &rpc.JoinNamespace{Ns: ptr(names[n.Type]), NsFile: ptr(n.Path)})
		default:
			sys.CloseAll(files)
			return nil, fmt.Errorf("criu cannot restore into the %s namespace %s", n.Type, n.Path)
		}
	}
	return files, nil
}
