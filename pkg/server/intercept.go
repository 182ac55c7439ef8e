package server

import (
	"context"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// unary is the door of every call with one answer: log values, metrics, recovery, codes.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	log := klog.FromContext(ctx).WithValues(append([]any{"method", path.Base(info.FullMethod)}, subject(req)...)...)
	end := s.metrics.begin(path.Base(info.FullMethod))
	err = s.guard(log, info.FullMethod, func() (e error) {
		resp, e = handler(klog.NewContext(withResets(ctx), log), req)
		return e
	})
	finish(log, info.FullMethod, end(status.Code(err)), err)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// streaming is unary's counterpart for calls that answer more than once.
func (s *Server) streaming(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	log := klog.FromContext(stream.Context()).WithValues("method", path.Base(info.FullMethod))
	end := s.metrics.begin(path.Base(info.FullMethod))
	err := s.guard(log, info.FullMethod, func() error { return handler(srv, stream) })
	finish(log, info.FullMethod, end(status.Code(err)), err)
	return err
}

// guard runs call and gives its error a code. A panic becomes Internal and names the method, so that one
// bad request does not take the containers' only manager down.
func (s *Server) guard(log klog.Logger, method string, call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Inc()
			log.Error(nil, "Recovered from a panic", "panic", p, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: internal error: %v. This is a bug; the server's log has the stack.", path.Base(method), p)
		}
	}()
	return toStatus(method, call())
}

// finish writes the line of the request log: changes at verbosity 2, questions at 4, failures of changes
// always.
func finish(log klog.Logger, method string, took time.Duration, err error) {
	question := readOnly(path.Base(method))
	switch code := status.Code(err); {
	case err == nil && question:
		log.V(4).Info("Answered", "took", took)
	case err == nil:
		log.V(2).Info("Done", "took", took)
	case question, code == codes.Canceled, code == codes.Unimplemented:
		log.V(2).Info("Failed", "took", took, "code", code, "err", err)
	default:
		log.Error(err, "Failed", "took", took, "code", code)
	}
}

// readOnly reports whether a method changes nothing.
func readOnly(method string) bool {
	for _, p := range []string{"List", "Stream", "Version", "GetContainerEvents", "ImageFsInfo", "RuntimeConfig", "Check"} {
		if strings.HasPrefix(method, p) && !strings.HasPrefix(method, "Checkpoint") {
			return true
		}
	}
	return strings.HasSuffix(method, "Status") || strings.HasSuffix(method, "Stats")
}

// subject picks the names out of a request that the log shows: never the request itself, which carries
// environments and credentials.
func subject(req any) (kv []any) {
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		kv = append(kv, "pod", r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		kv = append(kv, "container", r.GetContainerId())
	}
	if r, ok := req.(interface{ GetImage() *cri.ImageSpec }); ok {
		kv = append(kv, "image", r.GetImage().GetImage())
	}
	switch r := req.(type) {
	case *cri.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		kv = append(kv, "podName", m.GetName(), "podNamespace", m.GetNamespace(), "podUID", m.GetUid(), "attempt", m.GetAttempt())
	case *cri.CreateContainerRequest:
		m := r.GetConfig().GetMetadata()
		kv = append(kv, "name", m.GetName(), "attempt", m.GetAttempt(), "image", r.GetConfig().GetImage().GetImage())
	}
	return kv
}
