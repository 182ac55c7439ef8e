// Package imagetest builds small images, honest and hostile, and serves them on loopback.
package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Epoch is the time of entries that name none.
var Epoch = time.Unix(1700000000, 0)

// File is a regular file.
func File(name, content string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: Epoch}, content}
}

// Dir is a directory.
func Dir(name string, mode int64) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: Epoch}, ""}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: Epoch}, ""}
}

// Link is a hard link.
func Link(name, target string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: Epoch}, ""}
}

// Special is a FIFO or a device.
func Special(name string, typ byte, major, minor int64) Entry {
	return Entry{tar.Header{Typeflag: typ, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor, ModTime: Epoch}, ""}
}

// Entry is one entry of a layer.
type Entry struct {
	tar.Header
	Content string
}

// Tar writes the entries.
func Tar(entries ...Entry) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			panic(err)
		}
		if _, err := w.Write([]byte(e.Content)); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// Layer is a layer's tar and how it is packed: "", "gzip" or "zstd".
type Layer struct {
	Tar  []byte
	Pack string
}

func (l Layer) pack() (blob []byte, mediaType string) {
	var buf bytes.Buffer
	switch l.Pack {
	case "gzip":
		w := gzip.NewWriter(&buf)
		_, _ = w.Write(l.Tar)
		w.Close()
		return buf.Bytes(), ocispec.MediaTypeImageLayerGzip
	case "zstd":
		w, _ := zstd.NewWriter(&buf)
		_, _ = w.Write(l.Tar)
		w.Close()
		return buf.Bytes(), ocispec.MediaTypeImageLayerZstd
	}
	return l.Tar, ocispec.MediaTypeImageLayer
}

// Registry serves what it is given, read-only, over plain HTTP on loopback.
type Registry struct {
	*httptest.Server
	mu        sync.Mutex
	Blobs     map[string][]byte // by digest
	Manifests map[string]Served // by "repo:tag" and "repo@digest"
	Requests  []*http.Request
	// Intercept, when set, may answer a request itself and return true.
	Intercept func(http.ResponseWriter, *http.Request) bool
}

// Served is a document and the type it is served as.
type Served struct {
	Body      []byte
	MediaType string
}

// NewRegistry starts one, closed with the test. wrap, when not nil, goes around its handler.
func NewRegistry(t testing.TB) *Registry {
	r := &Registry{Blobs: map[string][]byte{}, Manifests: map[string]Served{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

// Host is host:port.
func (r *Registry) Host() string { return strings.TrimPrefix(r.URL, "http://") }

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.Requests = append(r.Requests, req.Clone(req.Context()))
	intercept := r.Intercept
	r.mu.Unlock()
	if intercept != nil && intercept(w, req) {
		return
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	r.mu.Lock()
	defer r.mu.Unlock()
	if repo, name, ok := cutLast(path, "/manifests/"); ok {
		sep := ":"
		if strings.Contains(name, ":") {
			sep = "@"
		}
		if m, ok := r.Manifests[repo+sep+name]; ok {
			w.Header().Set("Content-Type", m.MediaType)
			w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(m.Body)))
			_, _ = w.Write(m.Body)
			return
		}
	}
	if _, d, ok := cutLast(path, "/blobs/"); ok {
		if b, ok := r.Blobs[d]; ok {
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(b))
			return
		}
	}
	if path == "" || req.URL.Path == "/v2/" {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	_, _ = w.Write([]byte(`{"errors":[{"code":"NAME_UNKNOWN","message":"it is not here"}]}`))
}

// Count tells how many requests had a path that contains s.
func (r *Registry) Count(s string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, q := range r.Requests {
		if strings.Contains(q.URL.Path, s) {
			n++
		}
	}
	return n
}

func cutLast(s, sep string) (string, string, bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+len(sep):], true
}

// Image is what Push makes a manifest of.
type Image struct {
	Layers []Layer
	Config ocispec.ImageConfig
	Arch   string // "amd64" when empty
	Edit   func(m *ocispec.Manifest, c *ocispec.Image)
}

// AddBlob stores a blob and returns its descriptor.
func (r *Registry) AddBlob(b []byte, mediaType string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Blobs[string(d.Digest)] = b
	return d
}

// AddManifest stores a document under its digest and, when tag is not "", under the tag.
func (r *Registry) AddManifest(repo, tag string, doc any, mediaType string) ocispec.Descriptor {
	body, ok := doc.([]byte)
	if !ok {
		body, _ = json.Marshal(doc)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Manifests[repo+"@"+string(d.Digest)] = Served{body, mediaType}
	if tag != "" {
		r.Manifests[repo+":"+tag] = Served{body, mediaType}
	}
	return d
}

// Push stores an image under repo:tag and returns the descriptors of its manifest and config.
func (r *Registry) Push(repo, tag string, img Image) (man, conf ocispec.Descriptor) {
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: img.Arch}, Config: img.Config, RootFS: ocispec.RootFS{Type: "layers"}}
	if c.Architecture == "" {
		c.Architecture = "amd64"
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range img.Layers {
		blob, mt := l.pack()
		m.Layers = append(m.Layers, r.AddBlob(blob, mt))
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l.Tar))
	}
	if m.Layers == nil {
		m.Layers = []ocispec.Descriptor{}
	}
	if img.Edit != nil {
		img.Edit(&m, &c)
	}
	body, _ := json.Marshal(c)
	conf = r.AddBlob(body, ocispec.MediaTypeImageConfig)
	if m.Config.Digest == "" {
		m.Config = conf
	}
	return r.AddManifest(repo, tag, m, m.MediaType), conf
}
