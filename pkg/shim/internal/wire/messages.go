package wire

import "time"

// Hello opens a connection, both ways.
type Hello struct {
	Version uint64
	Pid     int    // of the shim, in the reply
	Build   string // for people only, may be empty
}

// Fields lists the fields of the message for both directions.
func (m *Hello) Fields(c *Codec) {
	c.Uint(&m.Version)
	c.Int32(&m.Pid)
	c.String(&m.Build)
}

// Start asks for a container, and with OpHolder for the holder. The frame's descriptors are those of the
// launch request, then the log, the exit directory, the OOM event and the OOM count, as far as they are announced.
type Start struct {
	ID          string
	Launch      []byte // launch.Request.MarshalBinary
	LaunchFiles int
	HasLog      bool
	HasExitDir  bool
	HasOOMEvent bool
	HasOOMCount bool
	Stdin       bool
	StdinOnce   bool
	TTY         bool
	HoldOutput  bool
}

// Fields lists the fields of the message for both directions.
func (m *Start) Fields(c *Codec) {
	c.String(&m.ID)
	c.Bytes(&m.Launch)
	c.Int32(&m.LaunchFiles)
	c.Bool(&m.HasLog)
	c.Bool(&m.HasExitDir)
	c.Bool(&m.HasOOMEvent)
	c.Bool(&m.HasOOMCount)
	c.Bool(&m.Stdin)
	c.Bool(&m.StdinOnce)
	c.Bool(&m.TTY)
	c.Bool(&m.HoldOutput)
}

// Exec asks for a process in a container. The frame's descriptors are those of the launch request, then
// the three of stdio unless TTY is set.
type Exec struct {
	ID, Container string
	Launch        []byte
	LaunchFiles   int
	TTY           bool
}

// Fields lists the fields of the message for both directions.
func (m *Exec) Fields(c *Codec) {
	c.String(&m.ID)
	c.String(&m.Container)
	c.Bytes(&m.Launch)
	c.Int32(&m.LaunchFiles)
	c.Bool(&m.TTY)
}

// Started answers Start, OpHolder and Exec. The frame has the console of an exec with a terminal.
type Started struct {
	Pid int
	At  time.Time
}

// Fields lists the fields of the message for both directions.
func (m *Started) Fields(c *Codec) {
	c.Int32(&m.Pid)
	c.Time(&m.At)
}

// Target names a container or exec ("" is the holder) and, by operation, a signal, a size of its
// terminal, or the streams to attach. OpReopenLog has the new log as descriptor, or none to stop logging.
type Target struct {
	ID                    string
	Signal                int
	All                   bool
	Width, Height         uint64
	Stdin, Stdout, Stderr bool
	Force                 bool
}

// Fields lists the fields of the message for both directions.
func (m *Target) Fields(c *Codec) {
	c.String(&m.ID)
	c.Int32(&m.Signal)
	c.Bool(&m.All)
	c.Uint(&m.Width)
	c.Uint(&m.Height)
	c.Bool(&m.Stdin)
	c.Bool(&m.Stdout)
	c.Bool(&m.Stderr)
	c.Bool(&m.Force)
}

// Attached answers OpAttach; the frame has the descriptors of the streams that are true, in this order.
type Attached struct{ Stdin, Stdout, Stderr bool }

// Fields lists the fields of the message for both directions.
func (m *Attached) Fields(c *Codec) {
	c.Bool(&m.Stdin)
	c.Bool(&m.Stdout)
	c.Bool(&m.Stderr)
}

// State is what the shim knows of a container, the holder or an exec.
type State struct {
	ID           string
	Holder       bool
	Pid          int
	Gated        bool
	StartedAt    time.Time
	Exited       bool
	ExitCode     int
	Signal       int
	FinishedAt   time.Time
	OOMKilled    bool
	OOMKills     uint64
	DroppedLines uint64
	DroppedBytes uint64
	LogError     string
}

// Fields lists the fields of the message for both directions.
func (m *State) Fields(c *Codec) {
	c.String(&m.ID)
	c.Bool(&m.Holder)
	c.Int32(&m.Pid)
	c.Bool(&m.Gated)
	c.Time(&m.StartedAt)
	c.Bool(&m.Exited)
	c.Int32(&m.ExitCode)
	c.Int32(&m.Signal)
	c.Time(&m.FinishedAt)
	c.Bool(&m.OOMKilled)
	c.Uint(&m.OOMKills)
	c.Uint(&m.DroppedLines)
	c.Uint(&m.DroppedBytes)
	c.String(&m.LogError)
}

// States answers OpStates. Each State has a length of its own, so that it can grow.
type States struct{ List []State }

// Fields lists the fields of the message for both directions.
func (m *States) Fields(c *Codec) {
	n := c.Len(len(m.List))
	if c.reading {
		m.List = make([]State, n)
	}
	for i := range m.List {
		b := []byte(nil)
		if !c.reading {
			b = Marshal(&m.List[i])
		}
		c.Bytes(&b)
		if c.reading && c.err == nil {
			c.err = Unmarshal(b, &m.List[i])
		}
	}
}

// Failure is the body of an Error frame: an error that can be taken apart on the other side.
type Failure struct {
	ErrKind uint64 // errs.Kind
	Text    string
	IsOp    bool // a *launch.OpError is in the chain: its index and errno follow
	Index   int
	Errno   int
}

// Fields lists the fields of the message for both directions.
func (m *Failure) Fields(c *Codec) {
	c.Uint(&m.ErrKind)
	c.String(&m.Text)
	c.Bool(&m.IsOp)
	c.Int32(&m.Index)
	c.Int32(&m.Errno)
}
