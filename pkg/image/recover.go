package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image/internal/reference"
	"github.com/cri-server/cri-server/pkg/store"
)

// findings are what reading the store found amiss, and what would mend it.
type findings struct {
	problems   []string
	quarantine []string // records that cannot be trusted
	discard    []string // what nothing explains
}

func (f *findings) note(format string, args ...any) {
	f.problems = append(f.problems, fmt.Sprintf(format, args...))
}

// recover reads the store into memory and then mends it. Reading alters nothing.
func (s *Store) recover(ctx context.Context) error {
	f, err := s.load(ctx)
	if err != nil || s.cfg.ReadOnly {
		return err
	}
	for _, p := range f.quarantine {
		if _, err := store.Quarantine(p); err != nil {
			return err
		}
	}
	for _, p := range f.discard {
		if err := s.trash.put(p); err != nil {
			return err
		}
	}
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.collect(); err != nil {
		return err
	}
	s.trash.kick()
	return nil
}

// load reads every record. An unknown version or an unreadable directory is an error; a torn record is a
// finding.
func (s *Store) load(ctx context.Context) (*findings, error) {
	f := new(findings)
	for _, read := range []func(*findings) error{s.loadTemp, s.loadLayers, s.loadBlobs, s.loadImages, s.loadRootfs, s.loadOwners} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := read(f); err != nil {
			return nil, fmt.Errorf("read image store: %w", err)
		}
	}
	return f, nil
}

