// Package manifest reads manifests, indexes and image configs, which are hostile text, and picks what this
// machine can run.
//
// A document is one thing: either a manifest or an index, of the type it is served as. Whatever is
// ambiguous, of the wrong size or shape, foreign or unknown is refused with errs.Invalid, or
// errs.Unsupported where it is well-formed but of a kind that this build does not run.
package manifest

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image/internal/reference"
)

// The limits on what a registry may send. A manifest is at most as large as registries themselves take.
const (
	MaxManifest = 4 << 20
	MaxConfig   = 8 << 20
	MaxLayers   = 500 // the kernel stacks at most 500 lower directories
	maxBlob     = 1 << 40
)

// The media types of Docker schema 2, beside those of OCI.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1"
)

// Accept are the types to ask a registry for.
var Accept = []string{strings.Join([]string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest, "*/*;q=0.1"}, ", ")}

// layerTypes are the layers that are unpacked.
var layerTypes = map[string]bool{
	ocispec.MediaTypeImageLayer:                                 true,
	ocispec.MediaTypeImageLayerGzip:                             true,
	ocispec.MediaTypeImageLayerZstd:                             true,
	"application/vnd.docker.image.rootfs.diff.tar":              true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":         true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":         true,
	"application/vnd.docker.image.rootfs.diff.tar+gzip":         true,
	"application/vnd.docker.image.rootfs.diff.tar.uncompressed": true,
}

var foreignTypes = map[string]bool{
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":         true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
}

// Document is a parsed document: exactly one of the two is set.
type Document struct {
	Manifest *ocispec.Manifest
	Index    *ocispec.Index
}

// probe shows what a document holds before it is believed to be anything.
type probe struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
	History       json.RawMessage `json:"history"`
}

// Parse reads a document served as mediaType; "" and the generic types leave the word to the document.
func Parse(body []byte, mediaType string) (*Document, error) {
	if len(body) > MaxManifest {
		return nil, errs.New(errs.Invalid, "manifest: larger than %d bytes", MaxManifest)
	}
	var p probe
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, errs.New(errs.Invalid, "manifest: not JSON: %w", err)
	}
	kind, err := p.kind(mediaType)
	if err != nil {
		return nil, err
	}
	var doc Document
	if kind == isIndex {
		doc.Index = new(ocispec.Index)
		if err := json.Unmarshal(body, doc.Index); err != nil {
			return nil, errs.New(errs.Invalid, "index: %w", err)
		}
		return &doc, checkIndex(doc.Index)
	}
	doc.Manifest = new(ocispec.Manifest)
	if err := json.Unmarshal(body, doc.Manifest); err != nil {
		return nil, errs.New(errs.Invalid, "manifest: %w", err)
	}
	return &doc, checkManifest(doc.Manifest)
}

type kind uint8

const (
	isManifest kind = iota + 1
	isIndex
)

var kinds = map[string]kind{
	ocispec.MediaTypeImageManifest: isManifest, dockerManifest: isManifest,
	ocispec.MediaTypeImageIndex: isIndex, dockerList: isIndex,
}

// kind decides what the document is; everything that could make two readers disagree is refused
// (CVE-2021-41190).
func (p *probe) kind(served string) (kind, error) {
	has := func(m json.RawMessage) bool { return len(m) > 0 && string(m) != "null" }
	switch {
	case p.SchemaVersion == 1 || has(p.FSLayers) || strings.HasPrefix(served, dockerSchema1):
		return 0, errs.New(errs.Unsupported, "manifest: Docker schema 1 was given up by registries and runtimes alike. Push the image again with a current tool")
	case p.SchemaVersion != 2:
		return 0, errs.New(errs.Invalid, "manifest: schemaVersion is %d, want 2", p.SchemaVersion)
	case has(p.Manifests) && (has(p.Layers) || has(p.Config)):
		return 0, errs.New(errs.Invalid, "manifest: the document is a manifest and an index at once")
	case !has(p.Manifests) && !has(p.Config):
		return 0, errs.New(errs.Invalid, "manifest: the document has neither manifests nor a config")
	}
	shape := isManifest
	if has(p.Manifests) {
		shape = isIndex
	}
	if generic(served) {
		served = ""
	}
	if served != "" && p.MediaType != "" && served != p.MediaType {
		return 0, errs.New(errs.Invalid, "manifest: served as %q, calls itself %q", clip(served), clip(p.MediaType))
	}
	for _, mt := range []string{served, p.MediaType} {
		if mt == "" {
			continue
		}
		switch k, known := kinds[mt]; {
		case !known:
			return 0, errs.New(errs.Unsupported, "manifest: media type %q is not that of an image", clip(mt))
		case k != shape:
			return 0, errs.New(errs.Invalid, "manifest: the document does not have the shape of its media type %q", mt)
		}
	}
	return shape, nil
}

