package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// writePair writes a new certificate and its key, and returns who may trust it.
func writePair(t *testing.T, certFile, keyFile string, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"node.example"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool.AppendCertsFromPEM(cert)
	at := time.Unix(1000+serial, 0) // the clock of a file system may be coarse
	for file, b := range map[string][]byte{certFile: cert, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return pool
}

func TestTLS(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	pool := writePair(t, cert, key, 1)
	f := newFake()
	s := start(t, f, func(c *Config) { c.TLSCert, c.TLSKey = cert, key })
	say := func(pool *x509.CertPool) (string, error) {
		url := execURL(t, s, &cri.ExecRequest{Stdout: true})
		if !strings.HasPrefix(url, "https://") {
			t.Fatal(url)
		}
		transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "node.example"}}
		defer transport.CloseIdleConnections()
		c, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{Subprotocols: []string{"v5.channel.k8s.io"}, HTTPClient: &http.Client{Transport: transport}})
		if err != nil {
			return "", err
		}
		defer c.CloseNow()
		for {
			_, b, err := c.Read(t.Context())
			if err != nil || len(b) > 1 {
				return string(b), err
			}
		}
	}
	if got, err := say(pool); err != nil || got != "\x01hello" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := say(nil); err == nil {
		t.Error("the certificate is another")
	}
	renewed := writePair(t, cert, key, 2)
	if _, err := say(renewed); err != nil {
		t.Errorf("a renewed certificate: %v", err)
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := say(renewed); err != nil {
		t.Errorf("half a renewal: %v", err)
	}
	// A client that goes away is noticed below TLS, too.
	url := execURL(t, s, &cri.ExecRequest{Cmd: []string{"wait"}, Stdin: true, Stdout: true})
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: renewed, ServerName: "node.example"}}
	c, _, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{Subprotocols: []string{"v5.channel.k8s.io"}, HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	<-f.started
	_ = c.CloseNow()
	if err := <-f.ended; err == nil {
		t.Error("the session outlives its client")
	}
}

func TestTLSRefused(t *testing.T) {
	dir := t.TempDir()
	cert, key, other := filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "other")
	writePair(t, cert, other, 1)
	writePair(t, cert, key, 2)
	for name, c := range map[string]struct {
		cfg   Config
		words string
	}{
		"no key":          {Config{TLSCert: cert}, "stream.tls_key"},
		"no certificate":  {Config{TLSKey: key}, "stream.tls_cert"},
		"absent key":      {Config{TLSCert: cert, TLSKey: dir + "/none"}, dir + "/none"},
		"absent cert":     {Config{TLSCert: dir + "/none", TLSKey: key}, dir + "/none"},
		"another's key":   {Config{TLSCert: cert, TLSKey: other}, other},
		"no certificates": {Config{TLSCert: key, TLSKey: key}, key},
	} {
		_, err := Listen(c.cfg, newFake())
		if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
