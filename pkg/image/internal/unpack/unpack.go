// Package unpack turns a layer's tar stream into a directory that overlayfs takes as a lower layer.
//
// It is a security border: every byte is hostile. No path string reaches the kernel unresolved: a parent
// directory is opened with openat2(RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS) below the layer's own
// descriptor, and the last component, which holds no slash, is used relative to that descriptor without
// following links. Links in an image may point anywhere; what is written stays below the directory.
// Entries, bytes, names, depth and extended attributes have budgets, so that no layer takes the machine
// along. Nothing is executed: compression is handled in this process.
//
// Whiteouts become what overlayfs understands: ".wh.x" a character device 0:0 named x, ".wh..wh..opq" the
// extended attribute trusted.overlay.opaque of its directory. See overlayfs.rst of the kernel and
// layer.md of the OCI image specification.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Limits are the budgets of one layer. A zero field is the default.
type Limits struct {
	Entries    int64 // tar entries
	Bytes      int64 // file contents, holes included
	Depth      int   // nested directories
	XattrBytes int64 // names and values of extended attributes
}

// DefaultLimits are generous to every image that people build and small to a bomb.
var DefaultLimits = Limits{Entries: 8 << 20, Bytes: 256 << 30, Depth: 1000, XattrBytes: 64 << 20}

// Options say how to unpack.
type Options struct {
	Limits Limits
	// Parents waits until the layers below are unpacked and returns their directories, topmost first; it
	// is asked only when an entry needs them (a hard link to a file of a lower layer, a directory that the
	// layer does not describe). Nil: there are none. The descriptors stay the callee's.
	Parents func(context.Context) ([]int, error)
	// Room is asked now and then whether there is still space to write to; its error ends the unpacking.
	// Nil: there is.
	Room func() error
	// Unprivileged leaves out what only root can do (owners, devices, overlay attributes): tests.
	Unprivileged bool
}

// Result is what a layer takes.
type Result struct {
	Bytes  int64 // rounded up to blocks, holes left out
	Inodes int64
}

// Layer unpacks the tar stream r into the empty directory dir. It reads r to its end. On an error the
// directory holds a part and the caller removes it. Errors about the archive are errs.Invalid and name
// the entry.
func Layer(ctx context.Context, dir *os.File, r io.Reader, opts Options) (Result, error) {
	u, err := newUnpacker(ctx, dir, opts)
	if err != nil {
		return Result{}, err
	}
	defer u.close()
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Result{}, archiveError(err)
		}
		if err := u.count(hdr); err != nil {
			return Result{}, entryError(hdr, err)
		}
		if err := u.entry(hdr, tr); err != nil {
			return Result{}, entryError(hdr, err)
		}
	}
	if err := drain(r); err != nil {
		return Result{}, err
	}
	if err := u.finish(); err != nil {
		return Result{}, err
	}
	return u.result, nil
}

// maxTrailer is how much may follow the end of an archive: writers pad to their block size.
const maxTrailer = 64 << 20

// drain reads what follows the end of the archive, since it is part of the digest.
func drain(r io.Reader) error {
	n, err := io.CopyN(io.Discard, r, maxTrailer)
	if err == nil || n == maxTrailer {
		return errs.New(errs.Invalid, "layer: more than %d bytes follow the end of the archive", maxTrailer)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func archiveError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Invalid, "layer: not a sound tar archive: %w", err)
	}
	return fmt.Errorf("layer: %w", err)
}

func entryError(hdr *tar.Header, err error) error {
	name := hdr.Name
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	var errno unix.Errno
	if errs.KindOf(err) == errs.Unknown && errors.As(err, &errno) {
		switch errno {
		case unix.ELOOP, unix.ENOTDIR, unix.EISDIR, unix.EINVAL, unix.ENAMETOOLONG, unix.EXDEV, unix.ENOENT, unix.EEXIST, unix.EPERM, unix.EACCES, unix.ERANGE, unix.E2BIG:
			return errs.New(errs.Invalid, "layer entry %q: %w", name, err)
		case unix.ENOSPC, unix.EDQUOT:
			return errs.New(errs.Exhausted, "layer entry %q: %w. Free space below the image directory", name, err)
		}
	}
	return fmt.Errorf("layer entry %q: %w", name, err)
}

type unpacker struct {
	ctx    context.Context //nolint:containedctx // lives for one call
	root   int
	opts   Options
	lim    Limits
	result Result

	entries, bytes, xattrs int64
	unasked                int64 // bytes written since Room was asked

	dirs     map[uint64]*dirInfo // inode of every directory made here
	implicit []string            // directories that no entry described yet, as cleaned paths
	done     map[string]bool     // directories that an entry described

	cachePath  string // the parent that was opened last
	cacheFD    int
	cacheDepth int

	buf []byte

	asked   bool // for the layers below
	parents []int
}

// dirInfo is what is known of a directory made by this layer.
type dirInfo struct {
	depth int
	path  string
	mtime *[2]unix.Timespec // set last, since every child changes it
}

func newUnpacker(ctx context.Context, dir *os.File, opts Options) (*unpacker, error) {
	root, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	u := &unpacker{ctx: ctx, root: root, opts: opts, lim: opts.Limits, dirs: map[uint64]*dirInfo{}, done: map[string]bool{}, cacheFD: -1}
	d := DefaultLimits
	pick := func(have *int64, def int64) {
		if *have == 0 {
			*have = def
		}
	}
	pick(&u.lim.Entries, d.Entries)
	pick(&u.lim.Bytes, d.Bytes)
	pick(&u.lim.XattrBytes, d.XattrBytes)
	if u.lim.Depth == 0 {
		u.lim.Depth = d.Depth
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		unix.Close(root)
		return nil, os.NewSyscallError("fstat", err)
	}
	u.dirs[st.Ino] = &dirInfo{path: "."}
	u.implicit = []string{"."}
	return u, nil
}

func (u *unpacker) close() {
	u.forget()
	unix.Close(u.root)
}

// forget drops the cached parent: something may have taken the place of a directory on its path.
func (u *unpacker) forget() {
	if u.cacheFD >= 0 {
		unix.Close(u.cacheFD)
		u.cacheFD, u.cachePath = -1, ""
	}
}

// count charges an entry to the budgets before anything is made of it.
func (u *unpacker) count(hdr *tar.Header) error {
	if u.entries++; u.entries > u.lim.Entries {
		return errs.New(errs.Invalid, "the layer has more than %d entries", u.lim.Entries)
	}
	if u.entries%256 == 0 && u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	if len(hdr.Name) >= unix.PathMax || len(hdr.Linkname) >= unix.PathMax {
		return errs.New(errs.Invalid, "its name is longer than the kernel takes")
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		if hdr.Size < 0 || hdr.Size > u.lim.Bytes-u.bytes {
			return errs.New(errs.Invalid, "the layer unpacks to more than %d bytes", u.lim.Bytes)
		}
		u.bytes += hdr.Size
	}
	return nil
}
