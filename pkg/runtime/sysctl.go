package runtime

import (
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// sysctls adds the writes of kernel parameters; those of the network, IPC, UTS and user namespaces are the
// program's own by then.
func (c *compiler) sysctls(values map[string]string, ns *namespaces) error {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		path, err := sysctlPath(name)
		if err != nil {
			return err
		}
		if path == "sys/kernel/hostname" {
			return errs.New(errs.Invalid, "sysctl %s: it is what the configuration's hostname is for, and in conflict with it", name)
		}
		if flag := sysctlNamespace(path); flag == 0 {
			return errs.New(errs.Invalid, "sysctl %s: it is not one of a namespace: it would be the host's", name)
		} else if !ns.private(flag) {
			return errs.New(errs.Invalid, "sysctl %s: it needs a namespace that the configuration has not", name)
		}
		if strings.IndexByte(values[name], 0) >= 0 {
			return errs.New(errs.Invalid, "sysctl %s: the value has a NUL in it", name)
		}
		first := c.p.Len()
		c.writeProc("sysctl "+name, path, values[name])
		c.hints[first], c.hints[first+1] = sysctlAbsent(name), sysctlRefused(name, values[name])
	}
	return nil
}

func sysctlAbsent(name string) hint {
	return func(e syscall.Errno) error {
		if e == unix.ENOENT {
			return errs.New(errs.Invalid, "sysctl %s: this kernel has none of that name: %w", name, e)
		}
		return wrapErrno(e, "open sysctl %s", name)
	}
}

func sysctlRefused(name, value string) hint {
	return func(e syscall.Errno) error {
		err := wrapErrno(e, "set sysctl %s to %q", name, value)
		if e == unix.EINVAL || e == unix.ERANGE || e == unix.EIO { // EIO: only a part of the value was taken
			return errs.With(errs.Invalid, err)
		}
		return err
	}
}

// sysctlPath is the file of a kernel parameter below /proc. A slash stands for a dot inside a component
// ("net.ipv4.conf.eth0/1.forwarding").
func sysctlPath(name string) (string, error) {
	if name == "" || strings.Contains(name, "..") || strings.IndexByte(name, 0) >= 0 || name[0] == '/' || name[0] == '.' {
		return "", errs.New(errs.Invalid, "sysctl %q is no name of a kernel parameter", name)
	}
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return "sys/" + name, nil // written with slashes
	}
	return "sys/" + strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name), nil
}

// ipcSysctls are the kernel.* parameters that each IPC namespace has for itself.
var ipcSysctls = []string{"msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced", "auto_msgmni", "msg_next_id", "sem_next_id", "shm_next_id"}

// sysctlNamespace is the namespace that a parameter belongs to, 0 when it is the whole machine's.
func sysctlNamespace(path string) uintptr {
	if strings.HasPrefix(path, "sys/net/") {
		return unix.CLONE_NEWNET
	}
	if strings.HasPrefix(path, "sys/fs/mqueue/") {
		return unix.CLONE_NEWIPC
	}
	if strings.HasPrefix(path, "sys/user/") { // how much a user namespace may make
		return unix.CLONE_NEWUSER
	}
	name, ok := strings.CutPrefix(path, "sys/kernel/")
	if !ok {
		return 0
	}
	if name == "hostname" || name == "domainname" {
		return unix.CLONE_NEWUTS
	}
	for _, n := range ipcSysctls {
		if n == name {
			return unix.CLONE_NEWIPC
		}
	}
	return 0
}