// generic types say nothing about a document.
func generic(mt string) bool {
	switch mt {
	case "", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream":
		return true
	}
	return false
}

func checkIndex(x *ocispec.Index) error {
	for i := range x.Manifests {
		if err := checkDescriptor("manifest of the index", &x.Manifests[i], MaxManifest); err != nil {
			return err
		}
	}
	return nil
}

func checkManifest(m *ocispec.Manifest) error {
	if err := checkDescriptor("config", &m.Config, MaxConfig); err != nil {
		return err
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig, "application/octet-stream", "":
	default:
		return errs.New(errs.Unsupported, "manifest: its config is of type %q: this is an artifact, not an image", clip(m.Config.MediaType))
	}
	if len(m.Layers) > MaxLayers {
		return errs.New(errs.Invalid, "manifest: %d layers, the kernel stacks at most %d", len(m.Layers), MaxLayers)
	}
	for i := range m.Layers {
		l := &m.Layers[i]
		if err := checkDescriptor("layer", l, maxBlob); err != nil {
			return err
		}
		switch {
		case foreignTypes[l.MediaType]:
			return errs.New(errs.Unsupported, "layer %s: %q is a foreign layer, which only its vendor may hand out", l.Digest, l.MediaType)
		case !layerTypes[l.MediaType]:
			return errs.New(errs.Unsupported, "layer %s: unknown media type %q", l.Digest, clip(l.MediaType))
		}
	}
	return nil
}

func checkDescriptor(what string, d *ocispec.Descriptor, limit int64) error {
	switch {
	case !reference.SafeDigest(string(d.Digest)):
		return errs.New(errs.Invalid, "%s: digest %q is not sha256:<64 hexadecimal digits> or sha512:<128>", what, clip(string(d.Digest)))
	case d.Size < 0 || d.Size > limit:
		return errs.New(errs.Invalid, "%s %s: size %d is not within 0 and %d", what, d.Digest, d.Size, limit)
	}
	return nil
}

// Config is what this project reads of an image config.
type Config struct {
	ocispec.Image
	ChainIDs []string // of the layers, lowest first
}

// ParseConfig reads an image config and holds it to its manifest.
func ParseConfig(body []byte, m *ocispec.Manifest) (*Config, error) {
	if len(body) > MaxConfig {
		return nil, errs.New(errs.Invalid, "image config: larger than %d bytes", MaxConfig)
	}
	var c Config
	if err := json.Unmarshal(body, &c.Image); err != nil {
		return nil, errs.New(errs.Invalid, "image config %s: not JSON: %w", m.Config.Digest, err)
	}
	if t := c.RootFS.Type; t != "layers" && (t != "" || len(m.Layers) > 0) {
		return nil, errs.New(errs.Invalid, "image config %s: rootfs type is %q, want layers", m.Config.Digest, clip(t))
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, errs.New(errs.Invalid, "image config %s: %d diff_ids for %d layers", m.Config.Digest, len(c.RootFS.DiffIDs), len(m.Layers))
	}
	for i, d := range c.RootFS.DiffIDs {
		if !reference.SafeDigest(string(d)) {
			return nil, errs.New(errs.Invalid, "image config %s: diff id %q is not a sha256 or sha512 digest", m.Config.Digest, clip(string(d)))
		}
		chain := string(d)
		if i > 0 {
			chain = string(digest.FromString(c.ChainIDs[i-1] + " " + chain))
		}
		c.ChainIDs = append(c.ChainIDs, chain)
	}
	return &c, nil
}

// ErrNoPlatform is wrapped when nothing of an index fits this machine.
var ErrNoPlatform = errors.New("no image for this platform")

func clip(s string) string {
	if len(s) > 150 {
		return s[:150] + "…"
	}
	return s
}
