package launch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Start starts the program of req with descriptors out of files, which stay open and stay the caller's.
// A nil in stdio is /dev/null, with a terminal too, until the program takes its pty.
//
// It returns when the program has exec'd (a holder: has settled), or with Request.Gate when its gate is
// reached. An error means that there is no process any more: an *OpError is an operation that failed, a
// *DiedError an init that ended without a word; anything else happened on this side. Start never leaves a
// child behind.
func Start(req *Request, files []*os.File, stdio [3]*os.File) (*Process, error) {
	return start(req, files, stdio, nil)
}

// starter holds what a start in flight has opened.
type starter struct {
	req    *Request
	files  []*os.File
	stdio  [3]*os.File
	theirs []*os.File // closed once the child has them
	report *os.File   // read end
	gate   *os.File   // write end
	cons   int        // our end of the console socket, -1
	pidfd  int
	born   bool // in the request's cgroup
}

func start(req *Request, files []*os.File, stdio [3]*os.File, fifos *fifos) (*Process, error) {
	if err := req.check(len(files)); err != nil {
		return nil, err
	}
	s := &starter{req: req, files: files, stdio: stdio, cons: -1, pidfd: -1}
	defer s.close()
	attr, err := s.attr(fifos)
	if err != nil {
		return nil, fmt.Errorf("start program: %w", err)
	}
	spawn.RLock()
	defer spawn.RUnlock()
	pid, err := s.fork(attr)
	if err != nil {
		return nil, forkError(err)
	}
	return s.run(pid)
}

// forkError tells what the machine, or the limits of the cgroup that the program is born into, had no room for: the
// argument of a program is one word, so that E2BIG says that the kernel got no memory to put it into.
func forkError(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) {
		return errs.New(errs.Exhausted, "start program: fork and exec: there is no memory for it: %w", err)
	}
	return fmt.Errorf("start program: fork and exec: %w", err)
}

// run follows the new process until Start may return.
func (s *starter) run(pid int) (*Process, error) {
	p := &Process{report: s.report, gate: s.gate}
	if n := s.req.Notify; n != nil && n.Socket >= 0 {
		p.SetNotify(s.files[n.Socket], n.Message)
	}
	s.report, s.gate = nil, nil
	closeFiles(&s.theirs)
	c := register(pid)
	if s.req.Nested {
		p.init = c
		unix.Close(s.pidfd)
	} else {
		p.Pid, p.self = pid, c
		p.setPidfd(s.pidfd)
	}
	s.pidfd = -1
	if s.req.Meanwhile != nil {
		s.req.Meanwhile(pid)
	}
	gated, err := false, error(nil)
	if s.req.Held {
		err = s.place(p, pid)
	}
	if err == nil {
		gated, err = p.follow()
	}
	switch {
	case err == nil && gated && s.req.Stop:
		p.stopped = s.req
		if p.self == nil {
			p.Pid = pid // until the child is made
		}
	case err == nil:
		err = p.settle(s.req, gated)
	}
	if err == nil && s.req.Terminal && p.Console == nil {
		p.Console, err = recvConsole(s.cons)
	}
	if err != nil {
		return nil, p.abandon(err)
	}
	return p, nil
}

// place has a held program put into its cgroup, and lets it go on.
func (s *starter) place(p *Process, pid int) error {
	held, err := p.follow()
	if err == nil && !held {
		err = errors.New("start program: it did not wait for its cgroup")
	}
	if err == nil {
		err = s.req.Place(pid, s.born)
	}
	if err == nil {
		err = p.token()
	}
	return err
}

// Continue lets a program with Request.Stop go on, and is to be called once. It returns as Start does
// without: at the gate, or when the program has exec'd; on an error there is no process any more.
func (p *Process) Continue() error {
	req := p.stopped
	if req == nil {
		return nil
	}
	spawn.RLock()
	defer spawn.RUnlock()
	err := p.token()
	if err == nil {
		p.stopped = nil
		var gated bool
		if gated, err = p.follow(); err == nil {
			err = p.settle(req, gated)
		}
	}
	if err != nil {
		return p.abandon(err)
	}
	return nil
}

// settle does what is due when a program is at its gate or has exec'd.
func (p *Process) settle(req *Request, gated bool) error {
	if gated {
		if err := p.atGate(req); err != nil {
			return err
		}
	}
	if p.self == nil {
		return errors.New("start program: it reported no process")
	}
	if !gated && p.gate != nil { // Release has nothing to do
		p.gate.Close()
		p.gate = nil
	}
	if p.init != nil && p.report == nil {
		_, _ = p.init.reap() // it has nothing left to do but to exit
		p.init = nil
	}
	return nil
}

