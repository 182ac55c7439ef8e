package runtime

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/program"
)

// Prepared is a process that only has to be launched: launch.Start(&p.Request, p.Files, stdio), here or in
// a shim. It can be started once.
type Prepared struct {
	Request  launch.Request
	Files    []*os.File // belong to Request's indexes
	Warnings []string   // what was asked for and could not be had, where that is no error

	id    string
	prog  *program.Program
	owned []*os.File
	hints map[int]hint

	elsewhere func(*launch.OpError) error // explains what another process compiled
	done      func()
}

// Received is a Prepared that another process made and sent: its request, its files, which become the
// Prepared's, and its warnings. explain says what the failure of an operation means, and done is called once,
// by Close.
func Received(req launch.Request, files []*os.File, warnings []string, explain func(*launch.OpError) error, done func()) *Prepared {
	return &Prepared{Request: req, Files: files, Warnings: warnings, owned: files, elsewhere: explain, done: done}
}

// hint says how the failure of one operation reads.
type hint func(e syscall.Errno) error

// Close closes the descriptors that preparation opened. Those of the options stay open. It is idempotent
// and to be called after Start, whatever came of it.
func (p *Prepared) Close() {
	for _, f := range p.owned {
		f.Close()
	}
	p.owned = nil
	if p.done != nil {
		p.done()
		p.done = nil
	}
}

// Text is the program, readable. One that was Received is not.
func (p *Prepared) Text() string { return p.prog.Text() }

// Explain turns an error of launch.Start or Process.Release for this program into one that says what
// failed: "mount /data: source /srv/data: no such file or directory". Errors it cannot say more about
// come back as they are; nil is nil. The errno stays in the chain. What the configuration or the image is to
// blame for has a kind of pkg/errs.
func (p *Prepared) Explain(err error) error {
	var op *launch.OpError
	if !errors.As(err, &op) {
		return err
	}
	if p.elsewhere != nil {
		return p.elsewhere(op)
	}
	subject, call := p.prog.What(op.Index)
	if h := p.hints[op.Index]; h != nil {
		err = h(op.Errno)
	} else if subject != "" {
		err = fmt.Errorf("%s (container %s): %s: %w", subject, p.id, call, op.Errno)
	} else {
		return fmt.Errorf("container %s: %w", p.id, err)
	}
	switch op.Errno {
	case unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EEXIST: // a path of the configuration, or of the image
		if errs.KindOf(err) == errs.Unknown {
			return errs.With(errs.Invalid, err)
		}
	}
	return err
}

// files collects the descriptors of a request.
type files struct {
	list  []*os.File
	child []int
	owned []*os.File
}

// add gives f a number in the child, and closes it with the Prepared when it is ours.
func (f *files) add(file *os.File, ours bool) int {
	f.list = append(f.list, file)
	f.child = append(f.child, len(f.list)-1)
	if ours {
		f.owned = append(f.owned, file)
	}
	return launch.FirstFD + len(f.child) - 1
}

// reserve takes a number in the child whose file is not known yet.
func (f *files) reserve() int {
	f.child = append(f.child, -1)
	return launch.FirstFD + len(f.child) - 1
}

// keep adds a file that the launcher needs and the child does not, and returns its index.
func (f *files) keep(file *os.File, ours bool) int {
	f.list = append(f.list, file)
	if ours {
		f.owned = append(f.owned, file)
	}
	return len(f.list) - 1
}

func (f *files) close() {
	for _, file := range f.owned {
		file.Close()
	}
	f.owned = nil
}

// compile runs a compilation and seals its program. On failure everything it opened is closed.
func (c *compiler) compile(name string, write func(c *compiler) error) (*Prepared, error) {
	err := write(c)
	if err == nil {
		var p *Prepared
		if p, err = c.seal(name); err == nil {
			return p, nil
		}
	}
	c.files.close()
	return nil, err
}

// seal makes the Prepared of a finished compilation.
func (c *compiler) seal(name string) (*Prepared, error) {
	sealed, err := c.p.Seal(name)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", c.id, err)
	}
	c.req.Program = c.files.keep(sealed, true)
	if err := c.fillProcfs(); err != nil {
		return nil, err
	}
	c.req.Files = c.files.child
	return &Prepared{
		Request: c.req, Files: c.files.list, Warnings: c.warnings,
		id: c.id, prog: c.p, owned: c.files.owned, hints: c.hints,
	}, nil
}

// compiler is one compilation: the program being built and what it is built from.
type compiler struct {
	id       string
	host     host
	p        *program.Program
	req      launch.Request
	files    files
	warnings []string
	hints    map[int]hint

	confined    bool           // Options.Confined
	target      int            // child descriptor of the pidfd that exec joins
	latePID     bool           // the PID namespace is joined, and entered last
	contexts    []program.Slot // filesystem contexts of its procfs mounts, in their order
	procfsFD    int            // child descriptor that is kept for a detached procfs, 0: none
	wantsProcfs bool           // the program writes to it
	dst         program.Slot
	aux         program.Slot
	mode        program.Slot // of a directory that is mounted on
	moded       bool         // mode is there
	buf         program.Buf
	mounted     map[string]bool // destinations that have been mounted so far
}

func newCompiler(id string, h host) *compiler {
	c := &compiler{id: id, host: h, p: program.New(), hints: map[int]hint{}, mounted: map[string]bool{}}
	c.req.Cgroup = -1
	c.dst, c.aux = c.p.Slot("dst"), c.p.Slot("aux")
	c.buf = c.p.Buf("buf", 256) // a struct statx
	return c
}

// hint sets how the failure of the operation just added reads.
func (c *compiler) hint(h hint) { c.hints[c.p.Len()-1] = h }

// Short forms for arguments.
var (
	cwd   = program.Int(unix.AT_FDCWD)
	nilp  = program.Int(0)
	empty = program.Int(unix.AT_EMPTY_PATH)
)

func num[T ~int | ~uint | ~uintptr | ~uint32 | ~uint64 | ~int32 | ~int64](v T) program.Arg {
	return program.Int(v)
}

// open adds an openat2 of path below the descriptor at.
func (c *compiler) open(at program.Arg, path string, flags int, resolve uint64) *program.Op {
	return c.p.Call(unix.SYS_OPENAT2, at, c.p.Str(path), c.p.How(flags, 0, resolve), num(unix.SizeofOpenHow))
}

func (c *compiler) close(s program.Slot) { c.p.Call(unix.SYS_CLOSE, s.Val()) }
