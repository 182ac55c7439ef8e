// Package exitrec reads and writes exit.json, the record of how a container ended.
//
// The shim writes it, and must not carry a JSON library for that: the file is one flat JSON object on one
// line with a fixed order of fields, closed by a checksum over all that stands before it, so that a small
// strict parser can tell a whole record from a torn one. It is replaced whole and never changed.
package exitrec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Name is the file's name in the container's directory.
const Name = "exit.json"

const tempName = ".tmp-exit.json" // pkg/store's sweep of temporary files knows the prefix

// Record says how a container ended.
type Record struct {
	ID         string // of the container
	Pid        int    // in the host's PID namespace
	ExitCode   int    // as shells report it: 128+n for signal n
	Signal     int    // that killed it, 0 when it exited by itself
	OOMKilled  bool   // the kernel killed a process of its cgroup for want of memory
	StartedAt  time.Time
	FinishedAt time.Time
}

const head = `{"kind":"exit","version":1,"id":`

// Marshal formats the record. An ID with other characters than those of names is an error.
func (r *Record) Marshal() ([]byte, error) {
	for i := range len(r.ID) {
		if c := r.ID[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return nil, fmt.Errorf("exit record: container ID %q has a character that no ID has", r.ID)
		}
	}
	b := append(make([]byte, 0, 256), head...)
	b = append(append(append(b, '"'), r.ID...), '"')
	num := func(name string, v int64) {
		b = append(append(append(b, `,"`...), name...), `":`...)
		b = strconv.AppendInt(b, v, 10)
	}
	num("pid", int64(r.Pid))
	num("exitCode", int64(r.ExitCode))
	num("signal", int64(r.Signal))
	b = append(b, `,"oomKilled":`...)
	b = strconv.AppendBool(b, r.OOMKilled)
	num("startedAt", r.StartedAt.UnixNano())
	num("finishedAt", r.FinishedAt.UnixNano())
	return appendSum(b), nil
}

func appendSum(b []byte) []byte { return fmt.Appendf(b, ",\"sum\":\"%016x\"}\n", fnv1a(b)) }

// fnv1a is the 64-bit FNV-1a hash: it finds torn and flipped bytes, which is all that is asked of it.
func fnv1a(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// ErrTorn is wrapped by the error for a record that cannot be trusted.
var ErrTorn = errors.New("torn record")

// Unmarshal parses what Marshal wrote; anything else wraps ErrTorn, and a record of a newer version is
// errs.Unsupported.
func Unmarshal(b []byte) (*Record, error) {
	const open = `{"kind":"exit","version":`
	if v, ok := bytes.CutPrefix(b, []byte(open)); ok && !bytes.HasPrefix(v, []byte("1,")) {
		if n, _, ok := bytes.Cut(v, []byte{','}); ok {
			if _, err := strconv.ParseUint(string(n), 10, 16); err == nil {
				return nil, errs.New(errs.Unsupported, "exit record: written with version %s, this build knows 1", n)
			}
		}
	}
	i := bytes.LastIndex(b, []byte(`,"sum":`))
	if i < 0 || !bytes.HasPrefix(b, []byte(head)) || !bytes.Equal(appendSum(bytes.Clone(b[:i])), b) {
		return nil, fmt.Errorf("exit record: %w", ErrTorn)
	}
	p := parser{rest: b[len(head):i]}
	r := &Record{ID: p.id()}
	r.Pid = int(p.num("pid", 32))
	r.ExitCode = int(p.num("exitCode", 32))
	r.Signal = int(p.num("signal", 32))
	r.OOMKilled = p.flag("oomKilled")
	r.StartedAt = time.Unix(0, p.num("startedAt", 64))
	r.FinishedAt = time.Unix(0, p.num("finishedAt", 64))
	if p.bad || len(p.rest) != 0 {
		return nil, fmt.Errorf("exit record: %w", ErrTorn)
	}
	return r, nil
}

type parser struct {
	rest []byte
	bad  bool
}

func (p *parser) id() string {
	v, ok := bytes.CutPrefix(p.rest, []byte{'"'})
	end := bytes.IndexByte(v, '"')
	if !ok || end < 0 {
		p.bad = true
		return ""
	}
	p.rest = v[end+1:]
	return string(v[:end])
}

func (p *parser) value(name string) string {
	v, ok := bytes.CutPrefix(p.rest, []byte(`,"`+name+`":`))
	if !ok {
		p.bad = true
		return ""
	}
	end := bytes.IndexByte(v, ',')
	if end < 0 {
		end = len(v)
	}
	p.rest = v[end:]
	return string(v[:end])
}

func (p *parser) num(name string, bits int) int64 {
	n, err := strconv.ParseInt(p.value(name), 10, bits)
	p.bad = p.bad || err != nil
	return n
}

func (p *parser) flag(name string) bool {
	v := p.value(name)
	p.bad = p.bad || v != "true" && v != "false"
	return v == "true"
}

// Write puts the record into the directory dir, whole or not at all. It is not synced: after a power cut
// no container runs, and what was not told is told as lost.
func Write(dir *os.File, r *Record) error {
	b, err := r.Marshal()
	if err != nil {
		return err
	}
	d := int(dir.Fd())
	fd, err := unix.Openat(d, tempName, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: tempName, Err: err}
	}
	f := os.NewFile(uintptr(fd), tempName)
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = unix.Renameat(d, tempName, d, Name)
	}
	if err != nil {
		_ = unix.Unlinkat(d, tempName, 0)
		return fmt.Errorf("write exit record: %w", err)
	}
	return nil
}

// Read reads the record from the directory. A missing one is errs.NotFound.
func Read(dir string) (*Record, error) {
	f, err := os.Open(dir + "/" + Name) //nolint:forbidigo // our own 0700 state directory
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "exit record: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("exit record: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return nil, fmt.Errorf("exit record: %w", err)
	}
	return Unmarshal(b)
}
