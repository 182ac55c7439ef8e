package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/image/internal/manifest"
	"github.com/cri-server/cri-server/pkg/image/internal/reference"
	"github.com/cri-server/cri-server/pkg/image/internal/registry"
	"github.com/cri-server/cri-server/pkg/store"
)

// pull is one pull under way.
type pull struct {
	s        *Store
	ref      reference.Reference
	opts     PullOptions
	progress func(Progress)

	src    *registry.Source
	docs   []document // the document asked for first, the manifest last
	man    *ocispec.Manifest
	body   []byte // of the config
	conf   *manifest.Config
	pinned []string
	dir    string // temporary directory
	stored map[string]int64
	mu     sync.Mutex  // of stored
	wrote  atomic.Bool // something that is not flushed yet
}

type document struct {
	digest string
	body   []byte
}

type step struct {
	name string
	do   func(*pull, context.Context) error
}

// pullSteps is the life of a pull. Each name is a fault point "PullImage/<name>", passed before the step.
var pullSteps = []step{
	{"hosts", (*pull).hosts},       // hosts.toml, credentials: nothing on the network, nothing on disk
	{"manifest", (*pull).manifest}, // the reference to a manifest for this platform
	{"config", (*pull).config},     // the image config, held to the manifest
	{"reserve", (*pull).reserve},   // what the image needs is kept from garbage collection; a temporary directory
	{"layers", (*pull).layers},     // every layer fetched, verified, unpacked and in its place
	{"blobs", (*pull).blobs},       // documents and config
	{"flush", (*pull).flush},       // all of it is on disk
	{"record", (*pull).record},     // the image is there
}

// finer are places within the steps where a crash leaves something else.
var finer = []string{"layers/unpacked", "layers/blob", "layers/layer", "record/written", "record/untagged"}

// PullSteps lists the fault points of Pull, for sweeps that die at each.
func PullSteps() []string {
	var out []string
	for _, s := range pullSteps {
		out = append(out, "PullImage/"+s.name)
	}
	for _, f := range finer {
		out = append(out, "PullImage/"+f)
	}
	return out
}

func at(name string) error { return fault.At("PullImage/" + name) }

// Pull fetches the image that ref names and returns its id, the digest of its config, which is the same
// from whatever registry it comes. Layers that are there are not fetched. Two calls for the same reference
// with the same credentials share one transfer. When it fails or ctx ends, nothing stays of it, and the
// tag means what it meant before.
//
// Errors: Invalid for a malformed reference and for an image that is not what it says (digests, sizes,
// hostile layers), NotFound where the registry does not have it, Unsupported for artifacts, foreign layers
// and Docker schema 1, Exhausted for a full disk; when the registry is away the kind is Unknown and the
// text begins with "RegistryUnavailable", which the kubelet looks for.
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (string, error) {
	r, err := reference.Parse(ref)
	if err == nil {
		err = s.writable()
	}
	if err != nil {
		return "", err
	}
	key := r.String() + " " + authKey(opts.Auth)
	return s.flights.do(ctx, key, opts.Progress, func(ctx context.Context, progress func(Progress)) (string, error) {
		p := &pull{s: s, ref: r, opts: opts, progress: progress, stored: map[string]int64{}}
		defer p.cleanup()
		for _, st := range pullSteps {
			if err := at(st.name); err != nil {
				return "", err
			}
			if err := st.do(p, ctx); err != nil {
				return "", kindOf(err)
			}
		}
		return p.id(), nil
	})
}

// kindOf gives a full disk its kind, wherever it was met.
func kindOf(err error) error {
	if errs.KindOf(err) == errs.Unknown && isFull(err) {
		return errs.New(errs.Exhausted, "%w. Free space below the image directory", err)
	}
	return err
}

