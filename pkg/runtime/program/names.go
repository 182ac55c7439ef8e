package program

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// call says how a system call is printed: a letter per argument, for intText.
type call struct {
	nr   uint64
	name string
	args string
}

// calls are the system calls that programs make. The letters: d number, f descriptor, o octal, x hex,
// and c clone, m mount, a at, t open_tree, v move_mount, p prctl flags.
var calls = []call{
	{unix.SYS_OPENAT2, "openat2", "fsxd"}, {unix.SYS_OPENAT, "openat", "fsOo"}, {unix.SYS_CLOSE, "close", "f"},
	{unix.SYS_CLOSE_RANGE, "close_range", "ffr"}, {unix.SYS_READ, "read", "fxd"}, {unix.SYS_WRITE, "write", "fxd"},
	{unix.SYS_FCHDIR, "fchdir", "f"}, {unix.SYS_CHDIR, "chdir", "s"}, {unix.SYS_GETCWD, "getcwd", "xd"},
	{unix.SYS_MOUNT, "mount", "sssms"}, {unix.SYS_UMOUNT2, "umount2", "su"}, {unix.SYS_CHROOT, "chroot", "s"}, {unix.SYS_PIVOT_ROOT, "pivot_root", "ss"},
	{unix.SYS_MOVE_MOUNT, "move_mount", "fsfsv"}, {unix.SYS_OPEN_TREE, "open_tree", "fst"},
	{unix.SYS_MOUNT_SETATTR, "mount_setattr", "fstxd"}, {unix.SYS_FSOPEN, "fsopen", "sd"},
	{unix.SYS_FSCONFIG, "fsconfig", "fdssd"}, {unix.SYS_FSMOUNT, "fsmount", "fdA"},
	{unix.SYS_MKDIRAT, "mkdirat", "fso"}, {unix.SYS_FCHMOD, "fchmod", "fo"}, {unix.SYS_MKNODAT, "mknodat", "fsox"}, {unix.SYS_SYMLINKAT, "symlinkat", "sfs"},
	{unix.SYS_UNLINKAT, "unlinkat", "fsx"}, {unix.SYS_FCHOWNAT, "fchownat", "fsdda"}, {unix.SYS_FCHMODAT, "fchmodat", "fso"},
	{unix.SYS_FCHOWN, "fchown", "fdd"}, {unix.SYS_STATX, "statx", "fsaxx"}, {unix.SYS_FACCESSAT2, "faccessat2", "fsda"},
	{unix.SYS_SETNS, "setns", "fc"}, {unix.SYS_UNSHARE, "unshare", "c"}, {unix.SYS_CLONE, "clone", "cdddd"},
	{unix.SYS_SETRESUID, "setresuid", "ddd"}, {unix.SYS_SETRESGID, "setresgid", "ddd"}, {unix.SYS_SETGROUPS, "setgroups", "dx"},
	{unix.SYS_CAPSET, "capset", "xx"}, {unix.SYS_PRCTL, "prctl", "pdddd"}, {unix.SYS_SECCOMP, "seccomp", "dxx"},
	{unix.SYS_PRLIMIT64, "prlimit64", "ddxx"}, {unix.SYS_UMASK, "umask", "o"}, {unix.SYS_SETSID, "setsid", ""},
	{unix.SYS_SETHOSTNAME, "sethostname", "sd"}, {unix.SYS_SETDOMAINNAME, "setdomainname", "sd"},
	{unix.SYS_IOCTL, "ioctl", "fxx"}, {unix.SYS_DUP3, "dup3", "ffO"}, {unix.SYS_FCNTL, "fcntl", "fdd"},
	{unix.SYS_SENDMSG, "sendmsg", "fxx"}, {unix.SYS_RECVMSG, "recvmsg", "fxx"}, {unix.SYS_SOCKET, "socket", "ddd"}, {unix.SYS_SOCKETPAIR, "socketpair", "dddx"}, {unix.SYS_EXECVE, "execve", "sxx"}, {unix.SYS_READLINKAT, "readlinkat", "fsxd"}, {unix.SYS_LSEEK, "lseek", "fdd"},
	{unix.SYS_FTRUNCATE, "ftruncate", "fd"}, {unix.SYS_EXIT_GROUP, "exit_group", "d"},
	{unix.SYS_PPOLL, "ppoll", "dddd"}, {unix.SYS_RT_SIGACTION, "rt_sigaction", "dxdd"}, {unix.SYS_RT_SIGPROCMASK, "rt_sigprocmask", "dxdd"},
	{unix.SYS_WAIT4, "wait4", "dxxx"}, {unix.SYS_GETPID, "getpid", ""}, {unix.SYS_IOPRIO_SET, "ioprio_set", "ddx"}, {unix.SYS_SCHED_SETATTR, "sched_setattr", "dxd"},
	{unix.SYS_SCHED_SETAFFINITY, "sched_setaffinity", "ddx"}, {unix.SYS_PERSONALITY, "personality", "x"}, {unix.SYS_KEYCTL, "keyctl", "dsddd"},
	{unix.SYS_FSTATFS, "fstatfs", "fx"}, {unix.SYS_KILL, "kill", "dd"}, {unix.SYS_SET_MEMPOLICY, "set_mempolicy", "dxd"},
}

