package image

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	it "github.com/cri-server/cri-server/pkg/image/internal/imagetest"
)

func TestIndexes(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	layer := []it.Layer{gz(it.File("f", "x"))}
	mine, conf := r.Push("a", "", it.Image{Layers: layer})
	other, _ := r.Push("a", "", it.Image{Layers: layer, Arch: "arm64"})
	entry := func(d ocispec.Descriptor, arch string) ocispec.Descriptor {
		if arch != "" {
			d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		}
		return d
	}
	index := func(tag string, list ...ocispec.Descriptor) ocispec.Descriptor {
		x := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: append([]ocispec.Descriptor{}, list...)}
		x.SchemaVersion = 2
		return r.AddManifest("a", tag, x, x.MediaType)
	}
	plain := index("plain", entry(other, "arm64"), entry(mine, "amd64"))
	index("silent", other, mine)
	index("nested", entry(plain, "amd64"))
	index("nested-silent", plain)
	index("none", entry(other, "arm64"))
	index("empty")
	deep := plain
	for range 5 {
		deep = index("deep", deep)
	}
	wrong := mine
	wrong.Size++
	index("size", entry(wrong, "amd64"))
	gone := mine
	gone.Digest = "sha256:" + ocispec.DescriptorEmptyJSON.Digest[7:]
	index("gone", entry(gone, "amd64"))
	lies := mine
	lies.MediaType = ocispec.MediaTypeImageIndex
	index("lies", entry(lies, "amd64"))
	for tag, kind := range map[string]errs.Kind{"plain": 0, "silent": 0, "nested": 0, "nested-silent": 0,
		"none": errs.NotFound, "empty": errs.NotFound, "deep": errs.Invalid, "size": errs.Invalid, "gone": errs.NotFound, "lies": errs.Invalid} {
		id, err := s.Pull(ctx, r.Host()+"/a:"+tag, PullOptions{})
		if errs.KindOf(err) != kind || (err == nil) != (kind == 0) || err == nil && id != string(conf.Digest) {
			t.Errorf("%s: %s, %v (%v), want %v", tag, id, err, errs.KindOf(err), kind)
		}
	}
	if img, err := s.Get(r.Host() + "/a@" + string(plain.Digest)); err != nil || img.ID != string(conf.Digest) {
		t.Errorf("by the index's digest: %v, %v", img, err)
	}
	clean(t, s)
}

// TestHostileImages are refused, and nothing of them stays.
func TestHostileImages(t *testing.T) {
	layer := []it.Layer{gz(it.File("f", "x"))}
	swap := func(f func(m *ocispec.Manifest, c *ocispec.Image)) it.Image { return it.Image{Layers: layer, Edit: f} }
	for what, c := range map[string]struct {
		img  it.Image
		kind errs.Kind
	}{
		"climbing layer": {it.Image{Layers: []it.Layer{gz(it.File("ok", "x")), gz(it.File("../../x", "x"))}}, errs.Invalid},
		"not a tar":      {it.Image{Layers: []it.Layer{{Tar: []byte(strings.Repeat("not a tar", 200))}}}, errs.Invalid},
		"gzip of gzip":   {it.Image{Layers: []it.Layer{{Tar: []byte("\x1f\x8b" + strings.Repeat("x", 600)), Pack: "gzip"}}}, errs.Invalid},
		"other diff id":  {swap(func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.DiffIDs[0] = ocispec.DescriptorEmptyJSON.Digest }), errs.Invalid},
		"a diff id more": {swap(func(_ *ocispec.Manifest, c *ocispec.Image) {
			c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, c.RootFS.DiffIDs[0])
		}), errs.Invalid},
		"larger than said":  {swap(func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Size-- }), errs.Invalid},
		"smaller than said": {swap(func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Size++ }), errs.Invalid},
		"layer is absent":   {swap(func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Digest = ocispec.DescriptorEmptyJSON.Digest }), errs.NotFound},
		"foreign layer": {swap(func(m *ocispec.Manifest, _ *ocispec.Image) {
			m.Layers[0].MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
		}), errs.Unsupported},
		"unknown layer":    {swap(func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].MediaType = "application/x" }), errs.Unsupported},
		"another platform": {it.Image{Layers: layer, Arch: "s390x"}, errs.NotFound},
		"an artifact":      {swap(func(m *ocispec.Manifest, _ *ocispec.Image) { m.Config = ocispec.DescriptorEmptyJSON }), errs.Unsupported},
		"config is absent": {swap(func(m *ocispec.Manifest, _ *ocispec.Image) {
			m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: ocispec.DescriptorEmptyJSON.Digest, Size: 2}
		}), errs.NotFound},
	} {
		t.Run(what, func(t *testing.T) {
			r, s := it.NewRegistry(t), newStore(t, nil)
			r.Push("a", "v1", c.img)
			id, err := s.Pull(ctx, r.Host()+"/a:v1", PullOptions{})
			if err == nil || errs.KindOf(err) != c.kind {
				t.Errorf("%s, %v (%v), want %v", id, err, errs.KindOf(err), c.kind)
			}
			clean(t, s)
			empty(t, s)
		})
	}
}

// TestBodyLies serves bytes under a digest that is not theirs.
func TestBodyLies(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	man, _ := r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}})
	for d, b := range r.Blobs {
		lie := slices.Clone(b)
		lie[len(lie)-1] ^= 1
		r.Blobs[d] = lie
		if _, err := s.Pull(ctx, r.Host()+"/a:v1", PullOptions{}); !errs.Is(err, errs.Invalid) {
			t.Errorf("blob %s: %v", d, err)
		}
		r.Blobs[d] = b
	}
	r.Manifests["a@"+string(man.Digest)] = it.Served{Body: []byte(`{"schemaVersion":2}`), MediaType: man.MediaType}
	if _, err := s.Pull(ctx, r.Host()+"/a@"+string(man.Digest), PullOptions{}); !errs.Is(err, errs.Invalid) {
		t.Errorf("manifest: %v", err)
	}
	clean(t, s)
	empty(t, s)
}

// TestLayerBreaksOff: the registry goes away in the middle of a layer, of whatever packing.
func TestLayerBreaksOff(t *testing.T) {
	for _, pack := range []string{"", "gzip", "zstd"} {
		r, s := it.NewRegistry(t), newStore(t, nil)
		var content strings.Builder
		noise := rand.New(rand.NewPCG(1, 2))
		for range 300000 {
			content.WriteByte(byte(noise.Uint32()))
		}
		r.Push("a", "v1", it.Image{Layers: []it.Layer{{Tar: it.Tar(it.File("f", content.String())), Pack: pack}}})
		r.Intercept = func(w http.ResponseWriter, req *http.Request) bool {
			_, d, _ := strings.Cut(req.URL.Path, "/blobs/")
			if len(r.Blobs[d]) < 10000 {
				return false
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(r.Blobs[d])))
			_, _ = w.Write(r.Blobs[d][:5000])
			panic(http.ErrAbortHandler)
		}
		_, err := s.Pull(ctx, r.Host()+"/a:v1", PullOptions{})
		if err == nil || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") || errs.KindOf(err) != errs.Unknown {
			t.Errorf("%q: %v (%v)", pack, err, errs.KindOf(err))
		}
		clean(t, s)
		empty(t, s)
	}
}