// authKey tells credentials apart without keeping them.
func authKey(a *Auth) string {
	if a == nil {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", []string{a.Username, a.Password, a.Auth, a.ServerAddress, a.IdentityToken, a.RegistryToken}))
	return string(sum[:])
}

func (p *pull) id() string { return string(p.man.Config.Digest) }

func (p *pull) hosts(context.Context) error {
	var dirs []string
	for d := range strings.SplitSeq(p.s.cfg.CertsDir, ":") {
		if d != "" {
			dirs = append(dirs, d)
		}
	}
	hosts, err := registry.Lookup(dirs, p.s.cfg.Mirror, p.ref.Domain)
	if err != nil {
		return err
	}
	opts := registry.Options{Domain: p.ref.Domain, Repo: p.ref.Path, Hosts: hosts, AuthFiles: p.s.cfg.AuthFiles, Backoff: p.s.backoff,
		Stall: registry.Stall{Interval: p.s.cfg.StallInterval, Bytes: p.s.cfg.StallBytes}}
	if a := p.opts.Auth; a != nil {
		opts.Credentials = &registry.Credentials{Username: a.Username, Password: a.Password, Auth: a.Auth, ServerAddress: a.ServerAddress,
			IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	}
	p.src, err = p.s.pool.Open(opts)
	return err
}

const maxNesting = 3 // indexes in indexes

func (p *pull) manifest(ctx context.Context) error {
	doc, err := p.src.Manifest(ctx, p.ref.Object(), p.ref.Digest, -1, manifest.Accept, manifest.MaxManifest)
	if err != nil {
		return err
	}
	d := p.ref.Digest
	if d == "" {
		d = string(digest.FromBytes(doc.Body))
	}
	p.man, err = p.choose(ctx, document{d, doc.Body}, doc.MediaType, maxNesting)
	return err
}

// choose parses a document and goes down to the manifest for this platform.
func (p *pull) choose(ctx context.Context, d document, mediaType string, depth int) (*ocispec.Manifest, error) {
	doc, err := manifest.Parse(d.body, mediaType)
	if err != nil {
		return nil, err
	}
	mark := len(p.docs)
	p.docs = append(p.docs, d)
	if doc.Manifest != nil {
		return doc.Manifest, nil
	}
	if depth == 0 {
		return nil, errs.New(errs.Invalid, "index %s: indexes nest more than %d deep", d.digest, maxNesting)
	}
	var failed error
	for i, c := range p.s.platform.Candidates(doc.Index) {
		if i >= 8 {
			break
		}
		p.docs = p.docs[:mark+1]
		child, err := p.src.Manifest(ctx, string(c.Digest), string(c.Digest), c.Size, manifest.Accept, manifest.MaxManifest)
		if err != nil {
			return nil, err
		}
		mt := child.MediaType
		if c.MediaType != "" {
			mt = c.MediaType // what the index says, and its digest covers, is what counts
		}
		m, err := p.choose(ctx, document{string(c.Digest), child.Body}, mt, depth-1)
		if err == nil {
			if err = p.trial(ctx, m, c.Platform == nil); err == nil {
				return m, nil
			}
		}
		if !errors.Is(err, manifest.ErrNoPlatform) {
			return nil, err
		}
		failed = err
	}
	if failed != nil {
		return nil, failed
	}
	return nil, errs.New(errs.NotFound, "image %s: its index has nothing for %s: %w", p.ref, p.s.platform, manifest.ErrNoPlatform)
}

// trial asks the config of a manifest whose index entry names no platform.
func (p *pull) trial(ctx context.Context, m *ocispec.Manifest, ask bool) error {
	if !ask {
		return nil
	}
	body, err := p.src.Blob(ctx, string(m.Config.Digest), m.Config.Size, manifest.MaxConfig)
	if err != nil {
		return err
	}
	conf, err := manifest.ParseConfig(body, m)
	if err != nil {
		return err
	}
	return p.s.platform.Fits(&conf.Image)
}

func (p *pull) config(ctx context.Context) error {
	var err error
	if p.body, err = p.localBlob(string(p.man.Config.Digest)); err != nil || int64(len(p.body)) != p.man.Config.Size {
		if p.body, err = p.src.Blob(ctx, string(p.man.Config.Digest), p.man.Config.Size, manifest.MaxConfig); err != nil {
			return err
		}
	}
	if p.conf, err = manifest.ParseConfig(p.body, p.man); err != nil {
		return err
	}
	return p.s.platform.Fits(&p.conf.Image)
}

// localBlob reads a small blob that is in the store, held to its digest.
func (p *pull) localBlob(d string) ([]byte, error) {
	p.s.mu.RLock()
	size, ok := p.s.blobs[d]
	p.s.mu.RUnlock()
	if !ok || size > manifest.MaxConfig {
		return nil, errs.New(errs.NotFound, "blob %s", d)
	}
	body, err := os.ReadFile(p.s.blobPath(d)) //nolint:forbidigo // our own state directory
	if err != nil {
		return nil, err
	}
	v, err := registry.NewVerifier(d)
	if err != nil {
		return nil, err
	}
	_, _ = v.Write(body)
	if !v.Verified() {
		return nil, fmt.Errorf("blob %s is torn", d)
	}
	return body, nil
}

// reserve keeps what the image needs from being collected while the pull runs.
func (p *pull) reserve(context.Context) error {
	p.pinned = append(p.pinned, p.conf.ChainIDs...)
	for _, l := range p.man.Layers {
		p.pinned = append(p.pinned, string(l.Digest))
	}
	p.pinned = append(p.pinned, string(p.man.Config.Digest))
	for _, d := range p.docs {
		p.pinned = append(p.pinned, d.digest)
	}
	p.s.mu.Lock()
	for _, k := range p.pinned {
		p.s.pins[k]++
	}
	p.s.mu.Unlock()
	dir, err := os.MkdirTemp(p.s.path(tmpDir), "pull-")
	p.dir = dir
	return err
}

// cleanup gives back what the pull held. After a success it finds nothing to remove; after a failure
// nothing of the pull stays.
func (p *pull) cleanup() {
	if p.dir != "" {
		_ = p.s.trash.put(p.dir) // what cannot be moved is found by Open
	}
	if len(p.pinned) == 0 {
		return
	}
	p.s.change.Lock()
	defer p.s.change.Unlock()
	p.s.mu.Lock()
	for _, k := range p.pinned {
		if p.s.pins[k]--; p.s.pins[k] == 0 {
			delete(p.s.pins, k)
		}
	}
	p.s.mu.Unlock()
	_ = p.s.collect() // likewise
}

func (p *pull) blobs(context.Context) error {
	small := append([]document{{string(p.man.Config.Digest), p.body}}, p.docs...)
	for _, b := range small {
		p.s.mu.RLock()
		_, have := p.s.blobs[b.digest]
		p.s.mu.RUnlock()
		if have {
			if body, err := p.localBlob(b.digest); err == nil && len(body) == len(b.body) {
				p.stored[b.digest] = int64(len(b.body))
				continue
			}
		}
		p.wrote.Store(true)
		if err := store.WriteFile(p.s.blobPath(b.digest), b.body, 0o600, false); err != nil {
			return err
		}
		p.s.mu.Lock()
		p.s.blobs[b.digest] = int64(len(b.body))
		p.s.mu.Unlock()
		p.stored[b.digest] = int64(len(b.body))
	}
	return nil
}

// flush puts layers, blobs and their names on disk, once per pull: a record implies its bytes. What an
// older record of the image names is there already: pulling an image that has not changed costs no flush.
func (p *pull) flush(context.Context) error {
	p.s.mu.RLock()
	old := p.s.images[p.id()]
	flushed := old != nil
	for d := range p.stored {
		flushed = flushed && old.Blobs[d] > 0
	}
	p.s.mu.RUnlock()
	if flushed && !p.wrote.Load() {
		return nil
	}
	return p.s.syncer.sync(p.s.cfg.Root)
}

// record makes the image known. The new owner of a tag is written before the former gives it up: between
// the two, the higher sequence number says whose it is.
func (p *pull) record(context.Context) error {
	s := p.s
	s.change.Lock()
	defer s.change.Unlock()
	r, same := p.newRecord()
	if same {
		return at("record/written")
	}
	if err := imageSchema.Write(s.imagePath(r.ID), r, true); err != nil {
		return err
	}
	_ = os.Remove(s.imagePath(r.ID) + ".torn") // what this pull mends
	var former *record
	s.mu.Lock()
	for t := range r.Tags {
		if id := s.tags[t]; id != "" && id != r.ID {
			former = s.images[id].clone()
			delete(former.Tags, t)
			s.put(former)
		}
	}
	s.put(r)
	s.mu.Unlock()
	if err := at("record/written"); err != nil || former == nil {
		return err
	}
	// Should this fail, the sequence number still settles it.
	_ = imageSchema.Write(s.imagePath(former.ID), former, true)
	return at("record/untagged")
}

// newRecord is the record of the image with what this pull adds, and whether that is nothing. Caller holds
// change.
func (p *pull) newRecord() (r *record, same bool) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	r = &record{ID: p.id(), Blobs: maps.Clone(p.stored), Config: p.conf.Config}
	if p.conf.Created != nil {
		r.Created = *p.conf.Created
	}
	r.Size = uint64(p.man.Config.Size)
	for _, d := range p.docs {
		r.Size += uint64(len(d.body))
	}
	for i, l := range p.man.Layers {
		r.Size += uint64(l.Size)
		r.Layers = append(r.Layers, recordLayer{p.conf.ChainIDs[i], string(p.conf.RootFS.DiffIDs[i]), string(l.Digest)})
	}
	r.Tags = map[string]uint64{}
	old := s.images[r.ID]
	if old != nil {
		r.Tags, r.Digests = maps.Clone(old.Tags), slices.Clone(old.Digests)
		for d, size := range old.Blobs { // another manifest of the same image stays complete
			r.Blobs[d] = size
		}
	}
	if r.Tags == nil {
		r.Tags = map[string]uint64{}
	}
	if t := p.ref.String(); p.ref.Tag != "" && s.tags[t] != r.ID {
		s.seq++
		r.Tags[t] = s.seq
	}
	if d := p.ref.Name() + "@" + p.docs[0].digest; !slices.Contains(r.Digests, d) {
		r.Digests = append(r.Digests, d)
	}
	same = old != nil && r.Size == old.Size && maps.Equal(r.Blobs, old.Blobs) && maps.Equal(r.Tags, old.Tags) && len(r.Digests) == len(old.Digests)
	return r, same
}

func (p *pull) tmp(name string) string { return filepath.Join(p.dir, name) }
