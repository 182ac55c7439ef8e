package serve

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// debugServer serves metrics and profiles. The zero value is one that is off.
type debugServer struct {
	http     *http.Server
	listener net.Listener
}

// serveDebug serves on addr from now on, unless that is "".
func serveDebug(addr string, reg *prometheus.Registry) (*debugServer, error) {
	if addr == "" {
		return &debugServer{}, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics and profiles: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s := &debugServer{http: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, listener: l}
	go func() {
		if err := s.http.Serve(l); err != http.ErrServerClosed {
			klog.ErrorS(err, "Serving metrics failed")
		}
	}()
	return s, nil
}

func (s *debugServer) addr() string {
	if s.listener == nil {
		return "off"
	}
	return s.listener.Addr().String()
}

// Close ends serving.
func (s *debugServer) Close() error {
	if s.http == nil {
		return nil
	}
	return s.http.Close()
}
