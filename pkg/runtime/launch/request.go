// Package launch starts programs: it forks the process that runs a sealed program (pkg/runtime/program),
// follows it to READY over its report pipe, and reaps it.
//
// It is the part of the runtime that the shim links, so it imports the standard library and x/sys only,
// and knows neither JSON nor container configuration. Whoever compiled the program keeps the texts that
// belong to an operation's index.
package launch

import (
	"fmt"
	"os"
)

// The descriptors of a program's process. 0, 1 and 2 are its stdio.
const (
	ReportFD = 3 // write end of the report pipe
	GateFD   = 4 // read end of the gate; closed when the program has none
	FirstFD  = 5 // the first of Request.Files; the console socket follows the last of them
)

// GateToken is the byte that opens a gate. Anything else, end of file included, ends the program.
const GateToken = 'G'

// Kinds of a record on the report pipe: two 64-bit words in the machine's byte order, kind and value.
// A kind below RecordReady is the index of the operation that failed, and its value the errno.
const (
	RecordReady         = 1<<32 + iota // everything but the seccomp load and execve has been done
	RecordPid                          // value: pid of the nested child, in the launcher's PID namespace
	RecordGate                         // the program is about to read its gate
	RecordStop                         // as RecordGate, with Nested before the child exists
	RecordListener                     // value: descriptor of the seccomp listener; the program reads its gate until it has been fetched
	RecordMakerListener                // the same, with Nested before the child exists
)

// RecordSize is how many bytes a record has.
const RecordSize = 16

// IDMap is one line of a user namespace's uid_map or gid_map.
type IDMap struct {
	ContainerID, HostID, Size uint32
}

// Rlimit is one resource limit; Resource is the kernel's RLIMIT_ number.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Owner is a user and group as the launcher's user namespace numbers them.
type Owner struct {
	UID, GID uint32
}

// Enter names a namespace that the program's process is born in: Files index and CLONE_NEW* type.
type Enter struct {
	File int
	Type uint32
}

// Request says how to start one program. It travels to the shim by MarshalBinary; the descriptors travel
// beside it, and fields named in the comments as "index" point into them.
type Request struct {
	Name             string   // argv[0] of the program while it has not exec'd: what ps shows for a holder
	Cloneflags       uintptr  // CLONE_NEW* of the program's process
	UIDMaps, GIDMaps []IDMap  // with CLONE_NEWUSER; the process starts as user and group 0 of the namespace
	Setgroups        bool     // with CLONE_NEWUSER: setgroups(2) stays allowed
	Enter            []Enter  // namespaces (net, ipc, uts, cgroup, pid, time) joined before the process is made, index
	Program          int      // index of the sealed program
	Cgroup           int      // index of a cgroup v2 directory for CLONE_INTO_CGROUP, -1 for none
	Files            []int    // indexes: child descriptor FirstFD+i is files[Files[i]]
	Nested           bool     // the program clones its successor with CLONE_PARENT and reports its pid: that is the process
	Gate             bool     // the program stops at its gate until Process.Release
	OOMScoreAdj      *int     // written from outside while the program is at its gate
	Rlimits          []Rlimit // set from outside while the program is at its gate
	Scheduler        []byte   // a struct sched_attr, set from outside while the program is at its gate
	Terminal         bool     // the program sends the master of a pty it opened over its console socket
	StdioOwner       *Owner   // new owner of those stdio files that are pipes, nil to leave them
	Stop             bool     // the program stops once before it leaves the launcher's root, until Process.Continue
	Notify           *Notify  // who gets the listener of the program's seccomp filter, nil for a filter without
	Held             bool     // the program stops before its first step, until Place has returned

	// Place puts a held program, process pid (with Nested the one that will make the process), into its cgroup. Where
	// Cgroup is one that the launcher may give birth in, it was born there; else it is where the launcher is. An error
	// ends it, and is that of Start. Place does not travel: who has one launches.
	Place func(pid int, born bool) error
	// Meanwhile is called with the pid that Place is called with, once that process is there and before Start waits for
	// it: for what takes the launcher a while and need not be done before. It does not travel either.
	Meanwhile func(pid int)
}

// Notify says who gets a seccomp listener: the message and the descriptor go to a unix socket.
type Notify struct {
	Socket  int      // index of a connected stream socket, -1: another process's, which attaches later
	Message []string // joined by the process's pid
}

// Gated reports whether the program of r has a gate operation: for Release or for what only the outside
// may do.
func (r *Request) Gated() bool {
	return r.Gate || r.OOMScoreAdj != nil || len(r.Rlimits) > 0 || r.Scheduler != nil
}

// reads reports whether the program of r reads the descriptor of its gate at all.
func (r *Request) reads() bool { return r.Gated() || r.Stop || r.Notify != nil || r.Held }

// ConsoleFD is the number of the console socket in the program's process.
func (r *Request) ConsoleFD() int { return FirstFD + len(r.Files) }

// check reports what makes r unusable with n descriptors.
func (r *Request) check(n int) error {
	in := func(what string, i, low int) error {
		if i < low || i >= n {
			return fmt.Errorf("launch request: %s is descriptor %d of %d", what, i, n)
		}
		return nil
	}
	if r.Held != (r.Place != nil) {
		return fmt.Errorf("launch request: held %v, and to be placed %v", r.Held, r.Place != nil)
	}
	if err := in("program", r.Program, 0); err != nil {
		return err
	}
	if err := in("cgroup", r.Cgroup, -1); err != nil {
		return err
	}
	for _, i := range r.Files {
		if err := in("file", i, 0); err != nil {
			return err
		}
	}
	for _, e := range r.Enter {
		if err := in("namespace", e.File, 0); err != nil {
			return err
		}
	}
	if r.Notify != nil {
		return in("seccomp agent", r.Notify.Socket, -1)
	}
	return nil
}

// pick returns files[i], or nil for -1.
func pick(files []*os.File, i int) *os.File {
	if i < 0 {
		return nil
	}
	return files[i]
}
