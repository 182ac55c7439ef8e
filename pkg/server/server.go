// Package server answers CRI calls: validate, call, convert.
//
// It owns what a caller on the socket sees: gRPC codes, the request log and the request metrics, all three
// in one interceptor. A method of the two services checks the shape of its request, makes one call of a
// lower package and converts the answer; what a field means is decided below.
package server

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/server/admin"
)

// Name is the runtime name of the Version call.
const Name = "cri-server"

// MaxMessage is the largest message in either direction: what a kubelet's client accepts.
const MaxMessage = 16 << 20

// Config is what a Server is made of. All interfaces are required.
type Config struct {
	Sandboxes Sandboxes
	Images    Images
	Networks  Networks
	Stats     Stats
	Streams   Streams

	Version  string   // semantic version of this build, without a leading v
	Handlers []string // names of runtime handlers beside the default one, which is ""
	Features Features
	Systemd  bool // the cgroup driver is systemd
	// Info gives the values of a verbose Status, each of which is encoded as JSON. May be nil.
	Info func() map[string]any
	// Spec reads the OCI spec of a container, as JSON, for a verbose status; an error leaves it out. May be nil.
	Spec func(c *sandbox.Container) ([]byte, error)
	// Admin answers the operator's command line; nil leaves its service out.
	Admin admin.Service
	// Metrics is where the request metrics are registered; nil registers them nowhere.
	Metrics prometheus.Registerer
}

// Features are the optional parts of the CRI that hold on this machine.
type Features struct {
	UserNamespaces           bool // user namespaces with idmapped mounts
	RecursiveReadOnlyMounts  bool
	SupplementalGroupsPolicy bool
	UserNamespacesHostNet    bool
	MountOptions             bool
}

// Server serves the RuntimeService and the ImageService.
type Server struct {
	cri.UnimplementedRuntimeServiceServer // CheckpointContainer, CheckpointPod, RestorePod
	cri.UnimplementedImageServiceServer

	cfg     Config
	grpc    *grpc.Server
	metrics *requestMetrics
	done    chan struct{} // closed when the server stops: ends the calls that never end
	stop    sync.Once
	senders sync.WaitGroup // goroutines that write event streams
}

var (
	_ cri.RuntimeServiceServer = (*Server)(nil)
	_ cri.ImageServiceServer   = (*Server)(nil)
)

// New returns a server that answers nothing until Serve is called.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, metrics: newRequestMetrics(cfg.Metrics), done: make(chan struct{})}
	s.grpc = grpc.NewServer(
		grpc.Creds(newWatching()),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.streaming),
	)
	cri.RegisterRuntimeServiceServer(s.grpc, s)
	cri.RegisterImageServiceServer(s.grpc, s)
	if cfg.Admin != nil {
		admin.Register(s.grpc, cfg.Admin)
	}
	return s
}

// Serve answers calls on l until Stop, and closes l. It returns nil after Stop.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(l)
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Stop takes no new calls, ends the event streams, and waits for the other calls until ctx ends; then it
// cuts them off. It may be called more than once.
func (s *Server) Stop(ctx context.Context) {
	s.stop.Do(func() { close(s.done) })
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.grpc.GracefulStop()
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		s.grpc.Stop()
		<-stopped
	}
	s.senders.Wait()
}

// seconds converts a count of seconds of a request, and clamps what does not fit.
func seconds(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(n, most)) * time.Second
}