func lookup(nr uint64) call {
	for _, c := range calls {
		if c.nr == nr {
			return c
		}
	}
	return call{name: fmt.Sprintf("syscall %d", nr)}
}

func callName(nr uint64) string { return lookup(nr).name }

type flagName struct {
	bit  uint64
	name string
}

var openFlags = []flagName{
	{unix.O_TMPFILE, "O_TMPFILE"}, {unix.O_PATH, "O_PATH"}, {unix.O_WRONLY, "O_WRONLY"}, {unix.O_RDWR, "O_RDWR"}, {unix.O_CREAT, "O_CREAT"},
	{unix.O_EXCL, "O_EXCL"}, {unix.O_NOCTTY, "O_NOCTTY"}, {unix.O_DIRECTORY, "O_DIRECTORY"}, {unix.O_NOFOLLOW, "O_NOFOLLOW"},
	{unix.O_NONBLOCK, "O_NONBLOCK"}, {unix.O_CLOEXEC, "O_CLOEXEC"}, {0x8000, ""}, {0x20000, ""},
}

var resolveFlags = []flagName{
	{unix.RESOLVE_IN_ROOT, "in-root"}, {unix.RESOLVE_BENEATH, "beneath"}, {unix.RESOLVE_NO_MAGICLINKS, "no-magic"},
	{unix.RESOLVE_NO_SYMLINKS, "no-links"}, {unix.RESOLVE_NO_XDEV, "no-xdev"},
}

