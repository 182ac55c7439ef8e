package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/image/internal/registry"
	"github.com/cri-server/cri-server/pkg/image/internal/unpack"
)

// Check compares the records with what is on disk and returns a line for each difference; none is sound.
// Deep hashes every blob again and compares the unpacked layers with their tars, which reads everything.
// It alters nothing. Beside a server that uses the store it leaves out what a pull under way would explain.
func (s *Store) Check(ctx context.Context, deep bool) ([]string, error) {
	s.trash.wait()
	look := &Store{cfg: s.cfg, images: map[string]*record{}, shown: map[string]*Image{}, tags: map[string]string{}, layers: map[string]layerRecord{}, blobs: map[string]int64{},
		rootfs: map[string]*rootfsRecord{}, owners: map[string]*ownerRecord{}, pins: map[string]int{}}
	f, err := look.load(ctx)
	if err != nil {
		return nil, err
	}
	others := s.lock == nil && s.locked()
	s.mu.RLock()
	if len(s.pins) > 0 || others { // temporary files belong to pulls under way
		f.problems = slices.DeleteFunc(f.problems, func(p string) bool { return strings.HasPrefix(p, "temporary directory") })
	}
	maps.Copy(look.pins, s.pins)
	s.mu.RUnlock()
	if !others { // which pulls another process has under way only it knows
		look.unexplained(f)
	}
	for id, r := range look.rootfs {
		// Its work directory is made anew by every mount, and may be missing where one was cut short.
		if fi, err := os.Lstat(look.path(rootfsDir, id, "upper")); err != nil || !fi.IsDir() {
			f.note("root filesystem %s: it has no directory %q", id, "upper")
		}
		look.needLayers(f, "root filesystem "+id, r.Layers)
	}
	for _, o := range look.owners {
		for _, chains := range o.Images {
			look.needLayers(f, "image volume of "+o.Owner, chains)
		}
	}
	if deep {
		if err := look.rehash(ctx, f); err != nil {
			return nil, err
		}
	}
	return f.problems, nil
}

// locked reports whether another process has the store open.
func (s *Store) locked() bool {
	f, err := os.Open(s.path(lockFile)) //nolint:forbidigo // our own state directory
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

func (s *Store) needLayers(f *findings, who string, chains []string) {
	for _, c := range chains {
		if _, ok := s.layers[c]; !ok {
			f.note("%s: layer %s is missing", who, c)
		}
	}
}

// unexplained notes layers and blobs that nothing needs, and removals that were not finished.
func (s *Store) unexplained(f *findings) {
	needed := s.needed()
	for c := range s.layers {
		if !needed[c] {
			f.note("layer %s: no image or container needs it", c)
		}
	}
	for d := range s.blobs {
		if !needed[d] {
			f.note("blob %s: no image needs it", d)
		}
	}
	entries, _ := readDir(s.path(trashDir))
	if len(entries) > 0 {
		f.note("%d removed trees are still on disk", len(entries))
	}
}

// rehash reads everything.
func (s *Store) rehash(ctx context.Context, f *findings) error {
	for d := range s.blobs {
		if err := s.rehashBlob(ctx, d); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			f.note("blob %s: %v", d, err)
		}
	}
	checked := map[string]bool{}
	for _, r := range s.images {
		for _, l := range r.Layers {
			if _, have := s.blobs[l.Digest]; !have || checked[l.Chain] {
				continue
			}
			checked[l.Chain] = true
			if err := s.compareLayer(ctx, l); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				f.note("layer %s: %v", l.Chain, err)
			}
		}
	}
	return nil
}

func (s *Store) rehashBlob(ctx context.Context, d string) error {
	v, err := registry.NewVerifier(d)
	if err != nil {
		return err
	}
	file, err := os.Open(s.blobPath(d)) //nolint:forbidigo // our own state directory
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(v, readCtx{ctx, file}); err != nil {
		return err
	}
	if !v.Verified() {
		return errors.New("its bytes have another digest")
	}
	return nil
}

type readCtx struct {
	ctx context.Context //nolint:containedctx // for one copy
	r   io.Reader
}

func (r readCtx) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// compareLayer holds every regular file of an unpacked layer to the last entry of its name in the tar.
func (s *Store) compareLayer(ctx context.Context, l recordLayer) error {
	blob, err := os.Open(s.blobPath(l.Digest)) //nolint:forbidigo // our own state directory
	if err != nil {
		return err
	}
	defer blob.Close()
	root, err := os.Open(s.path(lowerDir(l.Chain))) //nolint:forbidigo // our own state directory
	if err != nil {
		return err
	}
	defer root.Close()
	z, err := unpack.Decompress(readCtx{ctx, blob})
	if err != nil {
		return err
	}
	defer z.Close()
	bad := map[string]string{} // a later entry of the same name may put it right
	for tr := tar.NewReader(z); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		delete(bad, name)
		if hdr.Typeflag != tar.TypeReg || strings.HasPrefix(path.Base(name), ".wh.") {
			continue
		}
		if diff := compareFile(root, name, hdr, tr); diff != "" {
			bad[name] = diff
		}
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		return fmt.Errorf("%d files are not as in its tar; %q: %s", len(bad), name, bad[name])
	}
	return nil
}

// compareFile returns what differs, or "".
func compareFile(root *os.File, name string, hdr *tar.Header, r io.Reader) string {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(root.Fd()), name, &how)
	if err != nil {
		return err.Error()
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	if !fi.Mode().IsRegular() || fi.Size() != hdr.Size {
		return fmt.Sprintf("%v of %d bytes, want a file of %d", fi.Mode().Type(), fi.Size(), hdr.Size)
	}
	same, err := equal(f, r)
	if err != nil {
		return err.Error()
	}
	if !same {
		return "its content differs"
	}
	return ""
}

func equal(a, b io.Reader) (bool, error) {
	bufA, bufB := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		if string(bufA[:n]) != string(bufB[:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			endA := errA == io.EOF || errA == io.ErrUnexpectedEOF
			endB := errB == io.EOF || errB == io.ErrUnexpectedEOF
			if endA && endB {
				return true, nil
			}
			if !endA && errA != nil {
				return false, errA
			}
			if !endB && errB != nil {
				return false, errB
			}
			return false, nil
		}
	}
}
