package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/cri-server/cri-server/pkg/errs"
	it "github.com/cri-server/cri-server/pkg/image/internal/imagetest"
)

var ctx = context.Background()

func mustPull(t testing.TB, s *Store, ref string) string {
	t.Helper()
	id, err := s.Pull(ctx, ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func gz(entries ...it.Entry) it.Layer { return it.Layer{Tar: it.Tar(entries...), Pack: "gzip"} }

// TestOneImageTwoRegistries: the same image from two places is one image with two tags, and goes by either.
func TestOneImageTwoRegistries(t *testing.T) {
	a, b, s := it.NewRegistry(t), it.NewRegistry(t), newStore(t, nil)
	img := it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}}
	a.Push("pause", "3.9", img)
	b.Push("x/pause", "3.9", img)
	first, second := mustPull(t, s, a.Host()+"/pause:3.9"), mustPull(t, s, b.Host()+"/x/pause:3.9")
	if first != second {
		t.Fatalf("two ids: %s %s", first, second)
	}
	if b.Count("/blobs/") != 0 {
		t.Error("blobs were fetched again")
	}
	list := s.List()
	if len(list) != 1 || len(list[0].RepoTags) != 2 || len(list[0].RepoDigests) != 2 {
		t.Fatalf("list: %+v", list)
	}
	clean(t, s)
	if err := s.Remove(ctx, a.Host()+"/pause:3.9"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(b.Host() + "/x/pause:3.9"); !errs.Is(err, errs.NotFound) {
		t.Errorf("the other tag stayed: %v", err)
	}
	clean(t, s)
	empty(t, s)
}

// TestTagMoves: a tag that now means another image leaves the old one, which keeps its digest.
func TestTagMoves(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "latest", it.Image{Layers: []it.Layer{gz(it.File("f", "1"))}})
	one := mustPull(t, s, r.Host()+"/a")
	r.Push("a", "latest", it.Image{Layers: []it.Layer{gz(it.File("f", "2"))}})
	two := mustPull(t, s, r.Host()+"/a")
	check := func(s *Store) {
		t.Helper()
		old, err := s.Get(one)
		if err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
			t.Errorf("old: %+v, %v", old, err)
		}
		if now, err := s.Get(r.Host() + "/a:latest"); err != nil || now.ID != two {
			t.Errorf("now: %+v, %v", now, err)
		}
		clean(t, s)
	}
	check(s)
	s.Close()
	s2, err := Open(ctx, s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	check(s2)
}

func TestPullErrors(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	for ref, kind := range map[string]errs.Kind{"": errs.Invalid, "UPPER": errs.Invalid, "a@sha256:short": errs.Invalid, r.Host() + "/none:v1": errs.NotFound} {
		if _, err := s.Pull(ctx, ref, PullOptions{}); errs.KindOf(err) != kind {
			t.Errorf("%q: %v (%v), want %v", ref, err, errs.KindOf(err), kind)
		}
	}
	host := r.Host()
	r.Close()
	if _, err := s.Pull(ctx, host+"/a:v1", PullOptions{}); err == nil || errs.KindOf(err) != errs.Unknown || !strings.HasPrefix(err.Error(), "RegistryUnavailable") {
		t.Errorf("registry away: %v (%v)", err, errs.KindOf(err))
	}
	for ref, kind := range map[string]errs.Kind{"": errs.Invalid, "UPPER": errs.Invalid, "none": errs.NotFound, "abcdef": errs.NotFound, "sha256:abcd": errs.NotFound, "ab": errs.NotFound} {
		if _, err := s.Get(ref); errs.KindOf(err) != kind {
			t.Errorf("Get(%q): %v, want %v", ref, err, kind)
		}
	}
	if err := s.Remove(ctx, "none"); err != nil {
		t.Errorf("Remove of nothing: %v", err)
	}
}

