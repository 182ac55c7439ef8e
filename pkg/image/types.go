// Package image pulls, verifies, unpacks and lends root filesystems.
//
// A Store is a directory:
//
//	blobs/<algorithm>/<hex>       what a registry sent, by digest
//	layers/<hex of chain ID>/     diff/, as overlayfs takes it, and layer.json
//	images/<hex of id>.json       an image: what it is called and which layers and blobs it is made of
//	rootfs/<container>/           upper/, work/ and rootfs.json, which names the layers below
//	owners/<container>.json       the layers of the image volumes of a container
//	tmp/, .trash/                 pulls under way, removals under way
//
// A record implies its bytes: it is written last and removed first, and what no record names goes at the
// next Open. An image's id is the digest of its config, the same wherever it came from. Everything a
// registry sends, and every byte of a layer, is hostile; see the packages below internal.
package image

import (
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is a snapshot of one image in the store. It is immutable: callers must not change what it points to.
type Image struct {
	ID          string              // config digest, "sha256:<64 hex>": the image_ref of every CRI answer
	RepoTags    []string            // "registry.k8s.io/pause:3.10", sorted
	RepoDigests []string            // "registry.k8s.io/pause@sha256:…", sorted
	Size        uint64              // bytes of its blobs, config and manifest included
	Created     time.Time           // as the image config says, may be zero
	Config      ocispec.ImageConfig // as the image says: hostile data
	Layers      []string            // chain IDs, lowest first
	Pinned      bool                // never to be garbage collected
}

// Auth is what a caller gave for one pull. Credentials are used for the host of the reference (or
// ServerAddress, which must name it) and never sent to another.
type Auth struct {
	Username, Password string
	Auth               string // base64 of username:password
	ServerAddress      string
	IdentityToken      string // exchanged for an access token
	RegistryToken      string // bearer token used as it is
}

// Progress reports how far a pull is.
type Progress struct {
	Layer string // digest of the layer
	Done  int64  // bytes so far
	Total int64  // bytes in all, 0 when not known
	Phase string // "waiting", "download", "unpack", "done", "exists"
}

// PullOptions are the options of Store.Pull.
type PullOptions struct {
	Auth     *Auth
	Progress func(Progress) // may be nil; called from several goroutines, must not block
}

// Usage is how much of a filesystem something takes.
type Usage struct {
	Mountpoint string
	Bytes      uint64
	Inodes     uint64
}
