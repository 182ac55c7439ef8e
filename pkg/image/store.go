package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image/internal/manifest"
	"github.com/cri-server/cri-server/pkg/image/internal/registry"
	"github.com/cri-server/cri-server/pkg/image/internal/unpack"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Config says where images live and where they come from. The zero value of every field but Root is a
// sound default.
type Config struct {
	Root      string   // directory of the store, made with mode 0700; one filesystem
	CertsDir  string   // directories with <host>/hosts.toml, separated by ":"; read at every pull
	AuthFiles []string // docker-style credential files; read at every pull
	Mirror    string   // base URL that is asked for every registry; "" is none
	Platform  string   // "os/architecture[/variant]"; "" is this machine's
	Pinned    []string // references of images that are never to be garbage collected
	Parallel  int      // layers of one image fetched at a time; 0 is 3
	ReadOnly  bool     // look only, as an audit beside a running server does: nothing is repaired

	StallInterval time.Duration // a transfer that moves less than StallBytes in this time is taken from the next host; 0 is 30 s
	StallBytes    int64         // 0 is 32 KiB
}

// Store keeps images. Its methods may be called from several goroutines.
type Store struct {
	cfg      Config
	platform manifest.Platform
	pool     registry.Pool
	limits   unpack.Limits // of tests
	noroot   bool          // of tests: unpack without privileges
	backoff  time.Duration // of tests: before a failed request is repeated
	lock     *os.File

	// change is held across every alteration of what is on disk but for temporary files; mu across those
	// of the maps. Order: change, then mu.
	change sync.Mutex
	mu     sync.RWMutex
	images map[string]*record
	shown  map[string]*Image // what List and Get hand out, made at each change
	tags   map[string]string // name:tag or name@digest -> id
	layers map[string]layerRecord
	blobs  map[string]int64 // digest -> size
	rootfs map[string]*rootfsRecord
	owners map[string]*ownerRecord
	pins   map[string]int // chain IDs and blob digests that pulls under way need
	seq    uint64         // of tags: the higher one is the later

	flights    flights
	layerLock  keyLock // by chain ID
	rootfsLock keyLock // by container
	syncer     syncer
	usage      usageCache
	trash      trashCan
}

// Open opens the store at cfg.Root, making it when it is not there, and repairs what a crash left:
// temporary files, layers and blobs that no record names, records whose bytes are gone. The lock it takes
// is errs.Conflict for a second one. The caller closes the store.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Root) {
		return nil, errs.New(errs.Invalid, "image directory %q: not an absolute path", cfg.Root)
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 3
	}
	platform, err := manifest.ParsePlatform(cfg.Platform)
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, platform: platform,
		images: map[string]*record{}, shown: map[string]*Image{}, tags: map[string]string{}, layers: map[string]layerRecord{}, blobs: map[string]int64{},
		rootfs: map[string]*rootfsRecord{}, owners: map[string]*ownerRecord{}, pins: map[string]int{}}
	s.trash.dir = s.path(trashDir)
	s.noroot = os.Geteuid() != 0
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := s.recover(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// The directories of the store. DESIGN: a record implies its bytes.
const (
	blobsDir  = "blobs"
	layersDir = "layers"
	imagesDir = "images"
	rootfsDir = "rootfs"
	ownersDir = "owners" // who holds an image as a volume
	tmpDir    = "tmp"
	trashDir  = ".trash"
	emptyDir  = "empty" // two empty directories: overlayfs wants two lower layers of a read-only mount
	lockFile  = "lock"
)

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Root}, parts...)...)
}

// prepare makes the directories and takes the lock.
func (s *Store) prepare() error {
	if s.cfg.ReadOnly {
		return nil
	}
	for _, d := range []string{"", blobsDir, blobsDir + "/sha256", blobsDir + "/sha512", layersDir, imagesDir, rootfsDir, ownersDir, tmpDir, trashDir, emptyDir, emptyDir + "/a", emptyDir + "/b"} {
		mode := os.FileMode(0o700)
		if len(d) > len(emptyDir) && d[:len(emptyDir)] == emptyDir {
			mode = 0o755 // the root of an image without layers
		}
		if err := os.MkdirAll(s.path(d), mode); err != nil {
			return fmt.Errorf("image directory: %w", err)
		}
		if err := os.Chmod(s.path(d), mode); err != nil { //nolint:forbidigo // our own directory, whatever the umask
			return fmt.Errorf("image directory: %w", err)
		}
	}
	f, err := sys.LockFile(s.path(lockFile))
	if errors.Is(err, sys.ErrLocked) {
		return errs.New(errs.Conflict, "image directory %s: another cri-server uses it", s.cfg.Root)
	}
	if err != nil {
		return fmt.Errorf("image directory: %w", err)
	}
	s.lock = f
	return nil
}

// writable refuses to alter a store that was opened to look.
func (s *Store) writable() error {
	if s.cfg.ReadOnly {
		return errs.New(errs.Conflict, "image directory %s: it was opened read-only", s.cfg.Root)
	}
	return nil
}

// Close waits for removals under way, drops idle connections and gives the lock back. Pulls under way
// have to be cancelled by their callers before.
func (s *Store) Close() error {
	s.flights.wait()
	s.trash.wait()
	s.pool.Close()
	if s.lock != nil {
		return s.lock.Close()
	}
	return nil
}
