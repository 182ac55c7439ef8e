package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/sys"
)

// mountKind says how a mount gets there.
type mountKind int

const (
	mountTree    mountKind = iota // a detached tree is attached
	mountFS                       // the program makes the filesystem in its namespaces
	mountLinks                    // links for the controllers of the hierarchy source, in dest
	mountRemount                  // what is mounted there already gets other flags
)

// mountPlan is one mount of the configuration, ready to be compiled.
type mountPlan struct {
	kind   mountKind
	dest   string // below the root filesystem, without a leading slash
	opts   *mountOptions
	fstype string
	source string // of mountFS
	tree   int    // child descriptor of mountTree
	isDir  bool   // of mountTree
	late   bool   // read-only only when everything below is mounted
	anew   bool   // of mountTree: cloned when it is its turn, which is the order that /proc/self/mountinfo shows
	over   bool   // of mountFS: the same filesystem may be mounted there already, which mount(2) refuses
}

// localTypes are the filesystems whose contents depend on the namespaces of whoever mounts them, and
// those any user namespace may mount: the program mounts them itself.
var localTypes = []string{"proc", "sysfs", "mqueue", "tmpfs", "devpts", "cgroup", "cgroup2", "ramfs", "devtmpfs"}

func isLocal(fstype string) bool {
	for _, t := range localTypes {
		if t == fstype {
			return true
		}
	}
	return false
}

// target checks and normalises a destination. Lexically: what ".." means in a tree of links is not for the
// configuration to depend on.
func target(dest string) (string, error) {
	if strings.IndexByte(dest, 0) >= 0 || dest == "" {
		return "", errs.New(errs.Invalid, "mount destination %q is not a path", dest)
	}
	dest = path.Clean("/" + dest)[1:]
	if dest == "" {
		return "", errs.New(errs.Invalid, "mount destination / would hide the root filesystem")
	}
	return dest, nil
}

// resolveTarget is target, with links to nowhere in the root filesystem (which nobody uses yet) followed: the
// program makes what is missing at their end, inside, as it makes other missing directories.
func (c *compiler) resolveTarget(b *build, dest string) (string, error) {
	dest, err := target(dest)
	if err != nil || resolve(dest) != inRoot {
		return dest, err
	}
	root := c.files.list[c.files.child[b.rootfs-launch.FirstFD]]
	f, err := sys.OpenAt(root, dest, unix.O_PATH, 0, sys.InRoot)
	if err == nil {
		return dest, f.Close()
	}
	if !errors.Is(err, unix.ENOENT) {
		return dest, nil // the program will say
	}
	real, err := sys.ResolveInRoot(root, dest)
	if err != nil {
		return "", err
	}
	return target(real)
}

// planMounts opens the sources of all mounts.
func (c *compiler) planMounts(o *Options, b *build) error {
	for i := range o.Spec.Mounts {
		m := &o.Spec.Mounts[i]
		if err := c.planMount(o, b, m, o.MountFDs[i]); err != nil {
			return fmt.Errorf("mount %s (container %s): %w", m.Destination, o.ID, err)
		}
	}
	return nil
}

func (c *compiler) planMount(o *Options, b *build, m *specs.Mount, tree *os.File) error {
	dest, err := c.resolveTarget(b, m.Destination)
	if err != nil {
		return err
	}
	opts, err := parseMountOptions(m.Options)
	if err != nil {
		return errs.With(errs.Invalid, err)
	}
	plan := mountPlan{dest: dest, opts: opts, fstype: m.Type, source: m.Source}
	bind := tree != nil || opts.bind || m.Type == "bind" || m.Type == "rbind"
	opts.rec = opts.rec || m.Type == "rbind"
	if isProcPath(dest) && !opts.remount {
		if err := checkProc(m, dest, bind); err != nil {
			return err
		}
	}
	switch {
	case opts.remount:
		plan.kind = mountRemount
	case bind:
		if len(opts.data) > 0 { // the kernel ignores them too
			c.warn("mount %s: a bind mount has no filesystem options: %s", m.Destination, strings.Join(opts.data, ","))
		}
		return c.planTree(o, b, m, plan, tree)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		opts.flat()
		return c.planCgroup(o, b, plan)
	case !isLocal(m.Type):
		return c.planForeign(o, b, m, plan)
	default:
		opts.flat()
		plan.kind = mountFS
		if err := c.checkOwners(b, opts.data); err != nil {
			return err
		}
		if label := o.Spec.Linux.MountLabel; label != "" && labelled(m.Type) {
			opts.data = append(opts.data, fmt.Sprintf("context=%q", label))
		}
		plan.late = m.Type == "tmpfs" && opts.set&unix.MOUNT_ATTR_RDONLY != 0
		if plan.late {
			opts.flags &^= unix.MS_RDONLY
		}
		if plan.source == "" {
			plan.source = m.Type
		}
		if dest == "dev" && m.Type == "tmpfs" {
			if b.userns && !c.confined {
				return c.planDev(o, b, plan)
			}
			b.devFresh = true
		}
		if opts.copyUp && m.Type == "tmpfs" {
			return c.planCopyUp(o, b, plan)
		}
		c.inheritMode(b, &plan)
	}
	b.mounts = append(b.mounts, plan)
	return nil
}

