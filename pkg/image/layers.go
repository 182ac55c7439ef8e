package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image/internal/registry"
	"github.com/cri-server/cri-server/pkg/image/internal/unpack"
)

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// room refuses to fill the disk to its last byte, which would take every pod of the machine along: an image
// that claims, or unpacks to, more than there is ends here. need is what is about to be written.
func (s *Store) room(need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Root, &st); err != nil {
		return fmt.Errorf("image directory: %w", err)
	}
	keep := min(uint64(1<<30), st.Blocks*uint64(st.Bsize)/50)
	if free := st.Bavail * uint64(st.Bsize); free < keep+uint64(need) {
		return errs.New(errs.Exhausted, "image directory %s: %d bytes are free, %d are needed and %d kept free. Remove images or containers", s.cfg.Root, free, need, keep)
	}
	return nil
}

// layers fetches and unpacks what is missing. Layers go at the same time, lowest first; a layer waits for
// those below it only where its tar needs them.
func (p *pull) layers(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.s.cfg.Parallel)
	jobs := make([]*layerJob, len(p.man.Layers))
	first := map[string]*layerJob{} // by blob: the same one is fetched once
	for i, l := range p.man.Layers {
		j := &layerJob{p: p, index: i, desc: l, chain: p.conf.ChainIDs[i], diffID: string(p.conf.RootFS.DiffIDs[i]), below: jobs[:i], done: make(chan struct{}), twin: first[string(l.Digest)]}
		jobs[i] = j
		if j.twin == nil {
			first[string(l.Digest)] = j
		}
		j.tell("waiting", 0)
	}
	for _, j := range jobs {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := j.run(ctx); err != nil {
				return err
			}
			close(j.done)
			return nil
		})
	}
	return g.Wait()
}

// layerJob brings one layer into the store.
type layerJob struct {
	p             *pull
	index         int
	desc          ocispec.Descriptor
	chain, diffID string
	below         []*layerJob
	twin          *layerJob // an earlier layer with the same blob
	done          chan struct{}
}

func (j *layerJob) tell(phase string, done int64) {
	j.p.progress(Progress{Layer: string(j.desc.Digest), Done: done, Total: j.desc.Size, Phase: phase})
}

func (j *layerJob) run(ctx context.Context) error {
	if j.twin != nil {
		if err := j.twin.wait(ctx); err != nil {
			return err
		}
	}
	unlock, err := j.p.s.layerLock.lock(ctx, j.chain)
	if err != nil {
		return err
	}
	defer unlock()
	if have, err := j.exists(); have || err != nil {
		j.tell("exists", j.desc.Size)
		return err
	}
	for try := 0; ; try++ {
		again, err := j.attempt(ctx, strconv.Itoa(j.index)+"-"+strconv.Itoa(try))
		if err == nil {
			j.tell("done", j.desc.Size)
			return nil
		}
		if !again || ctx.Err() != nil {
			return err
		}
	}
}

