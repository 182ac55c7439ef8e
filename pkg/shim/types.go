// Package shim keeps a pod's programs while daemons come and go: the per-pod process (Main), and the
// client that a daemon speaks to it with (Spawn, Dial).
//
// The process launches prepared programs (pkg/runtime/launch) and keeps what belongs to them: stdio, logs
// in the CRI format, terminals, exit codes, out-of-memory kills. It knows neither container configuration
// nor paths: the daemon prepares, opens, and sends descriptors. It lives outside of the pod's cgroup and the
// service's, in a mount namespace of its own in which every program begins: /proc and /sys unmasked,
// /dev with null, zero, full, random, urandom and tty, and the pod's /dev/shm where SpawnConfig.ShmSize asks
// for one.
//
// A container never waits for a daemon or for whoever is attached. An exit is recorded in exit.json before
// it is told; a daemon that was away asks States.
package shim

import (
	"os"
	"time"

	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/shim/internal/exitrec"
)

// SpawnConfig says how to start a shim.
type SpawnConfig struct {
	PodID string
	Exe   string // path of cri-runtime
	Dir   string // the pod's directory, 0700; the socket is made in it and the shim's own log, shim.log

	// The shims' own cgroup, outside of the pod's and the service's. Both are only borrowed.
	Cgroup    *os.File   // directory on cgroup v2 (on hybrid machines: of the unified hierarchy), nil for none
	TaskFiles []*os.File // the `tasks` file of every v1 hierarchy, name=systemd included, open for writing

	ShmSize int64 // bytes of the pod's /dev/shm, 0 for none (host IPC)
}

// StartRequest says how to start a container. Files and the other descriptors are only borrowed: they
// may be closed when Start returns.
type StartRequest struct {
	ID     string // not empty, unique in the pod
	Launch *launch.Request
	Files  []*os.File // what Launch's indexes point into

	Log     *os.File // appended to in the CRI format, nil for no log; open it with O_APPEND
	ExitDir *os.File // directory that exit.json is written into, nil for none
	OOM     OOMWatch

	Stdin     bool // stdin is a pipe or the terminal; otherwise /dev/null
	StdinOnce bool // stdin ends when the first client that attached to it has gone
	TTY       bool // the program opens a terminal: Launch.Terminal must say the same

	// HoldOutput leaves what is written to a terminal there until the first client attaches, or the process ends: the
	// client then sees all of it. A process that writes more than the terminal holds waits for him.
	HoldOutput bool
}

// OOMWatch holds what tells of out-of-memory kills in a cgroup. Either may be nil.
type OOMWatch struct {
	Event *os.File // readable when it is time to look: inotify on memory.events (v2), eventfd (v1)
	Count *os.File // memory.events (v2) or memory.oom_control (v1), for its line "oom_kill N"
}

// ExecRequest says how to start a process in a container. Descriptors are only borrowed.
type ExecRequest struct {
	ID          string // not empty, unique among execs and containers of the pod
	ContainerID string
	Launch      *launch.Request
	Files       []*os.File
	Stdio       [3]*os.File // without TTY; nil is /dev/null. They are made blocking for the process
	TTY         bool        // the console comes back as Exec.Console; Launch.Terminal must say the same
}

// AttachRequest says which streams of a container to attach to.
type AttachRequest struct {
	Stdin, Stdout, Stderr bool
}

// Info says who the shim is.
type Info struct {
	Pid     int
	Version uint64 // of the wire protocol that it speaks; 0 until it has answered for the first time
}

// ContainerState is what the shim knows of a container, or of the pod's holder.
type ContainerState struct {
	ID         string // "" for the holder
	Holder     bool
	Pid        int       // in the host's PID namespace; stays after the exit
	Gated      bool      // it waits at its gate and has not run yet: Release it or kill it
	StartedAt  time.Time // when it was started, or its gate opened
	Exited     bool
	ExitCode   int // 128+n for signal n; 255 where the kernel did not tell
	Signal     int // that killed it, 0 when it exited by itself
	FinishedAt time.Time
	OOMKilled  bool   // the kernel killed a process of its cgroup for want of memory
	OOMKills   uint64 // how many

	// What could not be written to the log since the start, and why the last write failed ("" when it
	// did not). States knows them, events do not.
	DroppedLines, DroppedBytes uint64
	LogError                   string
}

// ExitStatus says how an exec ended.
type ExitStatus struct {
	ExitCode   int // 128+n for signal n; 255 where the kernel did not tell
	Signal     int
	FinishedAt time.Time
}

// EventType says what an Event tells.
type EventType uint8

// The types of events.
const (
	// A container or the holder has ended, and its record is written. One that ended at its gate (Gated) has no
	// record and is forgotten.
	EventExit EventType = iota + 1
	EventOOM            // the kernel killed a process of a container that goes on
)

// Event is something that happened in the pod without being asked for.
type Event struct {
	Type  EventType
	State ContainerState
}

// ExitRecord is what exit.json says.
type ExitRecord = exitrec.Record

// ExitRecordName is the name of the exit record in StartRequest.ExitDir.
const ExitRecordName = exitrec.Name

// ErrTornRecord is wrapped by ReadExit's error for a record that cannot be trusted.
var ErrTornRecord = exitrec.ErrTorn

// ReadExit reads the exit record in the directory, which need not belong to a shim that lives. It is
// errs.NotFound where there is none, and errs.Unsupported when a newer shim wrote it.
func ReadExit(dir string) (*ExitRecord, error) { return exitrec.Read(dir) }