var attrFlags = []flagName{
	{unix.MOUNT_ATTR_RDONLY, "ro"}, {unix.MOUNT_ATTR_NOSUID, "nosuid"}, {unix.MOUNT_ATTR_NODEV, "nodev"}, {unix.MOUNT_ATTR_NOEXEC, "noexec"},
	{unix.MOUNT_ATTR__ATIME, "atime"}, {unix.MOUNT_ATTR_NOATIME, "noatime"}, {unix.MOUNT_ATTR_STRICTATIME, "strictatime"},
	{unix.MOUNT_ATTR_NODIRATIME, "nodiratime"}, {unix.MOUNT_ATTR_IDMAP, "idmap"}, {unix.MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"},
}

var mountFlags = []flagName{
	{unix.MS_RDONLY, "ro"}, {unix.MS_NOSUID, "nosuid"}, {unix.MS_NODEV, "nodev"}, {unix.MS_NOEXEC, "noexec"}, {unix.MS_SYNCHRONOUS, "sync"},
	{unix.MS_REMOUNT, "remount"}, {unix.MS_MANDLOCK, "mand"}, {unix.MS_DIRSYNC, "dirsync"}, {unix.MS_NOSYMFOLLOW, "nosymfollow"},
	{unix.MS_NOATIME, "noatime"}, {unix.MS_NODIRATIME, "nodiratime"}, {unix.MS_BIND, "bind"}, {unix.MS_REC, "rec"}, {unix.MS_SILENT, "silent"},
	{unix.MS_UNBINDABLE, "unbindable"}, {unix.MS_PRIVATE, "private"}, {unix.MS_SLAVE, "slave"}, {unix.MS_SHARED, "shared"},
	{unix.MS_RELATIME, "relatime"}, {unix.MS_I_VERSION, "iversion"}, {unix.MS_STRICTATIME, "strictatime"}, {unix.MS_LAZYTIME, "lazytime"},
}

var cloneFlags = []flagName{
	{unix.CLONE_NEWNS, "mnt"}, {unix.CLONE_NEWUTS, "uts"}, {unix.CLONE_NEWIPC, "ipc"}, {unix.CLONE_NEWNET, "net"}, {unix.CLONE_NEWPID, "pid"},
	{unix.CLONE_NEWUSER, "user"}, {unix.CLONE_NEWCGROUP, "cgroup"}, {unix.CLONE_NEWTIME, "time"}, {unix.CLONE_PARENT, "CLONE_PARENT"}, {unix.CLONE_FILES, "CLONE_FILES"},
	{unix.CLONE_PIDFD, "CLONE_PIDFD"}, {17, "SIGCHLD"},
}

var atFlags = []flagName{{unix.AT_EMPTY_PATH, "empty"}, {unix.AT_SYMLINK_NOFOLLOW, "nofollow"}, {unix.AT_EACCESS, "eaccess"}}

var treeFlags = []flagName{
	{unix.OPEN_TREE_CLONE, "clone"}, {unix.OPEN_TREE_CLOEXEC, "cloexec"}, {unix.AT_RECURSIVE, "rec"}, {unix.AT_EMPTY_PATH, "empty"},
}

var moveFlags = []flagName{{unix.MOVE_MOUNT_F_EMPTY_PATH, "from-fd"}, {unix.MOVE_MOUNT_T_EMPTY_PATH, "to-fd"}}

var prctls = []flagName{
	{unix.PR_CAPBSET_DROP, "CAPBSET_DROP"}, {unix.PR_SET_KEEPCAPS, "SET_KEEPCAPS"}, {unix.PR_SET_NO_NEW_PRIVS, "SET_NO_NEW_PRIVS"},
	{unix.PR_CAP_AMBIENT, "CAP_AMBIENT"}, {unix.PR_SET_NAME, "SET_NAME"}, {unix.PR_SET_DUMPABLE, "SET_DUMPABLE"}, {unix.PR_SET_SECUREBITS, "SET_SECUREBITS"},
}

func flagText(v uint64, names []flagName) string {
	var out []string
	for _, n := range names {
		if n.bit != 0 && v&n.bit == n.bit {
			v &^= n.bit
			if n.name != "" {
				out = append(out, n.name)
			}
		}
	}
	if v != 0 || len(out) == 0 {
		out = append(out, fmt.Sprintf("%#x", v))
	}
	return strings.Join(out, "|")
}

func intText(v uint64, form byte) string {
	switch form {
	case 'f':
		if int32(v) == unix.AT_FDCWD {
			return "cwd"
		}
		if uint32(v) == ^uint32(0) {
			return "max"
		}
		return fmt.Sprint(int32(v))
	case 's':
		if v == 0 {
			return "nil"
		}
	case 'o':
		return fmt.Sprintf("%#o", v)
	case 'O':
		return flagText(v, openFlags)
	case 'c':
		return flagText(v, cloneFlags)
	case 'm':
		return flagText(v, mountFlags)
	case 'a':
		return flagText(v, atFlags)
	case 't':
		return flagText(v, treeFlags)
	case 'v':
		return flagText(v, moveFlags)
	case 'A':
		return flagText(v, attrFlags)
	case 'r':
		return flagText(v, []flagName{{unix.CLOSE_RANGE_CLOEXEC, "cloexec"}})
	case 'u':
		return flagText(v, []flagName{{unix.MNT_DETACH, "detach"}})
	case 'p':
		for _, n := range prctls {
			if n.bit == v {
				return n.name
			}
		}
	case 'd':
		return fmt.Sprint(int64(v))
	}
	return fmt.Sprintf("%#x", v)
}
