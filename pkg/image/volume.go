package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/store"
	"github.com/cri-server/cri-server/pkg/sys"
)

// VolumeFailed is the word at the start of every error of MountImage: the kubelet looks for it.
const VolumeFailed = "ImageVolumeMountFailed"

// MountImage mounts an image read-only and returns the part of it at subPath ("" is all) as a detached
// mount; the caller closes it. Links in subPath resolve inside the image. The layers stay until
// ReleaseImage(owner), restart or not. userns, when not nil, maps the owners of the files. The text of
// every error begins with VolumeFailed; the kind is NotFound for an absent image or sub path, Invalid for a sub path that
// is none.
func (s *Store) MountImage(ctx context.Context, owner, imageID, subPath string, userns *os.File) (*os.File, error) {
	f, err := s.mountImage(ctx, owner, imageID, subPath, userns)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "%s: %w", VolumeFailed, err)
	}
	return f, nil
}

func (s *Store) mountImage(ctx context.Context, owner, imageID, subPath string, userns *os.File) (*os.File, error) {
	if err := errors.Join(checkName(owner), s.writable()); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for part := range strings.SplitSeq(subPath, "/") {
		if part == ".." || strings.IndexByte(part, 0) >= 0 {
			return nil, errs.New(errs.Invalid, "sub path %.200q of image %s: it leaves the image", subPath, imageID)
		}
	}
	chains, err := s.hold(owner, imageID)
	if err != nil {
		return nil, err
	}
	mnt, err := sys.MountOverlay(sys.Overlay{Root: s.cfg.Root, Lower: lowerDirs(chains, 2), Userns: userns})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", imageID, err)
	}
	if strings.Trim(subPath, "/.") == "" {
		return mnt, nil
	}
	defer mnt.Close()
	sub, err := sys.SubTree(mnt, strings.TrimLeft(subPath, "/"), s.cfg.Root)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, errs.New(errs.NotFound, "sub path %.200q of image %s: it does not exist there: %w", subPath, imageID, err)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return nil, errs.New(errs.Invalid, "sub path %.200q of image %s: %w", subPath, imageID, err)
	case err != nil:
		return nil, fmt.Errorf("sub path %.200q of image %s: %w", subPath, imageID, err)
	}
	return sub, nil
}

// hold records, before anything is mounted, that owner needs the image's layers.
func (s *Store) hold(owner, imageID string) ([]string, error) {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	id, err := s.resolve(imageID)
	var chains []string
	if err == nil {
		chains = s.images[id].chains()
	}
	have := s.owners[owner]
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	r := &ownerRecord{Owner: owner, Images: map[string][]string{id: chains}}
	if have != nil {
		if _, ok := have.Images[id]; ok {
			return chains, nil
		}
		maps.Copy(r.Images, have.Images)
	}
	if err := ownerSchema.Write(s.ownerPath(owner), r, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.owners[owner] = r
	s.mu.Unlock()
	return chains, nil
}

// ReleaseImage ends what MountImage holds for owner; the caller has unmounted it. An unknown owner is no
// error.
func (s *Store) ReleaseImage(owner string) error {
	if err := errors.Join(checkName(owner), s.writable()); err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	have := s.owners[owner]
	s.mu.RUnlock()
	if have == nil {
		return nil
	}
	if err := os.Remove(s.ownerPath(owner)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release images of %s: %w", owner, err)
	}
	gone := false
	s.mu.Lock()
	delete(s.owners, owner)
	for id := range have.Images {
		gone = gone || s.images[id] == nil
	}
	s.mu.Unlock()
	if !gone {
		return nil
	}
	return s.collect()
}

// Owners lists who holds images as volumes, sorted: recovery releases those that are no more.
func (s *Store) Owners() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.owners))
}

// Remove removes the image that ref names in any form that Get takes, with all its tags and digests, at
// once or not at all. Containers of it go on: their layers stay until they go. A reference that names
// nothing is no error. Disk space is free soon after.
func (s *Store) Remove(ctx context.Context, ref string) error {
	if err := errors.Join(ctx.Err(), s.writable()); err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.RLock()
	id, err := s.resolve(ref)
	s.mu.RUnlock()
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Remove(s.imagePath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	s.mu.Lock()
	s.drop(id)
	s.mu.Unlock()
	// Unsynced, a power cut could bring the record back without its bytes. Open would put it aside, but
	// a removed image that is listed again is a surprise.
	if err := store.SyncDir(s.path(imagesDir)); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return s.collect()
}