// TestCancelLeavesNothing cancels while a layer is on its way; the other one is there by then.
func TestCancelLeavesNothing(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	man, _ := r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "x")), gz(it.File("g", strings.Repeat("y", 1<<20)))}})
	_ = man
	ctx, cancel := context.WithCancel(ctx)
	release := make(chan struct{})
	r.Intercept = func(w http.ResponseWriter, req *http.Request) bool {
		if r.Count("/blobs/") < 3 { // config, first layer
			return false
		}
		w.Header().Set("Content-Length", "2000")
		w.WriteHeader(http.StatusOK)
		cancel()
		<-release
		return true
	}
	defer close(release)
	if _, err := s.Pull(ctx, r.Host()+"/a:v1", PullOptions{}); !errs.Is(err, errs.Canceled) {
		t.Errorf("%v (%v)", err, errs.KindOf(err))
	}
	clean(t, s)
	empty(t, s)
	if len(s.pins) != 0 {
		t.Errorf("pins stay: %v", s.pins)
	}
}

// TestFlights: equal pulls share one transfer; one that leaves does not end it.
func TestFlights(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}})
	arrived, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.Intercept = func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() { close(arrived) })
		<-release
		return false
	}
	impatient, leave := context.WithCancel(ctx)
	left := make(chan error)
	go func() { _, err := s.Pull(impatient, r.Host()+"/a:v1", PullOptions{}); left <- err }()
	<-arrived
	var wg sync.WaitGroup
	var mu sync.Mutex
	phases := map[string]bool{}
	started := make(chan struct{}, 8)
	for range 8 {
		wg.Go(func() {
			started <- struct{}{}
			_, err := s.Pull(ctx, r.Host()+"/a:v1", PullOptions{Progress: func(p Progress) {
				mu.Lock()
				phases[p.Phase] = true
				mu.Unlock()
			}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for range 8 {
		<-started
	}
	for { // all of them have joined
		s.flights.mu.Lock()
		n := 0
		for _, f := range s.flights.m {
			n = f.waiters
		}
		s.flights.mu.Unlock()
		if n == 9 {
			break
		}
		runtime.Gosched()
	}
	leave()
	if err := <-left; !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
	close(release)
	wg.Wait()
	if n := r.Count("/manifests/v1"); n != 1 {
		t.Errorf("the manifest was read %d times", n)
	}
	if !phases["done"] {
		t.Errorf("phases told: %v", phases)
	}
	clean(t, s)
}

// TestManyPullsAndRemovals runs them against each other; what is listed at the end is whole.
func TestManyPullsAndRemovals(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	base := gz(it.File("base", "x"))
	for i := range 4 {
		r.Push("a", fmt.Sprint(i), it.Image{Layers: []it.Layer{base, gz(it.File("f", fmt.Sprint(i)))}})
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 15 {
				ref := fmt.Sprintf("%s/a:%d", r.Host(), (w+i)%4)
				if _, err := s.Pull(ctx, ref, PullOptions{}); err != nil {
					t.Error(err)
				}
				if i%2 == w%2 {
					if err := s.Remove(ctx, ref); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	clean(t, s)
	for _, img := range s.List() {
		if err := s.Remove(ctx, img.ID); err != nil {
			t.Error(err)
		}
	}
	clean(t, s)
	empty(t, s)
}

func TestMirrorAndHostsToml(t *testing.T) {
	r := it.NewRegistry(t)
	r.Push("library/busybox", "1", it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}})
	s := newStore(t, func(c *Config) { c.Mirror = r.URL })
	mustPull(t, s, "busybox:1")
	if img, err := s.Get("docker.io/library/busybox:1"); err != nil || img.RepoTags[0] != "docker.io/library/busybox:1" {
		t.Errorf("%+v, %v", img, err)
	}
	if q := r.Requests[0].URL.Query().Get("ns"); q != "docker.io" {
		t.Errorf("ns=%q", q)
	}
	certs := t.TempDir()
	s2 := newStore(t, func(c *Config) { c.CertsDir = "/nonexistent:" + certs })
	file := filepath.Join(certs, "_default", "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	// The file is read at every pull.
	if err := os.WriteFile(file, []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s2.Pull(ctx, "x.example/library/busybox:1", PullOptions{}); !errs.Is(err, errs.Invalid) {
		t.Errorf("nonsense: %v", err)
	}
	if err := os.WriteFile(file, []byte(fmt.Sprintf("[host.%q]\n", r.URL)), 0o644); err != nil {
		t.Fatal(err)
	}
	mustPull(t, s2, "x.example/library/busybox:1")
}

// TestGGCR pulls what another implementation made, through its registry.
func TestGGCR(t *testing.T) {
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	s := newStore(t, nil)
	img, err := random.Image(50<<10, 3)
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(srv.URL, "http://")
	ref, err := name.ParseReference(host + "/a/b:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	conf, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if id := mustPull(t, s, host+"/a/b:v1"); id != conf.String() {
		t.Errorf("id %s, want %s", id, conf)
	}
	// Its files have no permission bits: only root reads them back.
	if problems, err := s.Check(ctx, os.Geteuid() == 0); err != nil || len(problems) > 0 {
		t.Errorf("check: %q, %v", problems, err)
	}
}

func TestRepairAtOpen(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}})
	r.Push("b", "v1", it.Image{Layers: []it.Layer{gz(it.File("g", "x"))}})
	a, b := mustPull(t, s, r.Host()+"/a:v1"), mustPull(t, s, r.Host()+"/b:v1")
	img, err := s.Get(a)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	for _, junk := range []string{"tmp/pull-1/blob-0", "blobs/sha256/" + strings.Repeat("a", 64), "layers/" + strings.Repeat("b", 64) + "/diff/f", "layers/junk/x", "rootfs/c1/upper/f", "images/x.tmp", ".trash/x/y"} {
		p := s.path(junk)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(s.layerPath(img.Layers[0])); err != nil {
		t.Fatal(err)
	}
	look := s.cfg
	look.ReadOnly = true
	ro, err := Open(ctx, look)
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := ro.Check(ctx, false); err != nil || len(problems) < 7 {
		t.Errorf("an audit before the repair: %q, %v", problems, err)
	}
	if _, err := ro.Pull(ctx, "a", PullOptions{}); !errs.Is(err, errs.Conflict) {
		t.Errorf("a pull into a store opened to look: %v", err)
	}
	s2, err := Open(ctx, s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	clean(t, s2)
	if _, err := s2.Get(a); !errs.Is(err, errs.NotFound) {
		t.Errorf("an image without its layer is listed: %v", err)
	}
	if _, err := s2.Get(b); err != nil {
		t.Errorf("the whole image is gone: %v", err)
	}
	if id := mustPull(t, s2, r.Host()+"/a:v1"); id != a {
		t.Errorf("pulled again: %s", id)
	}
	clean(t, s2)
}

// TestDeepCheck finds a flipped byte in a blob and in a file of a layer.
func TestDeepCheck(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	man, _ := r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "content"))}})
	id := mustPull(t, s, r.Host()+"/a:v1")
	clean(t, s)
	img, err := s.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{s.path(lowerDir(img.Layers[0]), "f"), s.blobPath(string(man.Digest))} {
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bad := slices.Clone(good)
		bad[0] ^= 1
		if err := os.WriteFile(file, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		if p, err := s.Check(ctx, false); err != nil || len(p) > 0 {
			t.Errorf("shallow: %q, %v", p, err)
		}
		if p, err := s.Check(ctx, true); err != nil || len(p) != 1 {
			t.Errorf("deep: %q, %v", p, err)
		}
		if err := os.WriteFile(file, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	clean(t, s)
}

// TestTornRecords flips and cuts a record at every offset: the store opens, and lists the image whole or
// not at all.
func TestTornRecords(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}})
	id := mustPull(t, s, r.Host()+"/a:v1")
	s.Close()
	file := s.imagePath(id)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.cfg
	cfg.ReadOnly = true // so that nothing is collected in between
	for i := 0; i < len(good); i += 3 {
		flipped := slices.Clone(good)
		flipped[i] ^= 0x10
		for _, bad := range [][]byte{flipped, good[:i]} {
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			s2, err := Open(ctx, cfg)
			if err != nil {
				if errs.Is(err, errs.Unsupported) {
					continue // the version became another: refused, and said
				}
				t.Fatalf("offset %d: %v", i, err)
			}
			for _, img := range s2.List() {
				if img.ID != id || len(img.Layers) != 1 {
					t.Fatalf("offset %d: %+v", i, img)
				}
			}
		}
	}
}

func TestRootfsRecords(t *testing.T) {
	r, s := it.NewRegistry(t), newStore(t, nil)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.Dir(".", 0o711), it.File("f", "x"))}})
	id := mustPull(t, s, r.Host()+"/a:v1")
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	for _, bad := range []string{"", ".", "..", "a/b", "../x", "a\x00", ".hidden", strings.Repeat("x", 129)} {
		if err := s.CreateRootfs(ctx, bad, id, uid, gid); !errs.Is(err, errs.Invalid) {
			t.Errorf("CreateRootfs(%q): %v", bad, err)
		}
		if err := s.RemoveRootfs(ctx, bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("RemoveRootfs(%q): %v", bad, err)
		}
	}
	if err := s.CreateRootfs(ctx, "c1", "none", uid, gid); !errs.Is(err, errs.NotFound) {
		t.Errorf("of no image: %v", err)
	}
	for range 2 {
		if err := s.CreateRootfs(ctx, "c1", id, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateRootfs(ctx, "c1", id, uid+1, gid); !errs.Is(err, errs.Exists) {
		t.Errorf("for another owner: %v", err)
	}
	if fi, err := os.Stat(s.path("rootfs/c1/upper")); err != nil || fi.Mode().Perm() != 0o711 {
		t.Errorf("upper: %v, %v: not the mode of the image's root", fi, err)
	}
	if got, err := s.RootfsImage("c1"); err != nil || got != id {
		t.Errorf("RootfsImage: %s, %v", got, err)
	}
	if err := os.WriteFile(s.path("rootfs/c1/upper/f"), make([]byte, 100000), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := s.RootfsUsage("c1"); err != nil || u.Bytes < 100000 || u.Inodes != 2 {
		t.Errorf("usage: %+v, %v", u, err)
	}
	images, containers, err := s.FsUsage(ctx)
	if err != nil || images.Bytes == 0 || images.Inodes == 0 || containers.Bytes < 100000 || images.Mountpoint != s.cfg.Root {
		t.Errorf("fs usage: %+v %+v %v", images, containers, err)
	}
	if err := s.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	clean(t, s)
	s.Close()
	s2, err := Open(ctx, s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	if ids, err := s2.Rootfses(); err != nil || !slices.Equal(ids, []string{"c1"}) {
		t.Errorf("after a restart: %v, %v", ids, err)
	}
	clean(t, s2)
	for range 2 {
		if err := s2.RemoveRootfs(ctx, "c1"); err != nil {
			t.Fatal(err)
		}
	}
	clean(t, s2)
	empty(t, s2)
}

func TestPinned(t *testing.T) {
	r := it.NewRegistry(t)
	r.Push("pause", "3", it.Image{})
	s := newStore(t, func(c *Config) { c.Pinned = []string{r.Host() + "/pause:3"} })
	mustPull(t, s, r.Host()+"/pause:3")
	if img := s.List()[0]; !img.Pinned || len(img.Layers) != 0 {
		t.Errorf("%+v", img)
	}
}
