package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// requestMetrics counts calls by method and code.
type requestMetrics struct {
	total    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
	panics   prometheus.Counter
}

func newRequestMetrics(reg prometheus.Registerer) *requestMetrics {
	m := &requestMetrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cri_server_requests_total", Help: "CRI calls that ended, by method and gRPC code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cri_server_request_duration_seconds", Help: "How long CRI calls took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18), // 0.5 ms to 65 s
		}, []string{"method"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cri_server_requests_in_flight", Help: "CRI calls being answered.",
		}, []string{"method"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cri_server_panics_total", Help: "Panics caught while answering a CRI call; each is a bug.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.total, m.seconds, m.inFlight, m.panics)
	}
	return m
}

// begin counts a call in; what it returns counts it out.
func (m *requestMetrics) begin(method string) func(codes.Code) time.Duration {
	start := time.Now()
	m.inFlight.WithLabelValues(method).Inc()
	return func(code codes.Code) time.Duration {
		took := time.Since(start)
		m.inFlight.WithLabelValues(method).Dec()
		m.total.WithLabelValues(method, code.String()).Inc()
		m.seconds.WithLabelValues(method).Observe(took.Seconds())
		return took
	}
}
