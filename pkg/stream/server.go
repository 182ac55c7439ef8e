// Package stream serves exec, attach and port-forward behind one-time URLs.
//
// A CRI call leaves a request here and hands its caller a URL with a 256-bit token. Whoever presents the
// token first, within a minute, is connected: by SPDY/3.1, or by WebSocket (v5.channel.k8s.io and the older
// channel protocols, and SPDY tunnelled through a WebSocket for port-forward). The token is the only
// credential, so Host and Origin are not looked at: requests arrive through the proxies of kubelets and API
// servers, which keep those of their own client.
//
// Every connection has a context that ends when the client goes away, when nothing moved for the idle
// timeout, or when the server closes; everything that serves the connection ends with it.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Config is how a Server serves. The zero value is a server on a free port of 127.0.0.1.
type Config struct {
	Addr        string        // host:port to listen on; "" is 127.0.0.1:0
	BaseURL     string        // what URLs begin with, where that is not http://Addr, or https:// with TLS
	TLSCert     string        // file of the PEM certificate chain; with TLSKey, streams are served by TLS
	TLSKey      string        // file of its PEM key
	TTL         time.Duration // how long a URL may wait for its client; 0 is one minute
	IdleTimeout time.Duration // how long a connection may be silent; 0 is four hours
	CreateTime  time.Duration // how long a SPDY client may take to open its streams; 0 is 30 seconds
	MaxPending  int           // how many URLs may wait at once; 0 is 1000
}

// Server hands out URLs and serves them.
type Server struct {
	cfg       Config
	rt        Runtime
	base      *url.URL
	listener  net.Listener
	http      *http.Server
	tokens    *tokens
	ctx       context.Context //nolint:containedctx // of the server's life: what every connection's derives from
	stop      context.CancelFunc
	sessions  sync.WaitGroup
	hangup    time.Duration // how long a client may be gone before a connection that cannot be read notices
	heartbeat time.Duration // how often a client that could have left unnoticed is sent something
	linger    time.Duration // how long a client may take to close a SPDY connection whose work is done
}

// Listen returns a server that is bound to its address. Serve serves it, Close frees it.
func Listen(cfg Config, rt Runtime) (*Server, error) {
	cfg = cfg.withDefaults()
	l, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen for streams on %s: %w", cfg.Addr, err)
	}
	base := &url.URL{Scheme: "http", Host: l.Addr().String()}
	if cfg.TLSCert != "" {
		base.Scheme = "https"
	}
	secured, err := secure(l, cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		l.Close()
		return nil, err
	}
	if cfg.BaseURL != "" {
		if base, err = url.Parse(cfg.BaseURL); err != nil {
			l.Close()
			return nil, errs.New(errs.Invalid, "stream base URL (%s): %w", cfg.BaseURL, err)
		}
	}
	s := &Server{cfg: cfg, rt: rt, base: base, listener: secured, tokens: newTokens(cfg.TTL, cfg.MaxPending),
		hangup: 3 * time.Second, heartbeat: 15 * time.Second, linger: 2 * time.Second}
	s.ctx, s.stop = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{token}", serve(s, s.exec))
	mux.HandleFunc("/attach/{token}", serve(s, s.attach))
	mux.HandleFunc("/portforward/{token}", serve(s, s.portForward))
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, network(c))
		},
	}
	return s, nil
}

func (c Config) withDefaults() Config {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	if c.TTL == 0 {
		c.TTL = time.Minute
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 4 * time.Hour
	}
	if c.CreateTime == 0 {
		c.CreateTime = 30 * time.Second
	}
	if c.MaxPending == 0 {
		c.MaxPending = 1000
	}
	return c
}

// network is the network's connection below c, which the kernel knows.
func network(c net.Conn) net.Conn {
	if t, ok := c.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c
}

// connKey finds the network connection of a request in its context.
type connKey struct{}

// Serve answers until Close, and then returns nil.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close ends every connection and waits until nothing of them is left. It may be called more than once.
func (s *Server) Close() error {
	s.stop()
	err := s.http.Close()
	s.listener.Close() // where Serve was never called
	s.sessions.Wait()
	return err
}

// Addr is the address that is listened on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// GetExec returns a URL for a checked request.
func (s *Server) GetExec(req *cri.ExecRequest) (*cri.ExecResponse, error) {
	u, err := s.url("exec", req)
	return &cri.ExecResponse{Url: u}, err
}

// GetAttach returns a URL for a checked request.
func (s *Server) GetAttach(req *cri.AttachRequest) (*cri.AttachResponse, error) {
	u, err := s.url("attach", req)
	return &cri.AttachResponse{Url: u}, err
}

// GetPortForward returns a URL for a checked request. With ports in the request it reaches only those.
func (s *Server) GetPortForward(req *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	u, err := s.url("portforward", req)
	return &cri.PortForwardResponse{Url: u}, err
}

func (s *Server) url(verb string, req any) (string, error) {
	token, err := s.tokens.add(req)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(verb, token).String(), nil
}

// serve is the door of the three verbs. The token is used up by the first request that can be upgraded, so
// that a client whose protocol is refused may try another on the same URL.
func serve[R any](s *Server, do func(http.ResponseWriter, *http.Request, R)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodPost {
			w.Header().Set("Allow", "GET, POST")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		token := r.PathValue("token")
		req, ok := s.tokens.peek(token)
		if _, mine := req.(R); !ok || !mine {
			http.NotFound(w, r)
			return
		}
		if err := checkUpgrade(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if req, ok = s.tokens.take(token); !ok {
			http.NotFound(w, r)
			return
		}
		s.sessions.Add(1)
		defer s.sessions.Done()
		if s.ctx.Err() != nil {
			http.Error(w, "the server is stopping", http.StatusServiceUnavailable)
			return
		}
		do(w, r, req.(R)) //nolint:forcetypeassert // checked above
	}
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request, req *cri.ExecRequest) {
	log := klog.Background().WithValues("stream", "exec", "container", req.GetContainerId())
	sess, err := s.open(w, r, want{req.GetStdin(), req.GetStdout(), req.GetStderr(), req.GetTty()})
	if err != nil {
		log.V(2).Info("Refused a stream", "err", err)
		return
	}
	exit, err := s.rt.Exec(klog.NewContext(sess.ctx, log), req.GetContainerId(), sess.exec(req.GetCmd()))
	if err != nil {
		err = fmt.Errorf("error executing command in container: %w", err)
	}
	log.V(2).Info("Stream ended", "exit", exit, "err", err)
	sess.finish(result(exit, err))
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request, req *cri.AttachRequest) {
	log := klog.Background().WithValues("stream", "attach", "container", req.GetContainerId())
	sess, err := s.open(w, r, want{req.GetStdin(), req.GetStdout(), req.GetStderr(), req.GetTty()})
	if err != nil {
		log.V(2).Info("Refused a stream", "err", err)
		return
	}
	err = s.rt.Attach(klog.NewContext(sess.ctx, log), req.GetContainerId(), sess.attach())
	if err != nil {
		err = fmt.Errorf("error attaching to container: %w", err)
	}
	log.V(2).Info("Stream ended", "err", err)
	sess.finish(result(0, err))
}
