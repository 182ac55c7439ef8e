package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStats measures one container.
func (s *Server) ContainerStats(_ context.Context, req *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.cfg.Sandboxes.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.cfg.Stats.Container(c.ID)
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats measures the running containers that a filter lets through.
func (s *Server) ListContainerStats(_ context.Context, req *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	st, err := s.listContainerStats(req.GetFilter())
	return &cri.ListContainerStatsResponse{Stats: st}, err
}

// StreamContainerStats is ListContainerStats in batches.
func (s *Server) StreamContainerStats(req *cri.StreamContainerStatsRequest, stream cri.RuntimeService_StreamContainerStatsServer) error {
	st, err := s.listContainerStats(req.GetFilter())
	if err != nil {
		return err
	}
	return batches(st, func(b []*cri.ContainerStats) error {
		return stream.Send(&cri.StreamContainerStatsResponse{ContainerStats: b})
	})
}

// listContainerStats resolves the identifiers of the filter, which may be prefixes that one object has.
func (s *Server) listContainerStats(f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	full := &cri.ContainerStatsFilter{LabelSelector: f.GetLabelSelector()}
	if id := f.GetId(); id != "" {
		c, err := s.cfg.Sandboxes.Container(id)
		if err != nil {
			return nil, nil // no such container, so none gets through
		}
		full.Id = c.ID
	}
	if id := f.GetPodSandboxId(); id != "" {
		p, err := s.cfg.Sandboxes.Pod(id)
		if err != nil {
			return nil, nil
		}
		full.PodSandboxId = p.ID
	}
	return s.cfg.Stats.Containers(full)
}

// PodSandboxStats measures one pod and its containers.
func (s *Server) PodSandboxStats(_ context.Context, req *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	p, err := s.cfg.Sandboxes.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := s.cfg.Stats.Pod(p.ID)
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats measures the ready pods that a filter lets through.
func (s *Server) ListPodSandboxStats(_ context.Context, req *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	st, err := s.listPodStats(req.GetFilter())
	return &cri.ListPodSandboxStatsResponse{Stats: st}, err
}

// StreamPodSandboxStats is ListPodSandboxStats in batches.
func (s *Server) StreamPodSandboxStats(req *cri.StreamPodSandboxStatsRequest, stream cri.RuntimeService_StreamPodSandboxStatsServer) error {
	st, err := s.listPodStats(req.GetFilter())
	if err != nil {
		return err
	}
	return batches(st, func(b []*cri.PodSandboxStats) error {
		return stream.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: b})
	})
}

func (s *Server) listPodStats(f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	full := &cri.PodSandboxStatsFilter{LabelSelector: f.GetLabelSelector()}
	if id := f.GetId(); id != "" {
		p, err := s.cfg.Sandboxes.Pod(id)
		if err != nil {
			return nil, nil // no such pod, so none gets through
		}
		full.Id = p.ID
	}
	return s.cfg.Stats.Pods(full)
}

// ListMetricDescriptors lists the metrics of ListPodSandboxMetrics. It never changes.
func (s *Server) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{Descriptors: s.cfg.Stats.Descriptors()}, nil
}

// ListPodSandboxMetrics returns the metrics of every ready pod.
func (s *Server) ListPodSandboxMetrics(_ context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	m, err := s.cfg.Stats.Metrics()
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: m}, err
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in batches.
func (s *Server) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, stream cri.RuntimeService_StreamPodSandboxMetricsServer) error {
	m, err := s.cfg.Stats.Metrics()
	if err != nil {
		return err
	}
	return batches(m, func(b []*cri.PodSandboxMetrics) error {
		return stream.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: b})
	})
}
