package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// CreateContainer makes a container in a pod, ready to be started.
func (s *Server) CreateContainer(ctx context.Context, req *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.checkContainerConfig(req.GetConfig()); err != nil {
		return nil, err
	}
	id, err := s.cfg.Sandboxes.CreateContainer(ctx, req.GetPodSandboxId(), req.GetConfig(), req.GetSandboxConfig())
	if err != nil {
		return nil, err
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer starts a created container.
func (s *Server) StartContainer(ctx context.Context, req *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Sandboxes.StartContainer(ctx, req.GetContainerId()); err != nil {
		return nil, err
	}
	return &cri.StartContainerResponse{}, nil
}

// StopContainer stops a container, by force once the grace period is over. A container that is not there
// is stopped.
func (s *Server) StopContainer(ctx context.Context, req *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if req.GetTimeout() < 0 {
		return nil, errs.New(errs.Invalid, "timeout (%d): a grace period cannot be negative", req.GetTimeout())
	}
	err := s.cfg.Sandboxes.StopContainer(ctx, req.GetContainerId(), seconds(req.GetTimeout()))
	if err != nil && !errs.Is(err, errs.NotFound) {
		return nil, err
	}
	return &cri.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, running or not. A container that is not there is removed.
func (s *Server) RemoveContainer(ctx context.Context, req *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Sandboxes.RemoveContainer(ctx, req.GetContainerId()); err != nil && !errs.Is(err, errs.NotFound) {
		return nil, err
	}
	return &cri.RemoveContainerResponse{}, nil
}

// ListContainers lists the containers that a filter lets through.
func (s *Server) ListContainers(_ context.Context, req *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: s.listContainers(req.GetFilter())}, nil
}

// StreamContainers is ListContainers in batches.
func (s *Server) StreamContainers(req *cri.StreamContainersRequest, stream cri.RuntimeService_StreamContainersServer) error {
	return batches(s.listContainers(req.GetFilter()), func(b []*cri.Container) error {
		return stream.Send(&cri.StreamContainersResponse{Containers: b})
	})
}

func (s *Server) listContainers(f *cri.ContainerFilter) []*cri.Container {
	var out []*cri.Container
	for _, c := range s.containersMatching(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()) {
		if f.GetState() == nil || f.GetState().GetState() == containerState(c) {
			out = append(out, containerItem(c))
		}
	}
	return out
}

// ContainerStatus tells all about one container.
func (s *Server) ContainerStatus(_ context.Context, req *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.cfg.Sandboxes.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &cri.ContainerStatusResponse{Status: s.containerStatus(c)}
	if req.GetVerbose() {
		resp.Info, err = encodeInfo(s.containerInfo(c))
	}
	return resp, err
}

// UpdateContainerResources changes a container's limits: all that the request names, or nothing.
func (s *Server) UpdateContainerResources(ctx context.Context, req *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if req.GetWindows() != nil {
		return nil, errs.New(errs.Invalid, "windows: this is no Windows node")
	}
	if err := s.cfg.Sandboxes.UpdateContainer(ctx, req.GetContainerId(), req.GetLinux(), req.GetAnnotations()); err != nil {
		return nil, err
	}
	return &cri.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog opens a running container's log file anew, after it was renamed.
func (s *Server) ReopenContainerLog(ctx context.Context, req *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	c, err := s.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Sandboxes.ReopenLog(ctx, c.ID); err != nil {
		return nil, err
	}
	return &cri.ReopenContainerLogResponse{}, nil
}

// running returns the container of a call that only a running one can answer.
func (s *Server) running(id string) (*sandbox.Container, error) {
	if err := required("container_id", id); err != nil {
		return nil, err
	}
	c, err := s.cfg.Sandboxes.Container(id)
	if err != nil {
		return nil, err
	}
	if c.State() != sandbox.Running {
		return nil, errs.New(errs.Conflict, "container (%s): it is not running but %s. Start it, or use another.", id, stateName(c))
	}
	return c, nil
}

// containersMatching returns the containers with the ids, each of which may be a prefix that one object
// has, and all the labels.
func (s *Server) containersMatching(id, pod string, labels map[string]string) []*sandbox.Container {
	all := s.cfg.Sandboxes.Containers()
	if id != "" {
		c, err := s.cfg.Sandboxes.Container(id)
		if err != nil {
			return nil
		}
		all = []*sandbox.Container{c}
	}
	if pod != "" {
		p, err := s.cfg.Sandboxes.Pod(pod)
		if err != nil {
			return nil
		}
		pod = p.ID
	}
	var out []*sandbox.Container
	for _, c := range all {
		if (pod == "" || c.PodID == pod) && hasLabels(c.Config.GetLabels(), labels) {
			out = append(out, c)
		}
	}
	return out
}

func (s *Server) containersOf(pod string) []*sandbox.Container {
	var out []*sandbox.Container
	for _, c := range s.cfg.Sandboxes.Containers() {
		if c.PodID == pod {
			out = append(out, c)
		}
	}
	return out
}

func (s *Server) checkContainerConfig(c *cri.ContainerConfig) error {
	switch {
	case c == nil:
		return errs.New(errs.Invalid, "config: a container needs one")
	case c.GetMetadata() == nil:
		return errs.New(errs.Invalid, "config.metadata: a container needs one")
	case c.GetWindows() != nil:
		return errs.New(errs.Invalid, "config.windows: this is no Windows node")
	}
	for i, m := range c.GetMounts() {
		if err := s.checkHandler(m.GetImage().GetRuntimeHandler()); err != nil {
			return errs.New(errs.Invalid, "config.mounts[%d].image.%w", i, err)
		}
	}
	return s.checkImageSpec("config.image", c.GetImage())
}
