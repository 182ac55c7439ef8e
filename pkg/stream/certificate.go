package stream

import (
	"crypto/tls"
	"net"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/pkg/errs"
)

// secure makes l speak TLS with the certificate and key in the two files; none leaves it as it is.
func secure(l net.Listener, certFile, keyFile string) (net.Listener, error) {
	switch {
	case certFile == "" && keyFile == "":
		return l, nil
	case keyFile == "":
		return nil, errs.New(errs.Invalid, "stream.tls_cert (%s): it needs its key. Name that as stream.tls_key", certFile)
	case certFile == "":
		return nil, errs.New(errs.Invalid, "stream.tls_key (%s): it needs its certificate. Name that as stream.tls_cert", keyFile)
	}
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if err := c.load(); err != nil {
		return nil, err
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"}, // HTTP/2 has no upgrade to SPDY or WebSocket
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.current(), nil
		},
	}), nil
}

// certificate is a pair of files that somebody may renew.
type certificate struct {
	certFile, keyFile string

	mu       sync.Mutex
	pair     *tls.Certificate
	modified [2]time.Time
}

func (c *certificate) load() error {
	var modified [2]time.Time
	for i, file := range []string{c.certFile, c.keyFile} {
		st, err := os.Stat(file)
		if err != nil {
			return errs.New(errs.Invalid, "%s: %w", [2]string{"stream.tls_cert", "stream.tls_key"}[i], err)
		}
		modified[i] = st.ModTime()
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return errs.New(errs.Invalid, "stream.tls_cert (%s) and stream.tls_key (%s): %w", c.certFile, c.keyFile, err)
	}
	c.pair, c.modified = &pair, modified
	return nil
}

// current is the pair as the files have it; the last good one where they have none.
func (c *certificate) current() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, file := range []string{c.certFile, c.keyFile} {
		if st, err := os.Stat(file); err != nil || st.ModTime().Equal(c.modified[i]) {
			continue
		}
		if err := c.load(); err != nil {
			klog.ErrorS(err, "Kept the former certificate of the streaming server")
		}
		break
	}
	return c.pair
}
