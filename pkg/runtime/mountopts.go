package runtime

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions are the options of one mount, parsed.
type mountOptions struct {
	flags         uintptr // MS_ bits for mount(2)
	set, clr      uint64  // MOUNT_ATTR_ bits for mount_setattr
	setRec        uint64  // the same for the whole tree ("rro")
	clrRec        uint64
	propagation   uint64 // MS_SHARED and so on, 0 for none named
	propRec       bool
	bind, rec     bool
	remount       bool
	copyUp        bool
	idmap, ridmap bool
	data          []string
}

// flagOption says what a mount option does to flags.
type flagOption struct {
	name  string
	clear bool
	ms    uintptr
	attr  uint64
}

var flagOptions = []flagOption{
	{"ro", false, unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {"rw", true, unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY},
	{"nosuid", false, unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID}, {"suid", true, unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
	{"nodev", false, unix.MS_NODEV, unix.MOUNT_ATTR_NODEV}, {"dev", true, unix.MS_NODEV, unix.MOUNT_ATTR_NODEV},
	{"noexec", false, unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC}, {"exec", true, unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
	{"nodiratime", false, unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME}, {"diratime", true, unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	{"nosymfollow", false, unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW}, {"symfollow", true, unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW},
	{"sync", false, unix.MS_SYNCHRONOUS, 0}, {"async", true, unix.MS_SYNCHRONOUS, 0}, {"dirsync", false, unix.MS_DIRSYNC, 0},
	{"mand", false, unix.MS_MANDLOCK, 0}, {"nomand", true, unix.MS_MANDLOCK, 0}, {"iversion", false, unix.MS_I_VERSION, 0},
	{"noiversion", true, unix.MS_I_VERSION, 0}, {"lazytime", false, unix.MS_LAZYTIME, 0}, {"nolazytime", true, unix.MS_LAZYTIME, 0},
	{"silent", false, unix.MS_SILENT, 0}, {"loud", true, unix.MS_SILENT, 0}, {"acl", false, unix.MS_POSIXACL, 0}, {"noacl", true, unix.MS_POSIXACL, 0},
	{"defaults", false, 0, 0},
}

// atimeOptions exclude each other: mount_setattr sets them by clearing the field.
var atimeOptions = []flagOption{
	{"noatime", false, unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME}, {"atime", true, unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME},
	{"relatime", false, unix.MS_RELATIME, unix.MOUNT_ATTR_RELATIME}, {"norelatime", true, unix.MS_RELATIME, unix.MOUNT_ATTR_RELATIME},
	{"strictatime", false, unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME}, {"nostrictatime", true, unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME},
}

// propagations are the propagation types by their name without the "r" that means "and all below".
var propagations = []struct {
	name string
	flag uint64
}{{"private", unix.MS_PRIVATE}, {"shared", unix.MS_SHARED}, {"slave", unix.MS_SLAVE}, {"unbindable", unix.MS_UNBINDABLE}}

// propagation parses "rslave" and its kin; 0 when it is none.
func propagation(name string) (flag uint64, rec bool) {
	for _, p := range propagations {
		if name == p.name {
			return p.flag, false
		}
		if name == "r"+p.name {
			return p.flag, true
		}
	}
	return 0, false
}

// parseMountOptions sorts options as mount(8) and the runtime specification name them. What it does not
// know is data for the filesystem.
func parseMountOptions(options []string) (*mountOptions, error) {
	m := &mountOptions{}
	for _, o := range options {
		if strings.IndexByte(o, 0) >= 0 {
			return nil, fmt.Errorf("option %q has a NUL in it", o)
		}
		if flag, rec := propagation(o); flag != 0 {
			m.propagation, m.propRec = flag, rec
			continue
		}
		switch o {
		case "bind":
			m.bind = true
		case "rbind":
			m.bind, m.rec = true, true
		case "remount":
			m.remount = true
		case "tmpcopyup":
			m.copyUp = true
		case "idmap":
			m.idmap = true
		case "ridmap":
			m.idmap, m.ridmap = true, true
		case "":
		default:
			if !m.flag(o, false) && !(strings.HasPrefix(o, "r") && m.flag(o[1:], true)) {
				m.data = append(m.data, o)
			}
		}
	}
	return m, nil
}

// flag applies a flag option, recursively when it was written with an "r" before it.
func (m *mountOptions) flag(name string, rec bool) bool {
	for _, f := range flagOptions {
		if f.name == name && (!rec || f.attr != 0) {
			m.apply(f, rec)
			return true
		}
	}
	for _, f := range atimeOptions {
		if f.name != name {
			continue
		}
		m.apply(f, rec)
		// The access time is a field of attr, not bits: any value needs the whole field cleared.
		field := uint64(unix.MOUNT_ATTR__ATIME)
		if rec {
			m.clrRec |= field
			if f.clear {
				m.setRec &^= field
			}
			return true
		}
		m.clr |= field
		if f.clear {
			m.set &^= field
		}
		return true
	}
	return false
}

func (m *mountOptions) apply(f flagOption, rec bool) {
	set, clr := &m.set, &m.clr
	if rec {
		set, clr = &m.setRec, &m.clrRec
	}
	if f.clear {
		if !rec {
			m.flags &^= f.ms
		}
		*set &^= f.attr
		*clr |= f.attr
		return
	}
	if !rec {
		m.flags |= f.ms
	}
	*set |= f.attr
	*clr &^= f.attr
}

// flat is what options of a whole tree mean for a new filesystem, which is all of its tree.
func (m *mountOptions) flat() {
	for _, f := range flagOptions {
		switch {
		case f.attr == 0 || f.clear:
		case m.setRec&f.attr != 0:
			m.apply(f, false)
		case m.clrRec&f.attr != 0:
			m.flags &^= f.ms
			m.set &^= f.attr
		}
	}
	if m.clrRec&unix.MOUNT_ATTR__ATIME != 0 {
		m.flags &^= unix.MS_NOATIME | unix.MS_STRICTATIME | unix.MS_RELATIME
		m.set &^= unix.MOUNT_ATTR__ATIME
		for _, f := range atimeOptions {
			if !f.clear && m.setRec&unix.MOUNT_ATTR__ATIME == f.attr {
				m.apply(f, false)
			}
		}
	}
	m.setRec, m.clrRec = 0, 0
}
