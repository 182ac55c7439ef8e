//go:build root

package pods

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/internal/testroot"
)

// busybox is the image of most containers: busybox, its links, and the observer where it could be built.
const busybox = "registry.test/busybox:1"

// shared is the registry of the whole run, which every node has as its mirror.
var shared struct {
	once sync.Once
	url  string
}

func registryURL(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() {
		shared.url = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)))).URL // ends with the process
		push(t, busybox, v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}, busyboxFiles(t)...)
	})
	return shared.url
}

// entry is an entry of an image's layer.
type entry struct {
	tar.Header
	content string
}

func file(name string, mode int64, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content}
}

func dir(name string, mode int64) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, ""}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

// mark is a file that every root of a container has, and no other root.
const mark = "etc/pods-test"

func busyboxFiles(t testing.TB) []entry {
	t.Helper()
	bb := testroot.Busybox(t)
	bin, err := os.ReadFile(bb)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(bb, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := []entry{
		file("bin/busybox", 0o755, string(bin)), dir("tmp", 0o1777), file(mark, 0o644, "container\n"), file("bin/observer", 0o755, observer(t)),
		file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n"), file("etc/group", 0o644, "root:x:0:\nuser:x:1000:\n"),
	}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			files = append(files, symlink("bin/"+a, "busybox"))
		}
	}
	return files
}

// binEnv names a directory of programs that were built before: for machines without Go.
const binEnv = "CRI_TEST_BIN"

// observer is the program test/pods/observer.
func observer(t testing.TB) string {
	t.Helper()
	path := filepath.Join(os.Getenv(binEnv), "observer")
	if os.Getenv(binEnv) == "" {
		path = filepath.Join(t.TempDir(), "observer")
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, "./observer")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the observer: %v: %s", err, out)
		}
	}
	bin, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(bin)
}

// layer is a layer of the entries.
func layer(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := tw.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// push puts an image of one layer into the shared registry, under a name that every node can pull.
func push(t testing.TB, ref string, config v1.Config, entries ...entry) {
	t.Helper()
	pushLayers(t, ref, config, layer(t, entries...))
}

func pushLayers(t testing.TB, ref string, config v1.Config, layers ...v1.Layer) {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Config = "linux", runtime.GOARCH, config
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut(ref, "/")
	to, err := name.ParseReference(strings.TrimPrefix(shared.url, "http://")+"/"+path, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, img); err != nil {
		t.Fatal(err)
	}
}

func (n *node) pull(ref string) string {
	n.t.Helper()
	r, err := n.img.PullImage(n.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatalf("pull %s: %v", ref, err)
	}
	return r.ImageRef
}