func readDir(dir string) ([]os.DirEntry, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

func (s *Store) loadTemp(f *findings) error {
	entries, err := readDir(s.path(tmpDir))
	for _, e := range entries {
		f.note("temporary directory %s of a pull that ended", e.Name())
		f.discard = append(f.discard, s.path(tmpDir, e.Name()))
	}
	return err
}

func (s *Store) loadLayers(f *findings) error {
	entries, err := readDir(s.path(layersDir))
	for _, e := range entries {
		dir := s.path(layersDir, e.Name())
		var l layerRecord
		err := layerSchema.Read(filepath.Join(dir, "layer.json"), &l)
		if errs.Is(err, errs.Unsupported) {
			return err
		}
		if err != nil || !reference.SafeDigest(l.Chain) || hexOf(l.Chain) != e.Name() {
			f.note("layer %s: no sound record", e.Name())
			f.discard = append(f.discard, dir)
			continue
		}
		s.layers[l.Chain] = l
	}
	return err
}

func (s *Store) loadBlobs(f *findings) error {
	for _, alg := range []string{"sha256", "sha512"} {
		entries, err := readDir(s.path(blobsDir, alg))
		if err != nil {
			return err
		}
		for _, e := range entries {
			digest := alg + ":" + e.Name()
			fi, err := e.Info()
			if err != nil || !reference.SafeDigest(digest) || !fi.Mode().IsRegular() {
				f.note("blob %s: not a blob", digest)
				f.discard = append(f.discard, s.path(blobsDir, alg, e.Name()))
				continue
			}
			s.blobs[digest] = fi.Size()
		}
	}
	return nil
}

// loadImages takes the records whose bytes are there. The others are put aside: what they name is pulled
// again when somebody asks for it.
func (s *Store) loadImages(f *findings) error {
	entries, err := readDir(s.path(imagesDir))
	for _, e := range entries {
		file := s.path(imagesDir, e.Name())
		switch {
		case strings.HasSuffix(e.Name(), ".torn"):
			continue
		case !strings.HasSuffix(e.Name(), ".json"):
			f.note("file %s in the directory of images", e.Name())
			f.discard = append(f.discard, file)
			continue
		}
		r := new(record)
		err := imageSchema.Read(file, r)
		if errs.Is(err, errs.Unsupported) {
			return err
		}
		if err == nil && (!reference.SafeDigest(r.ID) || hexOf(r.ID)+".json" != e.Name()) {
			err = errors.New("it is another image's")
		}
		if err == nil {
			err = s.complete(r)
		}
		if err != nil {
			f.note("image record %s: %v", e.Name(), err)
			f.quarantine = append(f.quarantine, file)
			continue
		}
		s.admit(r)
	}
	return err
}

// admit takes a record that was read, and settles whose a tag is that two records claim.
func (s *Store) admit(r *record) {
	for t, seq := range r.Tags {
		s.seq = max(s.seq, seq)
		other := s.images[s.tags[t]]
		if other == nil {
			continue
		}
		if other.Tags[t] > seq {
			delete(r.Tags, t)
		} else {
			delete(other.Tags, t)
			s.shown[other.ID] = s.show(other)
		}
	}
	s.put(r)
}

// complete refuses a record that names what is not there.
func (s *Store) complete(r *record) error {
	for d, size := range r.Blobs {
		if have, ok := s.blobs[d]; !ok || have != size {
			return fmt.Errorf("blob %s is missing or torn", d)
		}
	}
	for _, l := range r.Layers {
		if _, ok := s.layers[l.Chain]; !ok {
			return fmt.Errorf("layer %s is missing", l.Chain)
		}
	}
	return nil
}

func (s *Store) loadRootfs(f *findings) error {
	entries, err := readDir(s.path(rootfsDir))
	for _, e := range entries {
		dir := s.path(rootfsDir, e.Name())
		r := new(rootfsRecord)
		err := rootfsSchema.Read(filepath.Join(dir, "rootfs.json"), r)
		if errs.Is(err, errs.Unsupported) {
			return err
		}
		if err != nil || r.Container != e.Name() {
			f.note("root filesystem %s: no sound record", e.Name())
			f.discard = append(f.discard, dir)
			continue
		}
		s.rootfs[r.Container] = r
	}
	return err
}

func (s *Store) loadOwners(f *findings) error {
	entries, err := readDir(s.path(ownersDir))
	for _, e := range entries {
		file := s.path(ownersDir, e.Name())
		r := new(ownerRecord)
		err := ownerSchema.Read(file, r)
		if errs.Is(err, errs.Unsupported) {
			return err
		}
		if err != nil || r.Owner+".json" != e.Name() {
			f.note("owner record %s: not sound", e.Name())
			f.discard = append(f.discard, file)
			continue
		}
		s.owners[r.Owner] = r
	}
	return err
}

// needed are the chain IDs and digests that records and pulls name. Caller holds mu.
func (s *Store) needed() map[string]bool {
	needed := map[string]bool{}
	for _, r := range s.images {
		for d := range r.Blobs {
			needed[d] = true
		}
		for _, l := range r.Layers {
			needed[l.Chain] = true
		}
	}
	for _, r := range s.rootfs {
		for _, c := range r.Layers {
			needed[c] = true
		}
	}
	for _, o := range s.owners {
		for _, chains := range o.Images {
			for _, c := range chains {
				needed[c] = true
			}
		}
	}
	for p := range s.pins {
		needed[p] = true
	}
	return needed
}

// collect moves every layer and blob that no record and no pull needs out of the way. Caller holds change.
func (s *Store) collect() error {
	s.mu.Lock()
	needed := s.needed()
	var gone []string
	// A chain of one layer has the digest of that layer's tar as its ID, which a plain blob may have too:
	// pins of either kind keep both, which does no harm.
	for _, c := range slices.Collect(maps.Keys(s.layers)) {
		if !needed[c] {
			delete(s.layers, c)
			gone = append(gone, s.layerPath(c))
		}
	}
	for _, d := range slices.Collect(maps.Keys(s.blobs)) {
		if !needed[d] {
			delete(s.blobs, d)
			gone = append(gone, s.blobPath(d))
		}
	}
	s.mu.Unlock()
	var failed error
	for _, p := range gone {
		failed = errors.Join(failed, s.trash.put(p))
	}
	s.trash.kick()
	return failed
}
