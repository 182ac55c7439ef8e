package oci

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// defaultDeviceRules let every container use the devices the runtime-spec promises it, its terminals, and
// make any node (which it cannot open).
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	return []specs.LinuxDeviceCgroup{
		rule("c", -1, -1, "m"), rule("b", -1, -1, "m"),
		rule("c", 1, 3, "rwm"), rule("c", 1, 5, "rwm"), rule("c", 1, 7, "rwm"), rule("c", 1, 8, "rwm"), rule("c", 1, 9, "rwm"), // null zero full random urandom
		rule("c", 5, 0, "rwm"), rule("c", 5, 1, "rwm"), rule("c", 5, 2, "rwm"), rule("c", 136, -1, "rwm"), // tty console ptmx pts
	}
}

// rule allows access to a device; -1 is any number.
func rule(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
	if major >= 0 {
		r.Major = &major
	}
	if minor >= 0 {
		r.Minor = &minor
	}
	return r
}

// devices fills in device nodes and the device filter.
func (t *translation) devices() error {
	res := t.spec.Linux.Resources
	privileged := t.sc.GetPrivileged()
	if privileged {
		res.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		res.Devices = append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, defaultDeviceRules()...)
	}
	if privileged && !t.Defaults.PrivilegedWithoutHostDevices {
		found, err := walkDevices("/dev", "/dev")
		if err != nil {
			return errs.New(errs.Unknown, "list the node's devices: %w", err)
		}
		t.addDevices(found)
	}
	for i, d := range t.Config.GetDevices() {
		field := indexed("devices", i)
		found, err := requestedDevices(field, d)
		if err != nil {
			return err
		}
		t.addDevices(found)
		for _, d := range found {
			if !privileged {
				res.Devices = append(res.Devices, rule(d.kind, d.major, d.minor, d.access))
			}
		}
	}
	return nil
}

// node is a device node on the host and where it goes.
type node struct {
	source, dest string
	kind         string // "c", "b"
	major, minor int64
	mode         os.FileMode
	uid, gid     uint32
	access       string
}

// addDevices makes nodes in the container, a later one instead of an earlier one at the same path. In a
// user namespace the host's nodes are bound, so that they keep their owners: a new node would be the
// container's root's, who could then open a disk of the host that the kubelet meant only to be seen. Only
// where devices are to be the user's are they made, in the /dev that the runtime fills beforehand.
func (t *translation) addDevices(nodes []node) {
	l := t.spec.Linux
	for _, n := range nodes {
		if t.pod.userns() && (!t.Defaults.DeviceOwnerFromUser || !within("/dev", n.dest)) {
			t.spec.Mounts = append(t.spec.Mounts, bindDevice(n.source, n.dest))
			continue
		}
		mode, uid, gid := n.mode, n.uid, n.gid
		if t.Defaults.DeviceOwnerFromUser {
			uid, gid = t.user.uid, t.user.gid
		}
		l.Devices = slices.DeleteFunc(l.Devices, func(d specs.LinuxDevice) bool { return d.Path == n.dest })
		l.Devices = append(l.Devices, specs.LinuxDevice{
			Path: n.dest, Type: n.kind, Major: n.major, Minor: n.minor, FileMode: &mode, UID: &uid, GID: &gid,
		})
	}
}

func bindDevice(source, dest string) specs.Mount {
	return specs.Mount{Destination: dest, Type: "bind", Source: source, Options: []string{"bind", "rprivate", "nosuid", "noexec", "rw"}}
}

// requestedDevices resolves one device of the request: a node, or every node below a directory.
func requestedDevices(field string, d *cri.Device) ([]node, error) {
	if err := checkAccess(field+".permissions", d.GetPermissions()); err != nil {
		return nil, err
	}
	source, err := resolveHostPath(field, d.GetHostPath())
	if err != nil {
		return nil, err
	}
	dest := d.GetContainerPath()
	if !path.IsAbs(dest) || path.Clean(dest) == "/" {
		return nil, errs.New(errs.Invalid, "%s.container_path: %q is no absolute path of a device", field, dest)
	}
	if err := checkText(field+".container_path", dest); err != nil {
		return nil, err
	}
	found, err := walkDevices(source, path.Clean(dest))
	if err == nil && len(found) == 0 {
		err = errors.New("is no device and holds none")
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s.host_path: %q: %w", field, d.GetHostPath(), err)
	}
	for i := range found {
		found[i].access = d.GetPermissions()
	}
	return found, nil
}

func checkAccess(field, access string) error {
	ok := access != ""
	for i, c := range access {
		ok = ok && slices.Contains([]rune("rwm"), c) && !slices.Contains([]rune(access[:i]), c)
	}
	if !ok {
		return errs.New(errs.Invalid, "%s: %q; one or more of r, w and m", field, access)
	}
	return nil
}

// ownDevices are those below /dev that each container has of its own.
var ownDevices = []string{
	"/pts", "/shm", "/fd", "/mqueue", "/.lxc", "/.lxd-mounts", "/.udev",
	"/null", "/zero", "/full", "/random", "/urandom", "/tty", "/console", "/ptmx",
}

// walkDevices lists the device nodes at or below root, to go to the same places below dest. Links are
// not followed.
func walkDevices(root, dest string) ([]node, error) {
	var out []node
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // unplugged meanwhile
		}
		if err != nil {
			return err
		}
		rel := p[len(root):]
		if root == "/dev" && slices.Contains(ownDevices, rel) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		n, ok := statDevice(p)
		if ok {
			n.dest = path.Join(dest, rel)
			out = append(out, n)
		}
		return nil
	})
	return out, err
}

func statDevice(p string) (node, bool) {
	var st unix.Stat_t
	if unix.Lstat(p, &st) != nil {
		return node{}, false
	}
	n := node{
		source: p, major: int64(unix.Major(uint64(st.Rdev))), minor: int64(unix.Minor(uint64(st.Rdev))),
		mode: os.FileMode(st.Mode & 0o7777), uid: st.Uid, gid: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		n.kind = "c"
		return n, st.Rdev != 0 // 0:0 is an overlay whiteout
	case unix.S_IFBLK:
		n.kind = "b"
		return n, true
	}
	return node{}, false
}