// atGate does what is due while the program waits, and lets it go on unless the caller will.
func (p *Process) atGate(req *Request) error {
	if p.self == nil {
		return errors.New("start program: at its gate it reported no process")
	}
	if p.init != nil {
		_, _ = p.init.reap()
		p.init = nil
	}
	if err := p.setOutside(req); err != nil {
		return err
	}
	if req.Gate {
		return nil
	}
	err := p.token()
	if err == nil {
		_, err = p.follow()
	}
	if p.gate != nil { // Release has nothing to do any more
		p.gate.Close()
		p.gate = nil
	}
	return err
}

// follow reads reports until the program is at a gate (true), or has exec'd or settled: then the pipe
// is closed. Errors are *OpError, *DiedError (without a status yet) or of the read. A nested child and
// its maker write independently, so what the child says may come before its pid does.
func (p *Process) follow() (gated bool, err error) {
	var ready bool
	var failed error
	var buf [RecordSize]byte
	listener := -1 // of a child whose pid is not known yet
	for {
		_, err = io.ReadFull(p.report, buf[:])
		if err == io.EOF {
			p.report.Close()
			p.report = nil
			if failed == nil && !ready {
				failed = &DiedError{}
			}
			return false, failed
		}
		if err != nil {
			return false, fmt.Errorf("read the program's report: %w", err)
		}
		kind, value := binary.NativeEndian.Uint64(buf[:]), binary.NativeEndian.Uint64(buf[8:])
		switch {
		case kind == RecordReady:
			ready = true
		case kind == RecordGate:
			gated = true
		case kind == RecordPid && p.self == nil:
			err = p.adopt(int(value))
		case kind == RecordStop:
			return true, nil
		case kind == RecordListener:
			listener = int(value)
		case kind == RecordMakerListener && p.init != nil:
			err = p.fetchListener(p.init.pid, int(value))
		case kind < RecordReady:
			if failed == nil { // the first is the cause of those that follow
				failed = &OpError{Index: int(kind), Errno: syscall.Errno(value)}
			}
		default:
			err = fmt.Errorf("the program reported %#x, which means nothing here", kind)
		}
		known := p.self != nil || p.Pid != 0 && p.init == nil // made here, or attached to
		if known && listener >= 0 && err == nil {
			err, listener = p.fetchListener(p.Pid, listener), -1
		}
		if known && err == nil {
			err = p.sendListener()
		}
		if err != nil {
			return false, err
		}
		if known && failed != nil {
			return false, failed
		}
		if known && gated {
			return true, nil
		}
	}
}

// adopt takes the child that the program cloned: ours too, by CLONE_PARENT, so its pid cannot be reused.
func (p *Process) adopt(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open the pidfd of process %d: %w", pid, err)
	}
	p.Pid, p.self = pid, register(pid)
	p.setPidfd(fd)
	return nil
}

func (p *Process) setPidfd(fd int) {
	_ = unix.SetNonblock(fd, true) // without it a wait takes a thread
	p.Pidfd = os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(p.Pid))
}

// attr opens the pipes and lays out the child's descriptors.
func (s *starter) attr(fifos *fifos) (*syscall.ProcAttr, error) {
	req := s.req
	fds := make([]uintptr, FirstFD, FirstFD+len(req.Files)+2)
	if err := s.openStdio(fds); err != nil {
		return nil, err
	}
	if err := s.openPipes(fds, fifos); err != nil {
		return nil, err
	}
	for _, i := range req.Files {
		fds = append(fds, s.files[i].Fd())
	}
	if req.Terminal {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("socketpair", err)
		}
		s.cons = pair[0]
		s.theirs = append(s.theirs, os.NewFile(uintptr(pair[1]), "console"))
		fds = append(fds, uintptr(pair[1]))
	}
	fds = append(fds, s.files[req.Program].Fd())
	sys := &syscall.SysProcAttr{Cloneflags: req.Cloneflags, PidFD: &s.pidfd}
	if cg := pick(s.files, req.Cgroup); cg != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(cg.Fd())
	}
	if req.Cloneflags&unix.CLONE_NEWUSER != 0 {
		// Group and user 0 of the namespace: exec by an unmapped user would take the capabilities away.
		sys.UidMappings, sys.GidMappings = sysMaps(req.UIDMaps), sysMaps(req.GIDMaps)
		sys.GidMappingsEnableSetgroups = req.Setgroups
		if mapsRoot(req.UIDMaps) && mapsRoot(req.GIDMaps) { // else it is there to be looked at only
			sys.Credential = &syscall.Credential{NoSetGroups: !req.Setgroups}
		}
	}
	return &syscall.ProcAttr{Files: fds, Sys: sys}, nil
}