func (j *layerJob) wait(ctx context.Context) error {
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// exists reports whether the layer is in the store, and notes its blob when that is too. A manifest that gives a blob
// that is there another size is refused, as it is when the blob has to be fetched.
func (j *layerJob) exists() (bool, error) {
	s := j.p.s
	s.mu.RLock()
	_, have := s.layers[j.chain]
	size, blob := s.blobs[string(j.desc.Digest)]
	s.mu.RUnlock()
	if blob && size != j.desc.Size {
		return false, errs.New(errs.Invalid, "layer %s: it has %d bytes, and the manifest says %d", j.desc.Digest, size, j.desc.Size)
	}
	if have && blob {
		j.note()
	}
	return have, nil
}

func (j *layerJob) note() {
	j.p.mu.Lock()
	j.p.stored[string(j.desc.Digest)] = j.desc.Size
	j.p.mu.Unlock()
}

// attempt downloads and unpacks at the same time into temporary files, and moves them into place when
// digest, size and diff ID are right. again says that another host may do better.
func (j *layerJob) attempt(ctx context.Context, name string) (again bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := j.p.s.room(j.desc.Size); err != nil {
		return false, err
	}
	dir := j.p.tmp("layer-" + name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return false, err
	}
	in, err := j.open(ctx, j.p.tmp("blob-"+name))
	if err != nil {
		return false, err
	}
	defer func() { _ = in.close() }()
	res, err := j.unpack(ctx, dir, in)
	if err != nil {
		return in.retry(err), err
	}
	if err := in.close(); err != nil {
		return false, err
	}
	rec := layerRecord{Chain: j.chain, DiffID: j.diffID, Bytes: uint64(res.Bytes), Inodes: uint64(res.Inodes)}
	if err := layerSchema.Write(filepath.Join(dir, "layer.json"), rec, false); err != nil {
		return false, err
	}
	return false, j.commit(dir, in.file, rec)
}

// unpack runs the blob through decompression and the unpacker and holds blob and tar to their digests.
func (j *layerJob) unpack(ctx context.Context, dir string, in *blobInput) (res unpack.Result, err error) {
	defer func() {
		if err == nil || in.stream == nil {
			return
		}
		// Bytes that do not unpack may be bytes that a host made up: the blob's digest tells which.
		if errs.Is(err, errs.Invalid) && ctx.Err() == nil {
			_, _ = io.Copy(io.Discard, in)
		}
		if serr := in.stream.Err(); serr != nil {
			err = serr // the cause, and its first words are what a kubelet looks for
		}
	}()
	diff := filepath.Join(dir, "diff")
	if err := os.Mkdir(diff, 0o755); err != nil {
		return res, err
	}
	if err := os.Chmod(diff, 0o755); err != nil { //nolint:forbidigo // just made, whatever the umask
		return res, err
	}
	d, err := os.Open(diff) //nolint:forbidigo // just made
	if err != nil {
		return res, err
	}
	defer d.Close()
	tarStream, err := unpack.Decompress(in)
	if err != nil {
		return res, err
	}
	diffID, err := registry.NewVerifier(j.diffID)
	if err != nil {
		return res, err
	}
	opts := unpack.Options{Limits: j.p.s.limits, Unprivileged: j.p.s.noroot, Parents: j.parents, Room: func() error { return j.p.s.room(0) }}
	res, err = unpack.Layer(ctx, d, io.TeeReader(tarStream, diffID), opts)
	tarStream.Close() // ends and waits for what reads ahead
	if err != nil {
		return res, fmt.Errorf("unpack layer %s: %w", j.desc.Digest, err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return res, err
	}
	if !diffID.Verified() {
		return res, errs.New(errs.Invalid, "layer %s: it unpacks to another diff id than %s, which the image config says", j.desc.Digest, j.diffID)
	}
	return res, nil
}

// commit moves blob and layer into place. They are not on disk before the pull's flush, which comes before
// its record: what a power cut tears no record names, and Open removes it.
func (j *layerJob) commit(dir, blob string, rec layerRecord) error {
	s := j.p.s
	if err := at("layers/unpacked"); err != nil {
		return err
	}
	j.p.wrote.Store(true)
	s.change.Lock()
	defer s.change.Unlock()
	if blob != "" {
		if err := os.Rename(blob, s.blobPath(string(j.desc.Digest))); err != nil {
			return err
		}
		s.mu.Lock()
		s.blobs[string(j.desc.Digest)] = j.desc.Size
		s.mu.Unlock()
	}
	if err := at("layers/blob"); err != nil {
		return err
	}
	if err := os.Rename(dir, s.layerPath(j.chain)); err != nil {
		return err
	}
	s.mu.Lock()
	s.layers[j.chain] = rec
	s.mu.Unlock()
	j.note()
	return at("layers/layer")
}

// parents waits for the layers below and opens them, topmost first. The unpacker does not keep them beyond
// its call; they are closed with the pull's context.
func (j *layerJob) parents(ctx context.Context) ([]int, error) {
	var fds []int
	for i := len(j.below) - 1; i >= 0; i-- {
		if err := j.below[i].wait(ctx); err != nil {
			return nil, err
		}
		fd, err := unix.Open(j.p.s.path(lowerDir(j.below[i].chain)), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { unix.Close(fd) })
		fds = append(fds, fd)
	}
	return fds, nil
}

// blobInput is a layer blob as it comes: from the network, on its way into a file, or from the store.
type blobInput struct {
	job    *layerJob
	stream *registry.Stream // nil when the blob is local
	r      io.Reader
	file   string // where the download is kept; "" when it is local
	out    *os.File
	local  *os.File
	done   int64
	told   time.Time
	closed bool
}

func (j *layerJob) open(ctx context.Context, tmp string) (*blobInput, error) {
	s := j.p.s
	in := &blobInput{job: j}
	s.mu.RLock()
	size, have := s.blobs[string(j.desc.Digest)]
	s.mu.RUnlock()
	if have && size == j.desc.Size {
		if f, err := os.Open(s.blobPath(string(j.desc.Digest))); err == nil { //nolint:forbidigo // our own state directory
			v, err := registry.NewVerifier(string(j.desc.Digest))
			if err != nil {
				f.Close()
				return nil, err
			}
			in.local, in.r = f, &checked{f, v, string(j.desc.Digest)}
			return in, nil
		}
	}
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:forbidigo // our own temporary directory
	if err != nil {
		return nil, err
	}
	in.file, in.out = tmp, out
	in.stream = j.p.src.Stream(ctx, string(j.desc.Digest), j.desc.Size)
	in.r = io.TeeReader(in.stream, out)
	return in, nil
}

func (b *blobInput) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.done += int64(n)
	if now := time.Now(); now.Sub(b.told) >= 100*time.Millisecond {
		b.told = now
		phase := "download"
		if b.stream == nil {
			phase = "unpack"
		}
		b.job.tell(phase, b.done)
	}
	return n, err
}

func (b *blobInput) retry(err error) bool { return b.stream != nil && b.stream.Retry(err) }

// close ends the transfer and closes the files; a failed close of the written file is an error, as some
// filesystems report a full disk there. It is idempotent.
func (b *blobInput) close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	if b.stream != nil {
		b.stream.Close()
	}
	if b.local != nil {
		b.local.Close()
	}
	if b.out != nil {
		return b.out.Close()
	}
	return nil
}

// checked is a local blob held to its digest: bytes are hashed again at every unpacking.
type checked struct {
	r      io.Reader
	v      *registry.Verifier
	digest string
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	_, _ = c.v.Write(p[:n])
	if err == io.EOF && !c.v.Verified() {
		return n, fmt.Errorf("blob %s is torn on disk", c.digest)
	}
	return n, err
}
