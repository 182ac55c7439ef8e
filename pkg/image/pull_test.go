package image

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	it "github.com/cri-server/cri-server/pkg/image/internal/imagetest"
)

func newStore(t testing.TB, change func(*Config)) *Store {
	t.Helper()
	cfg := Config{Root: filepath.Join(t.TempDir(), "images"), Platform: "linux/amd64"}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.backoff = time.Millisecond
	return s
}

// clean fails the test when an audit finds anything.
func clean(t testing.TB, s *Store) {
	t.Helper()
	problems, err := s.Check(context.Background(), true)
	if err != nil || len(problems) > 0 {
		t.Errorf("check: %q, %v", problems, err)
	}
}

var baseTar = it.Tar(it.Dir("bin/", 0o755), it.File("bin/sh", "#!"), it.Dir("etc", 0o750), it.File("etc/passwd", "root:x:0:0::/:/bin/sh\n"), it.Dir("tmp", 0o1777))

func TestPullTagAndDigest(t *testing.T) {
	for _, pack := range []string{"", "gzip", "zstd"} {
		t.Run("pack="+pack, func(t *testing.T) {
			r, s := it.NewRegistry(t), newStore(t, nil)
			second := it.Tar(it.File("etc/motd", "hello"), it.File("bin/.wh.sh", ""))
			man, conf := r.Push("a/b", "v1", it.Image{Layers: []it.Layer{{Tar: baseTar, Pack: pack}, {Tar: second, Pack: pack}}})
			ctx := context.Background()
			id, err := s.Pull(ctx, r.Host()+"/a/b:v1", PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if id != string(conf.Digest) {
				t.Errorf("id %s, want the config digest %s", id, conf.Digest)
			}
			img, err := s.Get(r.Host() + "/a/b:v1")
			if err != nil {
				t.Fatal(err)
			}
			want := r.Host() + "/a/b@" + string(man.Digest)
			if !slices.Equal(img.RepoTags, []string{r.Host() + "/a/b:v1"}) || !slices.Equal(img.RepoDigests, []string{want}) || len(img.Layers) != 2 {
				t.Errorf("image: %+v", img)
			}
			for _, ref := range []string{want, id, id[7:], id[7:20], id[:20]} {
				if got, err := s.Get(ref); err != nil || got.ID != id {
					t.Errorf("Get(%s): %v, %v", ref, got, err)
				}
			}
			if b, err := os.ReadFile(s.path(lowerDir(img.Layers[1]), "etc/motd")); err != nil || string(b) != "hello" {
				t.Errorf("etc/motd: %q, %v", b, err)
			}
			// The second layer has etc without describing it: it is as below.
			if fi, err := os.Stat(s.path(lowerDir(img.Layers[1]), "etc")); err != nil || fi.Mode().Perm() != 0o750 || !fi.ModTime().Equal(it.Epoch) {
				t.Errorf("etc of layer 2: %v, %v", fi, err)
			}
			clean(t, s)
			if err := s.Remove(ctx, want); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(id); !errs.Is(err, errs.NotFound) {
				t.Errorf("after Remove: %v", err)
			}
			if err := s.Remove(ctx, want); err != nil {
				t.Errorf("second Remove: %v", err)
			}
			clean(t, s)
			empty(t, s)
		})
	}
}

// empty fails when a store without images keeps bytes.
func empty(t testing.TB, s *Store) {
	t.Helper()
	s.trash.wait()
	for _, d := range []string{"blobs/sha256", "layers", "images", "tmp", ".trash", "rootfs", "owners"} {
		entries, err := os.ReadDir(s.path(d))
		if err != nil || len(entries) > 0 {
			t.Errorf("%s holds %v, %v", d, entries, err)
		}
	}
}

func TestReopen(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{{Tar: baseTar}}})
	id, err := s.Pull(context.Background(), r.Host()+"/a:v1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), s.cfg); !errs.Is(err, errs.Conflict) {
		t.Errorf("second Open: %v, want a conflict", err)
	}
	s.Close()
	s2, err := Open(context.Background(), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	img, err := s2.Get(r.Host() + "/a:v1")
	if err != nil || img.ID != id {
		t.Errorf("after reopening: %v, %v", img, err)
	}
	clean(t, s2)
}

// TestSameLayerTwice: docker's empty layer, and any other one, may come more than once.
func TestSameLayerTwice(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	nothing := it.Layer{Tar: make([]byte, 1024), Pack: "gzip"}
	base := it.Layer{Tar: baseTar, Pack: "gzip"}
	r.Push("a", "v1", it.Image{Layers: []it.Layer{nothing, base, nothing, base, nothing}})
	id := mustPull(t, s, r.Host()+"/a:v1")
	if img, err := s.Get(id); err != nil || len(img.Layers) != 5 {
		t.Errorf("%+v, %v", img, err)
	}
	if n := r.Count("/blobs/"); n != 3 {
		t.Errorf("%d blobs were fetched, want the config and two layers", n)
	}
	clean(t, s)
}

// TestDockerSchema2 pulls by docker's media types, and by a type that does not fit the bytes.
func TestDockerSchema2(t *testing.T) {
	for _, pack := range []string{"", "gzip", "zstd"} {
		r, s := it.NewRegistry(t), newStore(t, nil)
		r.Push("a", "v1", it.Image{Layers: []it.Layer{{Tar: baseTar, Pack: pack}}, Edit: func(m *ocispec.Manifest, _ *ocispec.Image) {
			m.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
		}})
		mustPull(t, s, r.Host()+"/a:v1")
		clean(t, s)
	}
}

// TestHardLinkBelow: a layer may link to a file that only a lower one has.
func TestHardLinkBelow(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{{Tar: baseTar}, {Tar: it.Tar(it.Link("bin/bash", "bin/sh"))}}})
	id := mustPull(t, s, r.Host()+"/a:v1")
	img, err := s.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(s.path(lowerDir(img.Layers[1]), "bin/bash")); err != nil || string(b) != "#!" {
		t.Errorf("%q, %v", b, err)
	}
	clean(t, s)
}

// TestPullAgain: an image that has not changed is not written again.
func TestPullAgain(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{{Tar: baseTar}}})
	id := mustPull(t, s, r.Host()+"/a:v1")
	before, err := os.Stat(s.imagePath(id))
	if err != nil {
		t.Fatal(err)
	}
	mustPull(t, s, r.Host()+"/a:v1")
	if after, err := os.Stat(s.imagePath(id)); err != nil || !os.SameFile(before, after) {
		t.Errorf("the record was written again: %v", err)
	}
	r.AddManifest("a", "v2", r.Manifests["a:v1"].Body, r.Manifests["a:v1"].MediaType)
	mustPull(t, s, r.Host()+"/a:v2")
	if img, err := s.Get(id); err != nil || len(img.RepoTags) != 2 {
		t.Errorf("%+v, %v", img, err)
	}
	clean(t, s)
}
