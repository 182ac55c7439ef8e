package runtime

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// checkOwners refuses a filesystem's uid= and gid= that the container's user namespace has no user or group
// for, by name: the kernel would say no more than EINVAL.
func (c *compiler) checkOwners(b *build, data []string) error {
	if !c.confined || !b.userns {
		return nil
	}
	for _, o := range data {
		key, value := cutOption(o)
		maps := b.uidMaps
		switch key {
		case "gid":
			maps = b.gidMaps
		case "uid":
		default:
			continue
		}
		id, err := strconv.ParseUint(value, 10, 32)
		if err == nil && !hasID(maps, uint32(id)) {
			return errs.New(errs.Invalid, "cannot specify %s mount option for rootless container: the user namespace does not map it", o)
		}
	}
	return nil
}

// hasID reports whether the mappings have an id of the container.
func hasID(maps []specs.LinuxIDMapping, id uint32) bool {
	return slices.ContainsFunc(maps, func(m specs.LinuxIDMapping) bool { return id >= m.ContainerID && id-m.ContainerID < m.Size })
}

// sealSysfs makes every mount below a read-only bind of the host's /sys read-only too, for a container whose
// user may write to cgroups of the host there: a plain "ro" is of the topmost mount alone (CVE-2023-25809).
func (c *compiler) sealSysfs(plan *mountPlan, tree *os.File) error {
	if !c.confined || plan.opts.set&unix.MOUNT_ATTR_RDONLY == 0 {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(tree.Fd()), &fs); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	switch uint32(fs.Type) {
	case unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.TMPFS_MAGIC:
	default:
		return nil
	}
	if fs.Type == unix.TMPFS_MAGIC && !strings.HasPrefix(plan.dest+"/", "sys/") {
		return nil
	}
	if err := c.host.setMount(tree, true, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make /%s read-only with all below: %w", plan.dest, err)
	}
	return nil
}

// initialUserns is the machine's own user namespace (PROC_USER_INIT_INO of linux/proc_ns.h).
const initialUserns = "user:[4026531837]"

// InUserNamespace reports whether this process is in a user namespace that is not the machine's first.
func InUserNamespace() bool {
	var ns [32]byte
	if n, err := unix.Readlink("/proc/self/ns/user", ns[:]); err == nil && string(ns[:n]) == initialUserns {
		return false
	}
	b, err := sys.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && !(len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295")
}
