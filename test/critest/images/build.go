package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

type file struct {
	name     string // without a leading slash
	hardlink string
	data     []byte
	mode     int64
	uid, gid int
	dir      bool
}

// content is a built image: an index, or a bare manifest.
type content struct {
	index v1.ImageIndex
	image v1.Image
}

func (im *image) build() (*content, error) {
	img, mediaType, indexType := empty.Image, types.OCIManifestSchema1, types.OCIImageIndex
	layerType, configType := types.OCILayer, types.OCIConfigJSON
	if im.docker {
		mediaType, indexType = types.DockerManifestSchema2, types.DockerManifestList
		layerType, configType = types.DockerLayer, types.DockerConfigJSON
	}
	img = mutate.ConfigMediaType(mutate.MediaType(img, mediaType), configType)
	for _, files := range im.layers {
		data, err := tarOf(files)
		if err != nil {
			return nil, err
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, tarball.WithMediaType(layerType))
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, err
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config = v1.Config{
		User: im.user, Entrypoint: im.entry, Cmd: im.cmd, StopSignal: im.stopSig,
		Env: append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, im.env...),
	}
	if img, err = mutate.ConfigFile(img, cfg); err != nil || im.flat {
		return &content{image: img}, err
	}
	add := mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}}
	return &content{index: mutate.AppendManifests(mutate.IndexMediaType(empty.Index, indexType), add)}, nil
}

func tarOf(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Uid: f.uid, Gid: f.gid, Size: int64(len(f.data)), Format: tar.FormatPAX}
		if f.dir {
			h.Typeflag, h.Name = tar.TypeDir, f.name+"/"
		}
		if f.hardlink != "" {
			h.Typeflag, h.Linkname = tar.TypeLink, f.hardlink
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// baseLayer is busybox with every applet a hard link, so that masking /bin/ls masks ls alone, and the few
// files that looking up users and groups needs.
func baseLayer(busybox, helper string) ([]file, error) {
	var files []file
	for _, d := range []string{"bin", "dev", "etc", "home", "lib64", "lib", "lib/x86_64-linux-gnu", "mnt", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "usr/local", "usr/local/bin", "var", "var/log", "var/run"} {
		files = append(files, file{name: d, dir: true, mode: 0o755})
	}
	files = append(files, file{name: "tmp", dir: true, mode: 0o1777},
		file{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
		file{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n")})
	for name, from := range map[string]string{"bin/busybox": busybox, "bin/helper": helper} {
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: name, mode: 0o755, data: data})
	}
	libs, err := sharedLibraries(busybox)
	if err != nil {
		return nil, err
	}
	files = append(files, libs...)
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, err
	}
	ours := []string{"ipcs", "pgrep"}
	for _, applet := range strings.Fields(string(out)) {
		if applet != "busybox" && !slices.Contains(ours, applet) {
			files = append(files, file{name: "bin/" + applet, hardlink: "bin/busybox", mode: 0o755})
		}
	}
	for _, n := range ours {
		files = append(files, file{name: "bin/" + n, hardlink: "bin/helper", mode: 0o755})
	}
	return files, nil
}

// sharedLibraries returns the loader and the libraries of a dynamic program, for the image to bring along.
func sharedLibraries(program string) ([]file, error) {
	const libdir = "/lib/x86_64-linux-gnu"
	f, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var files []file
	add := func(name string) error {
		data, err := os.ReadFile(name)
		files = append(files, file{name: strings.TrimPrefix(name, "/"), mode: 0o755, data: data})
		return err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz-1)
		if _, err := p.ReadAt(b, 0); err != nil {
			return nil, err
		}
		if err := add(string(b)); err != nil {
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, errors.New(program + " is static; a dynamic busybox is wanted (Debian: busybox)")
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if err := add(path.Join(libdir, n)); err != nil {
			return nil, err
		}
	}
	return files, nil
}
