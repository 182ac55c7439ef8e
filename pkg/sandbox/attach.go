package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

// AttachStreams are the streams to join to a container's; nil ones are not joined.
type AttachStreams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer // with a terminal everything goes to Stdout
	TTY            bool      // has to be what the container was made with
	Resize         <-chan Size
}

// Attach joins streams to a running container and returns when the container has ended or closed its output, or, with
// none of its output joined, when Stdin has ended. When ctx ends, it lets go and the container runs on. With
// stdin_once the shim closes the container's standard input when the first client has gone. The reader of Stdin may still be
// blocked in a Read when Attach returns: its owner ends that.
func (m *Manager) Attach(ctx context.Context, id string, s AttachStreams) error {
	rec, err := m.containerRec(id)
	if err != nil {
		return err
	}
	c := rec.Config.M
	switch {
	case !rec.running():
		return errs.New(errs.Conflict, "attach to container %s: it is not running", rec.ID)
	case s.TTY != c.GetTty():
		return errs.New(errs.Invalid, "attach to container %s: tty is %t in the request and %t in the container. Ask for the container's", rec.ID, s.TTY, c.GetTty())
	}
	shim, err := m.shimOf(rec.PodID)
	if err != nil {
		return err
	}
	stdin := s.Stdin != nil && c.GetStdin()
	at, err := shim.Attach(ctx, rec.ID, stdin, s.Stdout != nil, s.Stderr != nil && !c.GetTty())
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", rec.ID, err)
	}
	stopResize := follow(ctx, s.Resize, func(z Size) error { return shim.Resize(ctx, rec.ID, z) })
	defer stopResize()
	stdinDone := make(chan struct{})
	if at.Stdin == nil {
		close(stdinDone)
	} else {
		defer at.Stdin.Close()
		go func() {
			defer close(stdinDone)
			_, _ = io.Copy(onlyWriter{at.Stdin}, s.Stdin) // the end of either side ends this
			at.Stdin.Close()
		}()
	}
	if at.Stdout == nil && at.Stderr == nil {
		select {
		case <-stdinDone:
		case <-m.live.container(rec.ID).endedChan():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return nil
	}
	return copyOutput(ctx, at, s)
}

// copyOutput returns when the output has ended, or ctx has.
func copyOutput(ctx context.Context, at *Attached, s AttachStreams) error {
	var wg sync.WaitGroup
	for _, p := range []struct {
		w io.Writer
		r io.ReadCloser
	}{{s.Stdout, at.Stdout}, {s.Stderr, at.Stderr}} {
		if p.r == nil {
			continue
		}
		defer p.r.Close()
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, _ = io.Copy(p.w, p.r) // the end of either side ends this
		}()
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// portConnectTime bounds the wait for a connection to a port that nobody answers.
const portConnectTime = 30 * time.Second

// PortForward copies between stream and a TCP port on the loopback of the pod's network namespace, until both
// directions have ended or ctx has. It closes stream.
func (m *Manager) PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	rec, err := m.podRec(podID)
	if err != nil {
		return err
	}
	if !rec.ready() {
		return errs.New(errs.Conflict, "forward port %d of pod %s: the pod is not ready", port, rec.ID)
	}
	if port < 1 || port > 65535 {
		return errs.New(errs.Invalid, "forward port %d of pod %s: ports are 1 to 65535", port, rec.ID)
	}
	pid := rec.HolderPid
	if rec.hostNetwork() {
		pid = 0
	}
	dial, cancel := context.WithTimeout(ctx, portConnectTime)
	conn, err := m.shims.Connect(dial, pid, port)
	cancel()
	if err != nil {
		return errs.New(errs.Unavailable, "forward port %d of pod %s: %w. Does something listen there?", port, rec.ID, err)
	}
	defer conn.Close()
	return splice(ctx, conn, stream)
}

// splice copies both ways. The end of what the client sends is handed on as a half close; the end of what the port
// sends ends it all.
func splice(ctx context.Context, conn net.Conn, stream io.ReadWriteCloser) error {
	stop := context.AfterFunc(ctx, func() { conn.Close(); stream.Close() })
	defer stop()
	go func() {
		_, err := io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
			return
		}
		conn.Close()
	}()
	_, err := io.Copy(stream, conn)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}
