package runtime

import (
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// filesystem adds the operations that make the container's view of files, and enter it.
func (c *compiler) filesystem(o *Options, b *build) error {
	l := o.Spec.Linux
	root := num(b.rootfs)
	if !b.onHost {
		c.p.Subject("make the mounts of the launcher slaves")
		c.p.Call(unix.SYS_MOUNT, nilp, c.p.Str("/"), nilp, num(unix.MS_REC|unix.MS_SLAVE), nilp)
	}
	void, null := c.p.Slot("void"), c.p.Slot("null")
	// Every launcher has a /proc, which the program does not look at and which goes with the old root.
	at, spare := "/", "/proc"
	if b.hooks.host || b.onHost {
		var err error
		if at, err = hostRoot(o); err != nil {
			return err
		}
		spare = at // below the root filesystem, where no hook sees it
	}
	if len(l.MaskedPaths) > 0 {
		c.makeVoid(void)
		c.attachAt(void.Val(), spare) // only attached mounts can be cloned before 6.15
	}
	c.p.Subject("attach the root filesystem")
	c.attachAt(root, at)
	c.compileMounts(root, b.mounts, workbench{spare, spare == at})
	if err := c.dev(o.Spec, b); err != nil {
		return err
	}
	c.compileReadonly(root, l.ReadonlyPaths)
	if len(l.MaskedPaths) > 0 {
		c.openNull(root, null)
		c.compileMasked(root, l.MaskedPaths, null, void)
	}
	if o.Spec.Process.Terminal {
		c.openConsole(root, o.Spec.Process, !b.devBound)
	}
	c.compileLate(root, b.mounts)
	c.hooksOutside(b)
	return c.enterRoot(o, b)
}

// dev adds the devices and links, unless /dev is the configuration's own.
func (c *compiler) dev(spec *specs.Spec, b *build) error {
	if b.devBound || b.devDone {
		return nil
	}
	list, err := devices(spec)
	if err != nil {
		return err
	}
	if b.userns || c.confined {
		list = nil // bind mounts by now
	}
	var mounted []string
	for i := range b.mounts {
		mounted = append(mounted, b.mounts[i].dest)
	}
	c.compileDevices(num(b.rootfs), list, mounted, b.devFresh, true)
	return nil
}

// enterRoot makes the new root the only one.
func (c *compiler) enterRoot(o *Options, b *build) error {
	root := num(b.rootfs)
	c.p.Subject("enter the root filesystem")
	c.p.Call(unix.SYS_FCHDIR, root)
	switch {
	case b.onHost:
		c.p.Call(unix.SYS_CHROOT, c.p.Str("."))
	case o.NoPivot:
		if err := c.uncover(); err != nil {
			return err
		}
		c.p.Call(unix.SYS_CHROOT, c.p.Str("."))
	default:
		c.pivot()
	}
	c.p.Call(unix.SYS_CHDIR, c.p.Str("/"))
	readonly := o.Spec.Root != nil && o.Spec.Root.Readonly
	if readonly {
		c.cwdBefore(o.Spec.Process.Cwd)
	}
	c.p.Subject("set the root filesystem's attributes")
	if name := o.Spec.Linux.RootfsPropagation; name != "" {
		prop, rec := propagation(name)
		if prop == 0 {
			return errs.New(errs.Invalid, "rootfsPropagation %q is unknown", name)
		}
		if prop != unix.MS_SLAVE { // a slave from the start: its master is on the host
			below := 0
			if rec && prop != unix.MS_PRIVATE { // mounts that ask for more than the root keep it
				below = unix.AT_RECURSIVE
			}
			c.setattr(root, below, 0, 0, prop)
		}
	}
	if readonly {
		c.setattr(root, 0, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
	return nil
}

// uncover takes the host's procfs and sysfs out of a mount namespace that keeps the host's root: a user
// namespace inside may mount what it can see unmasked, mounts behind a chroot too. In a user namespace the
// mounts of the host cannot be taken off.
func (c *compiler) uncover() error {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	c.p.Subject("unmount the host's proc and sysfs")
	for _, dir := range slices.Backward(kernelMounts(string(mountinfo))) {
		for range 2 { // something of ours may be on top
			c.p.Call(unix.SYS_UMOUNT2, c.p.Str(dir), num(unix.MNT_DETACH)).Accept()
		}
	}
	return nil
}

// kernelMounts lists where procfs and sysfs are mounted.
func kernelMounts(mountinfo string) []string {
	var out []string
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if fstype, _, _ := strings.Cut(after, " "); ok && len(f) > 4 && (fstype == "proc" || fstype == "sysfs") {
			out = append(out, strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4]))
		}
	}
	return out
}

// pivot puts the old root on top of the new one, which is the working directory, and takes it off again.
func (c *compiler) pivot() {
	c.p.Call(unix.SYS_PIVOT_ROOT, c.p.Str("."), c.p.Str("."))
	c.p.Call(unix.SYS_UMOUNT2, c.p.Str("."), num(unix.MNT_DETACH))
}
