package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// ExecSync runs a command in a container and returns its output.
func (s *Server) ExecSync(ctx context.Context, req *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	switch {
	case len(req.GetCmd()) == 0:
		return nil, errs.New(errs.Invalid, "cmd: the field is required and empty")
	case req.GetTimeout() < 0:
		return nil, errs.New(errs.Invalid, "timeout (%d): a time limit cannot be negative", req.GetTimeout())
	}
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	stdout, stderr, exit, err := s.cfg.Sandboxes.ExecSync(ctx, c.ID, req.GetCmd(), seconds(req.GetTimeout()))
	if err != nil {
		return nil, err
	}
	stdout, stderr = fit(stdout, stderr, MaxMessage-responseOverhead)
	return &cri.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: exit}, nil
}

// responseOverhead is more than an ExecSync response takes beside the outputs.
const responseOverhead = 4 << 10

// fit cuts two outputs to room bytes together: each has a right to half, and to what the other leaves. A
// client could not receive the response otherwise, nor learn the exit code.
func fit(stdout, stderr []byte, room int) (o, e []byte) {
	o = stdout[:min(len(stdout), max(room/2, room-len(stderr)))]
	e = stderr[:min(len(stderr), room-len(o))]
	return o, e
}

// Exec returns a URL at which a command runs once.
func (s *Server) Exec(_ context.Context, req *cri.ExecRequest) (*cri.ExecResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, errs.New(errs.Invalid, "cmd: the field is required and empty")
	}
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	return s.cfg.Streams.GetExec(&cri.ExecRequest{ContainerId: c.ID, Cmd: req.GetCmd(), Tty: req.GetTty(),
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr()})
}

// Attach returns a URL at which a container's stdio can be reached once.
func (s *Server) Attach(_ context.Context, req *cri.AttachRequest) (*cri.AttachResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if req.GetTty() != c.Config.GetTty() {
		return nil, errs.New(errs.Invalid, "tty (%t): the container was created with tty %t, and attaching must match it", req.GetTty(), c.Config.GetTty())
	}
	return s.cfg.Streams.GetAttach(&cri.AttachRequest{ContainerId: c.ID, Tty: req.GetTty(),
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr()})
}

// PortForward returns a URL at which a pod's ports can be reached once.
func (s *Server) PortForward(_ context.Context, req *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	for _, port := range req.GetPort() {
		if port < 1 || port > 65535 {
			return nil, errs.New(errs.Invalid, "port (%d): not between 1 and 65535", port)
		}
	}
	p, err := s.cfg.Sandboxes.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if !p.Ready {
		return nil, errs.New(errs.Conflict, "pod sandbox (%s): it is not ready, so that it has no ports to forward to", p.ID)
	}
	return s.cfg.Streams.GetPortForward(&cri.PortForwardRequest{PodSandboxId: p.ID, Port: req.GetPort()})
}

// checkStreams refuses combinations of streams that cannot be served.
func checkStreams(req interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}) error {
	switch {
	case req.GetTty() && req.GetStderr():
		return errs.New(errs.Invalid, "stderr: a terminal has one output. Leave stderr unset where tty is set.")
	case !req.GetStdin() && !req.GetStdout() && !req.GetStderr():
		return errs.New(errs.Invalid, "stdin, stdout, stderr: at least one of them is required")
	}
	return nil
}
