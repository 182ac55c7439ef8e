package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// usageCache remembers what writable layers take, so that asking for sums is no walk over the disk.
type usageCache struct {
	mu sync.Mutex
	m  map[string]sample
}

type sample struct {
	usage Usage
	at    time.Time
}

const (
	freshFor = 10 * time.Second // what RootfsUsage answers from memory
	staleFor = 5 * time.Minute  // what FsUsage does
)

func (c *usageCache) get(id string, age time.Duration) (Usage, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.m[id]
	return s.usage, ok && time.Since(s.at) < age
}

func (c *usageCache) put(id string, u Usage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[string]sample{}
	}
	c.m[id] = sample{u, time.Now()}
}

func (c *usageCache) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.m, id)
}

// RootfsUsage tells what the writable layer of a container takes, at most ten seconds old. It walks the
// layer when what it knows is older. An unknown container is errs.NotFound.
func (s *Store) RootfsUsage(containerID string) (Usage, error) {
	return s.rootfsUsage(containerID, freshFor)
}

func (s *Store) rootfsUsage(containerID string, age time.Duration) (Usage, error) {
	s.mu.RLock()
	r := s.rootfs[containerID]
	s.mu.RUnlock()
	if r == nil {
		return Usage{}, errs.New(errs.NotFound, "root filesystem of container %.150q: there is none", containerID)
	}
	if u, ok := s.usage.get(containerID, age); ok {
		return u, nil
	}
	u, err := treeUsage(s.path(rootfsDir, containerID, "upper"))
	if err != nil {
		return Usage{}, fmt.Errorf("usage of container %s: %w", containerID, err)
	}
	u.Mountpoint = s.cfg.Root
	s.usage.put(containerID, u)
	return u, nil
}

// FsUsage sums up what images (layers and blobs) and containers (writable layers) take. It is cheap: what
// it does not know exactly is minutes old.
func (s *Store) FsUsage(ctx context.Context) (images, containers Usage, err error) {
	images.Mountpoint, containers.Mountpoint = s.cfg.Root, s.cfg.Root
	s.mu.RLock()
	for _, l := range s.layers {
		images.Bytes += l.Bytes
		images.Inodes += l.Inodes
	}
	for _, size := range s.blobs {
		images.Bytes += uint64(size)
		images.Inodes++
	}
	s.mu.RUnlock()
	ids, err := s.Rootfses()
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return images, containers, err
		}
		u, err := s.rootfsUsage(id, staleFor)
		if errs.Is(err, errs.NotFound) || errors.Is(err, os.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return images, containers, err
		}
		containers.Bytes += u.Bytes
		containers.Inodes += u.Inodes
	}
	return images, containers, err
}

// treeUsage adds up a tree the way du does: allocated blocks, a file with several names once. Nothing is
// followed, and what disappears while it looks does not count.
func treeUsage(dir string) (Usage, error) {
	d, err := os.Open(dir) //nolint:forbidigo // our own state directory
	if err != nil {
		return Usage{}, err
	}
	defer d.Close()
	w := usageWalk{seen: map[uint64]bool{}}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return Usage{}, err
	}
	w.add(&st)
	err = w.dir(d, 0)
	return w.Usage, err
}

type usageWalk struct {
	Usage
	seen map[uint64]bool
}

const maxUsageDepth = 2000 // a container may nest directories without end, and a descriptor is held per level

func (w *usageWalk) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if w.seen[st.Ino] {
			return
		}
		w.seen[st.Ino] = true
	}
	w.Inodes++
	w.Bytes += uint64(st.Blocks) * 512
}

func (w *usageWalk) dir(d *os.File, depth int) error {
	if depth > maxUsageDepth {
		return nil
	}
	for {
		names, _ := d.Readdirnames(1024)
		if len(names) == 0 {
			return nil
		}
		for _, n := range names {
			var st unix.Stat_t
			if unix.Fstatat(int(d.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			w.add(&st)
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			fd, err := unix.Openat(int(d.Fd()), n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
				return err
			}
			if err != nil {
				continue
			}
			sub := os.NewFile(uintptr(fd), n)
			err = w.dir(sub, depth+1)
			sub.Close()
			if err != nil {
				return err
			}
		}
	}
}
