package server

import (
	"context"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// ContainerStats measures one container.
func (s *Server) ContainerStats(ctx context.Context, req *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	if err := required("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.cfg.Sandboxes.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.cfg.Stats.Container(ctx, c)
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats measures the running containers that a filter lets through.
func (s *Server) ListContainerStats(ctx context.Context, req *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	st, err := s.listContainerStats(ctx, req.GetFilter())
	return &cri.ListContainerStatsResponse{Stats: st}, err
}

// StreamContainerStats is ListContainerStats in batches.
func (s *Server) StreamContainerStats(req *cri.StreamContainerStatsRequest, stream cri.RuntimeService_StreamContainerStatsServer) error {
	st, err := s.listContainerStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return batches(st, func(b []*cri.ContainerStats) error {
		return stream.Send(&cri.StreamContainerStatsResponse{ContainerStats: b})
	})
}

func (s *Server) listContainerStats(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	var running []*sandbox.Container
	for _, c := range s.containersMatching(f.GetId(), f.GetPodSandboxId(), f.GetLabelSelector()) {
		if c.State() == sandbox.Running {
			running = append(running, c)
		}
	}
	return measure(ctx, running, s.cfg.Stats.Container)
}

// PodSandboxStats measures one pod and its containers.
func (s *Server) PodSandboxStats(ctx context.Context, req *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	if err := required("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	p, err := s.cfg.Sandboxes.Pod(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := s.cfg.Stats.Pod(ctx, p, s.containersOf(p.ID))
	if err != nil {
		return nil, err
	}
	return &cri.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats measures the ready pods that a filter lets through.
func (s *Server) ListPodSandboxStats(ctx context.Context, req *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	st, err := s.listPodStats(ctx, req.GetFilter())
	return &cri.ListPodSandboxStatsResponse{Stats: st}, err
}

// StreamPodSandboxStats is ListPodSandboxStats in batches.
func (s *Server) StreamPodSandboxStats(req *cri.StreamPodSandboxStatsRequest, stream cri.RuntimeService_StreamPodSandboxStatsServer) error {
	st, err := s.listPodStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return batches(st, func(b []*cri.PodSandboxStats) error {
		return stream.Send(&cri.StreamPodSandboxStatsResponse{PodSandboxStats: b})
	})
}

func (s *Server) listPodStats(ctx context.Context, f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	pods, of := s.ready(s.podsMatching(f.GetId(), f.GetLabelSelector()))
	return measure(ctx, pods, func(ctx context.Context, p *sandbox.Pod) (*cri.PodSandboxStats, error) {
		return s.cfg.Stats.Pod(ctx, p, of[p.ID])
	})
}

// ListMetricDescriptors lists the metrics of ListPodSandboxMetrics. It never changes.
func (s *Server) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{Descriptors: s.cfg.Stats.Descriptors()}, nil
}

// ListPodSandboxMetrics returns the metrics of every ready pod.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	m, err := s.listMetrics(ctx)
	return &cri.ListPodSandboxMetricsResponse{PodMetrics: m}, err
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in batches.
func (s *Server) StreamPodSandboxMetrics(_ *cri.StreamPodSandboxMetricsRequest, stream cri.RuntimeService_StreamPodSandboxMetricsServer) error {
	m, err := s.listMetrics(stream.Context())
	if err != nil {
		return err
	}
	return batches(m, func(b []*cri.PodSandboxMetrics) error {
		return stream.Send(&cri.StreamPodSandboxMetricsResponse{PodSandboxMetrics: b})
	})
}

func (s *Server) listMetrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	pods, of := s.ready(s.cfg.Sandboxes.Pods())
	return measure(ctx, pods, func(ctx context.Context, p *sandbox.Pod) (*cri.PodSandboxMetrics, error) {
		return s.cfg.Stats.PodMetrics(ctx, p, of[p.ID])
	})
}

// ready returns the ready ones of pods, and the containers of every pod by its id.
func (s *Server) ready(pods []*sandbox.Pod) (ready []*sandbox.Pod, of map[string][]*sandbox.Container) {
	for _, p := range pods {
		if p.Ready {
			ready = append(ready, p)
		}
	}
	of = make(map[string][]*sandbox.Container)
	for _, c := range s.cfg.Sandboxes.Containers() {
		of[c.PodID] = append(of[c.PodID], c)
	}
	return ready, of
}

// measure samples each of the objects. One that went away meanwhile is left out.
func measure[O, R any](ctx context.Context, objects []O, sample func(context.Context, O) (R, error)) ([]R, error) {
	out := make([]R, 0, len(objects))
	for _, o := range objects {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, err := sample(ctx, o)
		if errs.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}