// inheritMode names the mode of a tmpfs that is mounted on a directory of the root filesystem itself. Where
// another mount may be in between, the program finds it out.
func (c *compiler) inheritMode(b *build, plan *mountPlan) {
	if !plan.keepsMode() || slices.ContainsFunc(b.mounts, func(m mountPlan) bool { return strings.HasPrefix(plan.dest+"/", m.dest+"/") }) {
		return
	}
	var st unix.Stat_t
	root := c.files.list[c.files.child[b.rootfs-launch.FirstFD]]
	f, err := sys.OpenAt(root, plan.dest, unix.O_PATH|unix.O_DIRECTORY, 0, sys.InRoot)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fstat(int(f.Fd()), &st) == nil {
		plan.opts.data = append(plan.opts.data, fmt.Sprintf("mode=%o", st.Mode&0o7777))
	}
}

// labelled reports whether a filesystem of that type takes the SELinux label of all its files as an option.
func labelled(fstype string) bool {
	return fstype == "tmpfs" || fstype == "devpts" || fstype == "ramfs"
}

// planTree clones the source of a bind mount and gives the clone its attributes.
func (c *compiler) planTree(o *Options, b *build, m *specs.Mount, plan mountPlan, tree *os.File) error {
	ours := tree == nil
	if ours {
		src, err := hostPath(o.Bundle, m.Source)
		if err != nil {
			return err
		}
		if tree, err = c.host.openTree(src, plan.opts.rec); err != nil {
			return sourceError(src, err)
		}
	}
	plan.kind = mountTree
	plan.tree = c.files.add(tree, ours)
	if plan.dest == "dev" {
		b.devBound = true
	}
	return c.planAttrs(o, b, m, plan, tree)
}

func sourceError(src string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("source %s: %w", src, err)
}

// hostPath is a path of the bundle's configuration as a path of the host.
func hostPath(bundle, p string) (string, error) {
	if p == "" || strings.IndexByte(p, 0) >= 0 {
		return "", errs.New(errs.Invalid, "source %q is not a path", p)
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(bundle, p)
	}
	return p, nil
}