func mapsRoot(maps []IDMap) bool {
	return slices.ContainsFunc(maps, func(m IDMap) bool { return m.ContainerID == 0 && m.Size > 0 })
}

func (s *starter) openStdio(fds []uintptr) error {
	for i, f := range s.stdio {
		if f == nil {
			null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			s.theirs = append(s.theirs, null)
			f = null
		} else if err := s.own(f); err != nil {
			return err
		}
		fds[i] = f.Fd()
	}
	return nil
}

// own gives a pipe to the user that will reopen it through /dev/stdout. Nothing else is touched: a
// terminal or file of the caller's is the caller's, and /dev/null everybody's.
func (s *starter) own(f *os.File) error {
	o := s.req.StdioOwner
	if o == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO || st.Uid == o.UID && st.Gid == o.GID {
		return nil
	}
	return os.NewSyscallError("fchown", unix.Fchown(int(f.Fd()), int(o.UID), int(o.GID)))
}

func (s *starter) openPipes(fds []uintptr, fifos *fifos) error {
	if fifos != nil {
		s.report, s.gate = fifos.report, fifos.gate
		fds[ReportFD], fds[GateFD] = fifos.childReport.Fd(), fifos.childGate.Fd()
		s.theirs = append(s.theirs, fifos.childReport, fifos.childGate) // held here, they would hide its death
		return nil
	}
	r, w, err := pipe(true)
	if err != nil {
		return err
	}
	s.report = r
	s.theirs = append(s.theirs, w)
	fds[ReportFD] = w.Fd()
	fds[GateFD] = ^uintptr(0)
	if !s.req.reads() {
		return nil
	}
	gr, gw, err := pipe(false)
	if err != nil {
		return err
	}
	s.gate = gw
	s.theirs = append(s.theirs, gr)
	fds[GateFD] = gr.Fd()
	return nil
}

// fork makes the process, from a thread that has joined req.Enter where there is any. Such a thread ends
// with its goroutine.
func (s *starter) fork(attr *syscall.ProcAttr) (int, error) {
	argv0 := "/proc/self/fd/" + strconv.Itoa(len(attr.Files)-1)
	name := s.req.Name
	if name == "" {
		name = "init"
	}
	if len(s.req.Enter) == 0 {
		return s.birth(argv0, name, attr)
	}
	pid := 0
	err := sys.OnThread(func() (err error) {
		for _, e := range s.req.Enter {
			if err := unix.Setns(int(s.files[e.File].Fd()), int(e.Type)); err != nil {
				return os.NewSyscallError("setns", err)
			}
		}
		pid, err = s.birth(argv0, name, attr)
		return err
	})
	return pid, err
}

// birth makes the process in its cgroup. A user may do so only where he may write the cgroup.procs of a group above both
// his own and that one (cgroups(7), delegation containment), and with nsdelegate only below the root of his cgroup namespace
// (ENOENT); what will be placed is elsewhere born where we are.
func (s *starter) birth(argv0, name string, attr *syscall.ProcAttr) (int, error) {
	s.born = attr.Sys.UseCgroupFD
	pid, err := syscall.ForkExec(argv0, []string{name}, attr)
	if s.born && s.req.Held && (err == unix.EACCES || err == unix.ENOENT) {
		s.born, attr.Sys.UseCgroupFD = false, false
		pid, err = syscall.ForkExec(argv0, []string{name}, attr)
	}
	return pid, err
}

// close closes what has not been handed on.
func (s *starter) close() {
	closeFiles(&s.theirs)
	for _, f := range []*os.File{s.report, s.gate} {
		if f != nil {
			f.Close()
		}
	}
	for _, fd := range []int{s.cons, s.pidfd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func closeFiles(files *[]*os.File) {
	for _, f := range *files {
		f.Close()
	}
	*files = nil
}

// pipe returns a pipe whose ends are blocking, as programs want them, but for a read end of ours (poll):
// starts in flight then wait in the runtime's poller, and hundreds of them cost no threads.
func pipe(poll bool) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if poll {
		_ = unix.SetNonblock(p[0], true)
	}
	return os.NewFile(uintptr(p[0]), "report"), os.NewFile(uintptr(p[1]), "report"), nil
}

// recvConsole takes the pty's master, which the program sent before it reported anything.
func recvConsole(sock int) (*os.File, error) {
	var buf [8]byte
	var oob [64]byte
	_, n, flags, _, err := unix.Recvmsg(sock, buf[:], oob[:], unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the console: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 || flags&unix.MSG_CTRUNC != 0 {
		return nil, errors.New("receive the console: no descriptor in the message")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("receive the console: no descriptor in the message")
	}
	_ = unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "console"), nil
}

func sysMaps(maps []IDMap) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(maps))
	for i, m := range maps {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)}
	}
	return out
}
