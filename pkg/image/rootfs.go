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

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// checkName holds the ids of containers and owners to what is safe as a file name.
func checkName(name string) error {
	ok := name != "" && len(name) <= 128 && name[0] != '.' && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == ""
	if !ok {
		return errs.New(errs.Invalid, "id %.150q: want letters, digits, '_', '.' and '-', at most 128", name)
	}
	return nil
}

// CreateRootfs makes the writable layer of a container of the image, owned by uid and gid, which are the
// host's ids of the container's root. The image's layers stay until RemoveRootfs, even when the image is
// removed. It survives a crash of the process, and calling it again with the same arguments is no error;
// with others it is errs.Exists. imageID may be whatever Get takes; absent is errs.NotFound.
func (s *Store) CreateRootfs(ctx context.Context, containerID, imageID string, uid, gid uint32) error {
	if err := errors.Join(checkName(containerID), s.writable()); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, err := s.rootfsLock.lock(ctx, containerID)
	if err != nil {
		return err
	}
	defer unlock()
	r, made, err := s.reserveRootfs(containerID, imageID, uid, gid)
	if err != nil {
		return err
	}
	if err := s.makeRootfs(r, made); err != nil {
		if made {
			err = errors.Join(err, s.dropRootfs(containerID))
		}
		return fmt.Errorf("root filesystem of container %s: %w", containerID, kindOf(err))
	}
	return nil
}

// reserveRootfs finds the record of a container, or makes it in memory: from then on the layers stay,
// without the lock on change that a pull holds while it flushes.
func (s *Store) reserveRootfs(containerID, imageID string, uid, gid uint32) (r *rootfsRecord, made bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := s.resolve(imageID)
	if have := s.rootfs[containerID]; have != nil { // made whole, should a crash have come in between
		if have.UID != uid || have.GID != gid || err == nil && have.Image != id {
			return nil, false, errs.New(errs.Exists, "root filesystem of container %s: it exists, of image %s for %d:%d", containerID, have.Image, have.UID, have.GID)
		}
		return have, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	r = &rootfsRecord{Container: containerID, Image: id, Layers: s.images[id].chains(), UID: uid, GID: gid}
	s.rootfs[containerID] = r
	return r, true, nil
}

// makeRootfs writes the record, then makes the directories. The root directory gets the mode of the
// image's.
func (s *Store) makeRootfs(r *rootfsRecord, write bool) error {
	dir := s.path(rootfsDir, r.Container)
	if err := mkdir(dir, 0o700); err != nil {
		return err
	}
	if write {
		if err := rootfsSchema.Write(filepath.Join(dir, "rootfs.json"), r, false); err != nil {
			return err
		}
	}
	if err := mkdir(filepath.Join(dir, "work"), 0o700); err != nil {
		return err
	}
	upper := filepath.Join(dir, "upper")
	if err := mkdir(upper, 0o755); err != nil {
		return err
	}
	mode := uint32(0o755)
	if len(r.Layers) > 0 {
		var st unix.Stat_t
		if err := unix.Stat(s.path(lowerDir(r.Layers[len(r.Layers)-1])), &st); err != nil {
			return err
		}
		mode = st.Mode & 0o7777
	}
	fd, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !s.noroot {
		if err := unix.Fchown(fd, int(r.UID), int(r.GID)); err != nil {
			return err
		}
	}
	return unix.Fchmod(fd, mode)
}

func mkdir(dir string, mode os.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// MountRootfs mounts the root filesystem of a container and returns it as a detached mount, which lives
// until it is attached or its last descriptor closes; the caller closes it. userns, when not nil, maps the
// owners of the image's files. Nothing of the writable layer is synced to disk, ever: after a power cut no
// container runs. It must not be called while the container's last mount of it lives. An unknown container
// is errs.NotFound.
func (s *Store) MountRootfs(ctx context.Context, containerID string, userns *os.File) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	r := s.rootfs[containerID]
	s.mu.RUnlock()
	if r == nil {
		return nil, errs.New(errs.NotFound, "root filesystem of container %.150q: there is none", containerID)
	}
	if err := s.freshWork(containerID); err != nil {
		return nil, fmt.Errorf("root filesystem of container %s: %w", containerID, err)
	}
	dir := filepath.Join(rootfsDir, containerID)
	f, err := sys.MountOverlay(sys.Overlay{Root: s.cfg.Root, Lower: lowerDirs(r.Layers, 1), Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Userns: userns, Volatile: true})
	if err != nil {
		return nil, fmt.Errorf("root filesystem of container %s: %w", containerID, err)
	}
	return f, nil
}

// freshWork replaces a work directory that an earlier mount used: overlayfs refuses one that a volatile
// mount has marked.
func (s *Store) freshWork(containerID string) error {
	work := s.path(rootfsDir, containerID, "work")
	entries, err := readDir(work)
	if err == nil && len(entries) > 0 {
		if err = s.trash.put(work); err == nil {
			s.trash.kick()
		}
	}
	if err != nil {
		return err
	}
	return mkdir(work, 0o700)
}

// lowerDirs lists layers the way overlayfs wants them, topmost first, filled up with empty directories to
// the least it takes.
func lowerDirs(chains []string, least int) []string {
	var out []string
	for _, c := range slices.Backward(chains) {
		out = append(out, lowerDir(c))
	}
	for i := 0; len(out) < least; i++ {
		out = append(out, filepath.Join(emptyDir, []string{"a", "b"}[i]))
	}
	return out
}

// RemoveRootfs removes the writable layer of a container, and the image's layers when nothing else needs
// them. It returns when the names are gone; the bytes follow. Removing what is not there is no error. The
// caller has unmounted it.
func (s *Store) RemoveRootfs(ctx context.Context, containerID string) error {
	if err := errors.Join(checkName(containerID), s.writable()); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, err := s.rootfsLock.lock(ctx, containerID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.dropRootfs(containerID); err != nil {
		return fmt.Errorf("root filesystem of container %s: %w", containerID, err)
	}
	return nil
}

// dropRootfs takes the directory away, then the record in memory, then layers that only it needed.
func (s *Store) dropRootfs(containerID string) error {
	if err := s.trash.put(s.path(rootfsDir, containerID)); err != nil {
		return err
	}
	s.trash.kick()
	s.usage.forget(containerID)
	s.mu.Lock()
	r := s.rootfs[containerID]
	delete(s.rootfs, containerID)
	gone := r != nil && s.images[r.Image] == nil
	s.mu.Unlock()
	if !gone {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	return s.collect()
}

// Rootfses lists the containers that have a writable layer, sorted.
func (s *Store) Rootfses() ([]string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.rootfs)), nil
}

// RootfsImage tells which image a container's root filesystem is of, by id; errs.NotFound for an unknown
// container. The image itself may be gone.
func (s *Store) RootfsImage(containerID string) (string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.rootfs[containerID]
	if r == nil {
		return "", errs.New(errs.NotFound, "root filesystem of container %.150q: there is none", containerID)
	}
	return r.Image, nil
}
