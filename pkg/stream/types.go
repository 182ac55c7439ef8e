package stream

import (
	"context"
	"io"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

// Runtime is what streams are connected to: pkg/sandbox's Manager. Every method returns when its ctx ends,
// which it does when the client goes away. Reading a Stdin ends with io.EOF when the client closes it or goes
// away. Of the sizes of a terminal only the latest is kept; the channel is never closed.
type Runtime interface {
	// Exec runs a command in a container and returns its exit code when all its output is written.
	Exec(ctx context.Context, container string, s sandbox.ExecStreams) (exit int, err error)
	// Attach connects to the stdio of a running container until that ends.
	Attach(ctx context.Context, container string, s sandbox.AttachStreams) error
	// PortForward connects stream to a port of a pod until either side ends, and closes it.
	PortForward(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error
}

// streams are what a client connected. Those it did not ask for are nil.
type streams struct {
	tty            bool
	stdin          io.Reader
	stdout, stderr io.Writer
	resize         <-chan sandbox.Size
}

func (s streams) exec(cmd []string) sandbox.ExecStreams {
	return sandbox.ExecStreams{Cmd: cmd, TTY: s.tty, Stdin: s.stdin, Stdout: s.stdout, Stderr: s.stderr, Resize: s.resize}
}

func (s streams) attach() sandbox.AttachStreams {
	return sandbox.AttachStreams{TTY: s.tty, Stdin: s.stdin, Stdout: s.stdout, Stderr: s.stderr, Resize: s.resize}
}
