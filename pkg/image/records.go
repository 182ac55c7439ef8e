package image

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-server/cri-server/pkg/image/internal/reference"
	"github.com/cri-server/cri-server/pkg/store"
)

var (
	imageSchema  = store.Schema{Kind: "image", Version: 1}
	layerSchema  = store.Schema{Kind: "layer", Version: 1}
	rootfsSchema = store.Schema{Kind: "rootfs", Version: 1}
	ownerSchema  = store.Schema{Kind: "image-owner", Version: 1}
)

// record is images/<hex>.json. It is written when all it names is on disk.
type record struct {
	ID      string              `json:"id"`
	Blobs   map[string]int64    `json:"blobs"` // digest -> size of what is stored: documents, config, layers
	Size    uint64              `json:"size"`  // of all blobs, stored or not
	Layers  []recordLayer       `json:"layers,omitempty"`
	Tags    map[string]uint64   `json:"tags,omitempty"`    // name:tag -> when, as a sequence number: the later of two records has it
	Digests []string            `json:"digests,omitempty"` // name@digest
	Created time.Time           `json:"created,omitzero"`
	Config  ocispec.ImageConfig `json:"config"`
}

type recordLayer struct {
	Chain  string `json:"chain"`
	DiffID string `json:"diffID"`
	Digest string `json:"digest"`
}

// layerRecord is layers/<hex>/layer.json.
type layerRecord struct {
	Chain  string `json:"chain"`
	DiffID string `json:"diffID"`
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
}

// rootfsRecord is rootfs/<container>/rootfs.json, written before the directories it speaks of.
type rootfsRecord struct {
	Container string   `json:"container"`
	Image     string   `json:"image"`
	Layers    []string `json:"layers"` // chain IDs, lowest first: kept while the container is, image or no image
	UID       uint32   `json:"uid"`
	GID       uint32   `json:"gid"`
}

// ownerRecord is owners/<owner>.json: the layers that mounted image volumes need.
type ownerRecord struct {
	Owner  string              `json:"owner"`
	Images map[string][]string `json:"images"` // id -> chain IDs
}

// hexOf is the part of a digest that names files.
func hexOf(digest string) string {
	_, h, _ := strings.Cut(digest, ":")
	return h
}

func (s *Store) imagePath(id string) string { return s.path(imagesDir, hexOf(id)+".json") }

func (s *Store) layerPath(chain string) string { return s.path(layersDir, hexOf(chain)) }

func (s *Store) blobPath(digest string) string {
	alg, h, _ := strings.Cut(digest, ":")
	return s.path(blobsDir, alg, h)
}

func (s *Store) ownerPath(owner string) string { return s.path(ownersDir, owner+".json") }

// lowerDir names a layer's files relative to the root of the store.
func lowerDir(chain string) string { return filepath.Join(layersDir, hexOf(chain), "diff") }

func (r *record) chains() []string {
	out := make([]string, len(r.Layers))
	for i, l := range r.Layers {
		out[i] = l.Chain
	}
	return out
}

func (r *record) clone() *record {
	c := *r
	c.Tags = maps.Clone(r.Tags)
	c.Digests = slices.Clone(r.Digests)
	return &c
}

// show makes the snapshot that callers get.
func (s *Store) show(r *record) *Image {
	img := &Image{ID: r.ID, Size: r.Size, Created: r.Created, Config: r.Config, Layers: r.chains(),
		RepoTags: slices.Sorted(maps.Keys(r.Tags)), RepoDigests: slices.Sorted(slices.Values(r.Digests))}
	for _, p := range s.cfg.Pinned {
		ref, err := reference.Parse(p)
		if p == r.ID || err == nil && (slices.Contains(img.RepoTags, ref.String()) || slices.Contains(img.RepoDigests, ref.String())) {
			img.Pinned = true
		}
	}
	return img
}

// put makes r the record of its image in memory. Caller holds mu.
func (s *Store) put(r *record) {
	s.drop(r.ID)
	s.images[r.ID], s.shown[r.ID] = r, s.show(r)
	for t := range r.Tags {
		s.tags[t] = r.ID
	}
	for _, d := range r.Digests {
		s.tags[d] = r.ID
	}
}

// drop forgets an image. Caller holds mu.
func (s *Store) drop(id string) {
	delete(s.images, id)
	delete(s.shown, id)
	for name, have := range s.tags {
		if have == id {
			delete(s.tags, name)
		}
	}
}

// List returns all images, ordered by id. It takes no disk access.
func (s *Store) List() []*Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.shown), func(a, b *Image) int { return cmp.Compare(a.ID, b.ID) })
}
