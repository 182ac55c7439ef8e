package rootless

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/sys"
)

// answer is what a helper sends back, as a file in memory: the descriptors follow in batches.
type answer struct {
	Error    *failure `json:",omitempty"`
	Request  []byte   // launch.Request
	Files    int
	Warnings []string `json:",omitempty"`
}

// failure is an error on its way.
type failure struct {
	Text  string
	Kind  errs.Kind
	Errno syscall.Errno
}

// Error is the text.
func (f *failure) Error() string { return f.Text }

// Unwrap is the errno in the chain.
func (f *failure) Unwrap() error {
	if f.Errno == 0 {
		return nil
	}
	return f.Errno
}

func fail(err error) *failure {
	f := &failure{Text: err.Error(), Kind: errs.KindOf(err)}
	errors.As(err, &f.Errno)
	return f
}

func (f *failure) error() error {
	if f.Kind == errs.Unknown {
		return f
	}
	return errs.With(f.Kind, f)
}

// question asks what the failure of an operation means.
type question struct {
	Index int
	Errno syscall.Errno
}

// batch is how many descriptors go in one message.
const batch = 200

// Main is the helper. It returns the exit status.
func Main() int {
	sock := os.NewFile(socketFD, "caller")
	if err := serve(sock); err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		return 1
	}
	return 0
}

func serve(sock *os.File) error {
	// Root of the same user namespace shall not look into us: we have more of the host than a container has.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	p, err := prepare()
	a := answer{}
	if err != nil {
		a.Error = fail(err)
		return send(sock, &a, nil)
	}
	defer p.Close()
	if a.Request, err = p.Request.MarshalBinary(); err != nil {
		a.Error = fail(err)
		return send(sock, &a, nil)
	}
	a.Files, a.Warnings = len(p.Files), p.Warnings
	if err := send(sock, &a, p.Files); err != nil {
		return err
	}
	return explain(sock, p)
}

// prepare does what the order says.
func prepare() (*runtime.Prepared, error) {
	data, err := io.ReadAll(os.NewFile(orderFD, "order"))
	if err != nil {
		return nil, err
	}
	var ord order
	if err := json.Unmarshal(data, &ord); err != nil {
		return nil, err
	}
	fd := nextFD - 1
	next := func(on bool) *os.File {
		if !on {
			return nil
		}
		fd++
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), "passed")
	}
	some := func(n int) (list []*os.File) {
		for range n {
			list = append(list, next(true))
		}
		return list
	}
	o := ord.options()
	if ord.CgroupPath != "" {
		g := &place{path: ord.CgroupPath, dir: next(ord.CgroupDir)}
		g.tasks = some(ord.Tasks)
		o.Cgroup = g
	}
	o.RdtTasks = some(ord.Rdt)
	for i, on := range ord.Hooks {
		o.HookOutput[i] = next(on)
	}
	o.ExtraFiles = some(ord.Extra)
	if ord.User {
		ns, err := os.Open("/proc/self/ns/user")
		if err != nil {
			return nil, err
		}
		o.Namespaces[specs.UserNamespace] = ns
	}
	return runtime.Prepare(context.Background(), o)
}

// place is the cgroup that the caller made and opened.
type place struct {
	path  string
	dir   *os.File
	tasks []*os.File
}

func (p *place) Path() string                   { return p.path }
func (p *place) Dir() (*os.File, error)         { return p.dir, nil }
func (p *place) TaskFiles() ([]*os.File, error) { return p.tasks, nil }

// explain answers questions until the caller goes.
func explain(sock *os.File, p *runtime.Prepared) error {
	buf := make([]byte, 256)
	for {
		n, err := sock.Read(buf)
		if err != nil || n == 0 {
			return nil //nolint:nilerr // it is gone: there is nobody to tell
		}
		var q question
		if err := json.Unmarshal(buf[:n], &q); err != nil {
			return err
		}
		f := fail(p.Explain(&launch.OpError{Index: q.Index, Errno: q.Errno}))
		if err := send(sock, &answer{Error: f}, nil); err != nil {
			return err
		}
	}
}

// send sends an answer and its descriptors.
func send(sock *os.File, a *answer, files []*os.File) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	body, err := memory("answer", data)
	if err != nil {
		return err
	}
	defer body.Close()
	files = append([]*os.File{body}, files...)
	for len(files) > 0 {
		n := min(len(files), batch)
		if err := sys.SendFDs(int(sock.Fd()), []byte{1}, files[:n]...); err != nil {
			return err
		}
		files = files[n:]
	}
	return nil
}

// receive takes what the helper sends.
func (h *helper) receive(o *runtime.Options) (*runtime.Prepared, error) {
	a, files, err := h.answer()
	if err == nil && a.Error != nil {
		err = a.Error.error()
	}
	if err != nil {
		sys.CloseAll(files)
		return nil, err
	}
	var req launch.Request
	if err := req.UnmarshalBinary(a.Request); err != nil {
		sys.CloseAll(files)
		return nil, err
	}
	req.Place = o.Place
	return runtime.Received(req, files, a.Warnings, h.explain, h.close), nil
}

// explain asks the helper.
func (h *helper) explain(op *launch.OpError) error {
	q, err := json.Marshal(question{op.Index, op.Errno})
	if err != nil {
		return op
	}
	if _, err := h.sock.Write(q); err != nil {
		return op
	}
	a, files, err := h.answer()
	sys.CloseAll(files)
	if err != nil || a.Error == nil {
		return op
	}
	return a.Error.error()
}

// answer reads one answer with its descriptors.
func (h *helper) answer() (*answer, []*os.File, error) {
	files, err := h.descriptors()
	if err != nil {
		return nil, files, err
	}
	body := files[0]
	defer body.Close()
	files = files[1:]
	var a answer
	data, err := io.ReadAll(io.NewSectionReader(body, 0, 1<<30))
	if err == nil {
		err = json.Unmarshal(data, &a)
	}
	for err == nil && len(files) < a.Files {
		var more []*os.File
		more, err = h.descriptors()
		files = append(files, more...)
	}
	return &a, files, err
}

// descriptors reads one message, which has some.
func (h *helper) descriptors() ([]*os.File, error) {
	var msg [16]byte
	oob := make([]byte, unix.CmsgSpace(4*sys.MaxFDs))
	var n, oobn, flags int
	err := error(unix.EINTR)
	for err == unix.EINTR {
		n, oobn, flags, _, err = unix.Recvmsg(int(h.sock.Fd()), msg[:], oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	if n == 0 {
		return nil, h.died()
	}
	list, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(list) != 1 || flags&unix.MSG_CTRUNC != 0 {
		return nil, errors.New("prepare: the helper's descriptors did not arrive. Is the limit of open files too low?")
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil {
		return nil, err
	}
	out := make([]*os.File, len(fds))
	for i, fd := range fds {
		out[i] = os.NewFile(uintptr(fd), "prepared")
	}
	return out, nil
}

// died says how a helper ended that sent nothing.
func (h *helper) died() error {
	ws, err := h.proc.Wait()
	if err != nil {
		return err
	}
	return fmt.Errorf("prepare: the helper ended with status %d before it answered", launch.ExitCode(ws))
}