// planAttrs sets attributes and propagation of a detached tree, and adds its plan.
func (c *compiler) planAttrs(o *Options, b *build, m *specs.Mount, plan mountPlan, tree *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(tree.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	plan.isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	opts := plan.opts
	plan.anew = plan.anew || o.InOrder && plan.isDir // a file has no place to be cloned from
	if err := c.setAttrs(o.Spec.Linux.RootfsPropagation, &plan, tree); err != nil {
		return err
	}
	if err := c.sealSysfs(&plan, tree); err != nil {
		return err
	}
	if err := c.idmap(o, b, m, opts, tree); err != nil {
		return err
	}
	b.mounts = append(b.mounts, plan)
	return nil
}

// setAttrs gives a detached tree the propagation and attributes of its options. Private unless told otherwise, by
// its own options or as a slave of the host's by the root filesystem's: what is mounted below it here is nobody's
// business. What an option says of the whole tree comes after what others say of its top.
func (c *compiler) setAttrs(root string, plan *mountPlan, tree *os.File) error {
	opts := plan.opts
	prop := opts.propagation
	if of, _ := propagation(root); prop == 0 && of == unix.MS_SLAVE {
		prop = unix.MS_SLAVE
	}
	late := prop == unix.MS_UNBINDABLE && (plan.anew || !opts.propRec)
	if prop == 0 || late { // it could not be cloned, or is the top's alone
		prop = unix.MS_PRIVATE
	}
	for _, step := range []struct {
		rec  bool
		attr unix.MountAttr
	}{
		{true, unix.MountAttr{Propagation: prop}},
		{false, unix.MountAttr{Attr_set: opts.set, Attr_clr: opts.clr}},
		{true, unix.MountAttr{Attr_set: opts.setRec, Attr_clr: opts.clrRec}},
	} {
		if step.attr == (unix.MountAttr{}) {
			continue
		}
		if err := c.host.setMount(tree, step.rec, step.attr); err != nil {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	if late && !plan.anew {
		return c.host.setMount(tree, false, unix.MountAttr{Propagation: unix.MS_UNBINDABLE})
	}
	return nil
}

// planForeign makes a filesystem of a type that a container's own namespaces do not matter to: here, where
// its device or options have the meaning they have on the host.
func (c *compiler) planForeign(o *Options, b *build, m *specs.Mount, plan mountPlan) error {
	if m.Type == "" || m.Type == "none" {
		return errs.New(errs.Invalid, "type %q is neither a filesystem nor, with option bind or rbind, a bind mount", m.Type)
	}
	opts := plan.opts
	list := make([]sys.MountOption, 0, len(opts.data)+4)
	if m.Source != "" {
		list = append(list, sys.MountOption{Key: "source", Value: m.Source})
	}
	for _, f := range []struct {
		flag uintptr
		name string
	}{{unix.MS_RDONLY, "ro"}, {unix.MS_SYNCHRONOUS, "sync"}, {unix.MS_DIRSYNC, "dirsync"}, {unix.MS_LAZYTIME, "lazytime"}} {
		if opts.flags&f.flag != 0 {
			list = append(list, sys.MountOption{Key: f.name})
		}
	}
	for _, d := range splitOptions(opts.data) {
		k, v := cutOption(d)
		list = append(list, sys.MountOption{Key: k, Value: v})
	}
	tree, err := c.host.newMount(m.Type, list)
	if err != nil {
		return err
	}
	plan.kind = mountTree
	plan.tree = c.files.add(tree, true)
	return c.planAttrs(o, b, m, plan, tree)
}

// splitOptions are a filesystem's options, one by one: several may stand in a word, as mount(8) writes them. A comma
// that is quoted or escaped (in a label, in a layer's path) does not end one.
func splitOptions(words []string) []string {
	var out []string
	for _, w := range words {
		from, quoted := 0, false
		for i := 0; i < len(w); i++ {
			switch {
			case w[i] == '\\':
				i++
			case w[i] == '"':
				quoted = !quoted
			case w[i] == ',' && !quoted:
				out, from = append(out, w[from:i]), i+1
			}
		}
		out = append(out, w[from:])
	}
	return slices.DeleteFunc(out, func(o string) bool { return o == "" })
}

func cutOption(o string) (key, value string) {
	key, value, _ = strings.Cut(o, "=")
	return key, value
}

func isProcPath(dest string) bool { return dest == "proc" || strings.HasPrefix(dest, "proc/") }

// procFiles are what programs that virtualise /proc for a container (lxcfs and its kin) put there.
var procFiles = []string{
	"proc/cpuinfo", "proc/diskstats", "proc/meminfo", "proc/stat", "proc/swaps", "proc/uptime",
	"proc/loadavg", "proc/slabinfo", "proc/sys/kernel/ns_last_pid", "proc/sys/crypto/fips_enabled", "proc/net/dev",
}

// checkProc refuses mounts over /proc that would hide the kernel's answers from everything that relies on
// them, the masked paths included.
func checkProc(m *specs.Mount, dest string, bind bool) error {
	if dest == "proc" && !bind {
		if m.Type == "proc" {
			return nil
		}
		return errs.New(errs.Invalid, "/proc cannot be mounted because it is not of type proc but %q", m.Type)
	}
	if dest == "proc" {
		var st unix.Statfs_t
		if err := unix.Statfs(m.Source, &st); err != nil {
			return sourceError(m.Source, err)
		}
		if st.Type == unix.PROC_SUPER_MAGIC {
			return nil
		}
		return errs.New(errs.Invalid, "%s is not a proc filesystem and may not be mounted over /proc", m.Source)
	}
	for _, f := range procFiles {
		if dest == f {
			return nil
		}
	}
	return errs.New(errs.Invalid, "it is inside /proc")
}
