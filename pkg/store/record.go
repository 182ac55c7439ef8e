// Package store keeps versioned records that survive a crash.
//
// A record is one JSON file with an envelope of kind and version and a checksum of its body. Files are
// replaced whole (temporary file in the same directory, rename), so a reader sees the old record or the
// new one. Whoever asks for Sync pays an fsync of file and directory; pod records do not (after a power
// cut no pod runs), image records do.
package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

type envelope struct {
	Kind    string          `json:"kind"`
	Version int             `json:"version"`
	Sum     string          `json:"sum"`
	Body    json.RawMessage `json:"body"`
}

// ErrTorn is wrapped by Read for a record that is truncated, garbled or of another kind: it says nothing
// that can be trusted. Quarantine moves such a file out of the way.
var ErrTorn = errors.New("torn record")

// Schema names one kind of record and the newest version this build reads and writes.
type Schema struct {
	Kind    string
	Version int
}

const tmpPrefix = ".tmp-"

// Write replaces the record at path with v. With sync, the bytes and the name are on disk when it returns.
// Mode is 0600. A failure leaves the former record.
func (s Schema) Write(path string, v any, sync bool) (err error) {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s record %s: %w", s.Kind, path, err)
	}
	sum := sha256.Sum256(body)
	data, err := json.Marshal(envelope{s.Kind, s.Version, hex.EncodeToString(sum[:]), json.RawMessage(bodyMark)})
	if err != nil {
		return fmt.Errorf("encode %s record %s: %w", s.Kind, path, err)
	}
	head := data[:len(data)-len(bodyMark)-1] // the body is valid and compact: it need not be read again
	data = append(append(append(make([]byte, 0, len(head)+len(body)+2), head...), body...), '}', '\n')
	return WriteFile(path, data, 0o600, sync)
}

// bodyMark stands for the body, which is the last field of an envelope.
const bodyMark = "0"

// Read decodes the record at path into v. A missing file is errs.NotFound; a record that cannot be
// trusted wraps ErrTorn; one of a newer version than this build knows is errs.Unsupported and is left
// as it is, since a newer cri-server wrote it.
func (s Schema) Read(path string, v any) error {
	data, err := os.ReadFile(path) //nolint:forbidigo // our own 0700 state directory
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "%s record %s: %w", s.Kind, path, err)
	}
	if err != nil {
		return fmt.Errorf("read %s record: %w", s.Kind, err)
	}
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("%s record %s: %w: %w", s.Kind, path, ErrTorn, err)
	}
	if e.Kind != s.Kind {
		return fmt.Errorf("%s record %s: %w: it is of kind %q", s.Kind, path, ErrTorn, e.Kind)
	}
	if e.Version < 1 || e.Version > s.Version {
		return errs.New(errs.Unsupported, "%s record %s: written with version %d, this build knows 1 to %d. Start the cri-server that wrote it, or remove the file", s.Kind, path, e.Version, s.Version)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, e.Body); err != nil {
		return fmt.Errorf("%s record %s: %w: %w", s.Kind, path, ErrTorn, err)
	}
	if sum := sha256.Sum256(compact.Bytes()); hex.EncodeToString(sum[:]) != e.Sum {
		return fmt.Errorf("%s record %s: %w: its checksum does not match", s.Kind, path, ErrTorn)
	}
	if err := json.Unmarshal(e.Body, v); err != nil {
		return fmt.Errorf("%s record %s: %w: %w", s.Kind, path, ErrTorn, err)
	}
	return nil
}

// WriteFile replaces the file at path with data, whole. With sync, bytes and name are on disk when it returns.
func WriteFile(path string, data []byte, mode os.FileMode, sync bool) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tmpPrefix+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err == nil && mode != 0o600 { // CreateTemp's own
		err = f.Chmod(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if !sync {
		return replace(f.Name(), path)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// replace renames tmp to path by exchanging the two. A rename onto a file makes ext4 write the new one's data out and
// free the old one's blocks before it returns, which without a sync nobody asked for; the exchanged old file mostly
// has none yet.
func replace(tmp, path string) error {
	switch err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err {
	case nil:
		return os.Remove(tmp)
	case unix.ENOENT, unix.EINVAL, unix.ENOSYS: // nothing to replace, or a filesystem that cannot
		return os.Rename(tmp, path)
	default:
		return &os.LinkError{Op: "rename", Old: tmp, New: path, Err: err}
	}
}

// SyncDir flushes the names in dir to disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir) //nolint:forbidigo // our own state directory
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Quarantine renames the file at path to path + ".torn" beside it (replacing an older one) and returns the new name.
func Quarantine(path string) (string, error) {
	to := path + ".torn"
	if err := os.Rename(path, to); err != nil {
		return "", fmt.Errorf("quarantine %s: %w", path, err)
	}
	return to, nil
}

// SweepTemp removes what a crash between creating and renaming a temporary file left in dir.
func SweepTemp(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Trash makes removal of the tree at path one rename: it moves path into trash (created when missing, on
// the same filesystem) and returns its new name there for a later RemoveAll. A missing path is ("", nil).
// Of trees with the same base name the later takes another one there.
func Trash(trash, path string) (string, error) {
	for to := filepath.Join(trash, filepath.Base(path)); ; {
		err := os.Rename(path, to)
		switch {
		case err == nil:
			return to, nil
		case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
			slot, err := os.MkdirTemp(trash, filepath.Base(path)+"-")
			if err != nil {
				return "", err
			}
			to = filepath.Join(slot, "x")
			if err := os.Rename(path, to); err != nil {
				_ = os.Remove(slot)
				return "", missing(err)
			}
			return slot, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		}
		if _, serr := os.Lstat(trash); serr == nil {
			return "", missing(err)
		}
		if err := os.MkdirAll(trash, 0o700); err != nil {
			return "", err
		}
	}
}

func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
