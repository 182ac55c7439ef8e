package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/cri-server/cri-server/test/registry"
)

// serveImage starts a registry on loopback that holds one image made of the app, and returns its address
// and what stops it.
func serveImage(app string) (address string, stop func(), err error) {
	img, err := appImage(app)
	if err != nil {
		return "", nil, err
	}
	r, err := registry.Start("127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	ref, err := name.ParseReference(r.Address+"/demo/app:1", name.Insecure)
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		r.Close()
		return "", nil, fmt.Errorf("fill the registry: %w", err)
	}
	return r.Address, func() { r.Close() }, nil
}

func appImage(app string) (v1.Image, error) {
	bin, err := os.ReadFile(app)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range []struct {
		name string
		mode int64
		data []byte
	}{
		{"bin/app", 0o755, bin},
		{"etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/app\ndemo:x:1000:1000:demo:/:/bin/app\n")},
		{"etc/group", 0o644, []byte("root:x:0:\ndemo:x:1000:\n")},
	} {
		if err := tw.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", goarch
	cfg.Config.Entrypoint = []string{"/bin/app"}
	cfg.Config.User = "demo"
	return mutate.ConfigFile(img, cfg)
}
