// Package registry is a registry on loopback that keeps what it is given in memory: where tests have images from
// without a network.
package registry

import (
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Registry is a running registry.
type Registry struct {
	Address string     // host:port, plain HTTP
	Ended   chan error // why it serves no longer
	server  *http.Server
}

// Start starts a registry that listens on the address, such as "127.0.0.1:0".
func Start(listen string) (*Registry, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	r := &Registry{
		Address: l.Addr().String(), Ended: make(chan error, 1),
		server: &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: 5 * time.Second},
	}
	go func() { r.Ended <- r.server.Serve(l) }()
	return r, nil
}

// Close ends it.
func (r *Registry) Close() error { return r.server.Close() }
