package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// RunPodSandbox makes a pod; it is ready when the call returns.
func (s *Server) RunPodSandbox(ctx context.Context, req *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	if err := checkPodConfig(req.GetConfig()); err != nil {
		return nil, err
	}
	if err := s.checkHandler(req.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	id, err := s.cfg.Sandboxes.RunPod(ctx, req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox stops a pod. A pod that is not there is stopped.
func (s *Server) StopPodSandbox(ctx context.Context, req *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Sandboxes.StopPod(ctx, req.GetPodSandboxId()); err != nil && !errs.Is(err, errs.NotFound) {
		return nil, err
	}
	return &cri.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a pod with all it has. A pod that is not there is removed.
func (s *Server) RemovePodSandbox(ctx context.Context, req *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Sandboxes.RemovePod(ctx, req.GetPodSandboxId()); err != nil && !errs.Is(err, errs.NotFound) {
		return nil, err
	}
	return &cri.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus tells all about one pod, with the statuses of its containers as of the same moment.
func (s *Server) PodSandboxStatus(_ context.Context, req *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	p, err := s.cfg.Sandboxes.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &cri.PodSandboxStatusResponse{Status: podStatus(p), Timestamp: now()}
	for _, c := range s.containersOf(p.ID) {
		resp.ContainersStatuses = append(resp.ContainersStatuses, s.containerStatus(c))
	}
	if req.GetVerbose() {
		resp.Info, err = encodeInfo(podInfo(p))
	}
	return resp, err
}

// ListPodSandbox lists the pods that a filter lets through.
func (s *Server) ListPodSandbox(_ context.Context, req *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: s.listPods(req.GetFilter())}, nil
}

// StreamPodSandboxes is ListPodSandbox in batches.
func (s *Server) StreamPodSandboxes(req *cri.StreamPodSandboxesRequest, stream cri.RuntimeService_StreamPodSandboxesServer) error {
	return batches(s.listPods(req.GetFilter()), func(b []*cri.PodSandbox) error {
		return stream.Send(&cri.StreamPodSandboxesResponse{PodSandboxes: b})
	})
}

func (s *Server) listPods(f *cri.PodSandboxFilter) []*cri.PodSandbox {
	var out []*cri.PodSandbox
	for _, p := range s.podsMatching(f.GetId(), f.GetLabelSelector()) {
		if f.GetState() == nil || f.GetState().GetState() == podState(p) {
			out = append(out, podItem(p))
		}
	}
	return out
}

// UpdatePodSandboxResources takes a pod's resources after the kubelet changed its cgroup.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, req *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.cfg.Sandboxes.UpdatePod(ctx, req.GetPodSandboxId(), req.GetOverhead(), req.GetResources()); err != nil {
		return nil, err
	}
	return &cri.UpdatePodSandboxResourcesResponse{}, nil
}

// podsMatching returns the pods with the id, which may be a prefix that one pod has, and all the labels.
func (s *Server) podsMatching(id string, labels map[string]string) []*sandbox.Pod {
	all := s.cfg.Sandboxes.Pods()
	if id != "" {
		p, err := s.cfg.Sandboxes.Pod(id)
		if err != nil {
			return nil
		}
		all = []*sandbox.Pod{p}
	}
	var out []*sandbox.Pod
	for _, p := range all {
		if hasLabels(p.Config.GetLabels(), labels) {
			out = append(out, p)
		}
	}
	return out
}

func checkPodConfig(c *cri.PodSandboxConfig) error {
	switch {
	case c == nil:
		return errs.New(errs.Invalid, "config: a pod sandbox needs one")
	case c.GetMetadata() == nil:
		return errs.New(errs.Invalid, "config.metadata: a pod sandbox needs one")
	}
	return nil
}

// required refuses a field of a request that was left out.
func required(field, value string) error {
	if value == "" {
		return errs.New(errs.Invalid, "%s: the field is required and empty", field)
	}
	return nil
}
