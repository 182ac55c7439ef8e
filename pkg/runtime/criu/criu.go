// Package criu drives criu(8), which writes the processes of a container to files and makes processes of them again.
//
// It speaks criu's own protocol (the messages are go-criu's; the socket is handed over, so that neither net nor a
// protobuf library with reflection is linked) with a process that does one job and ends. It knows nothing of
// containers: what is asked for is the caller's message, what happens meanwhile the caller's Notify.
package criu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// MinVersion is the oldest criu that this package is for (3.16: external namespaces of both kinds, time
// namespaces, the freezer of cgroup v2, notifications of lazy pages).
const MinVersion = 31600

// FirstFD is the number that the first of Session.Files has in criu, for InheritFd.
const FirstFD = 4

// Criu is an installed criu.
type Criu struct {
	Path    string
	Version int // major*10000 + minor*100 + sublevel
}

// Find looks for criu on PATH and asks for its version. The error is of kind Unsupported where there is none, or
// one that is too old.
func Find() (*Criu, error) {
	path, err := exec.LookPath("criu")
	if err != nil {
		return nil, errs.New(errs.Unsupported, "checkpoint and restore need criu: it is not on PATH. Install it (Debian: criu)")
	}
	c := &Criu{Path: path}
	resp, err := (&Session{}).Run(c, &rpc.CriuReq{Type: rpc.CriuReqType_VERSION.Enum()})
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	v := resp.GetVersion()
	c.Version = int(v.GetMajorNumber())*10000 + int(v.GetMinorNumber())*100 + int(v.GetSublevel())
	if v.GetGitid() != "" { // what is being developed has the number of what came before it
		c.Version = int(v.GetMajorNumber())*10000 + int(v.GetMinorNumber()+1)*100
	}
	if c.Version < MinVersion {
		return nil, errs.New(errs.Unsupported, "checkpoint and restore need criu 3.16 or newer: %s is version %d.%d", path, v.GetMajorNumber(), v.GetMinorNumber())
	}
	return c, nil
}

// Features asks what this criu can do on this kernel, of what is set in want.
func (c *Criu) Features(want *rpc.CriuFeatures) (*rpc.CriuFeatures, error) {
	resp, err := (&Session{}).Run(c, &rpc.CriuReq{Type: rpc.CriuReqType_FEATURE_CHECK.Enum(), Features: want})
	if err != nil {
		return nil, fmt.Errorf("ask criu for its features: %w", err)
	}
	return resp.GetFeatures(), nil
}

// Session is one job of criu's. The zero value is a criu that needs nothing.
type Session struct {
	Stdio  [3]*os.File // of the processes that it restores
	Files  []*os.File  // descriptors FirstFD and up
	Cgroup *os.File    // v2 directory that it is born in; nil: ours

	// Unshare are CLONE_NEW* of namespaces that it makes for itself before it is criu.
	Unshare uintptr

	// Thread, when not nil, is run on a thread of its own right before criu starts there: criu has that thread's
	// namespaces.
	Thread func() error

	// Started is called when criu runs and knows nothing yet.
	Started func(pid int) error

	// Notify is called for each of criu's notifications; an error ends the job. pid and file are 0 and nil where
	// the notification has none; the file is the callee's to close.
	Notify func(script string, pid int, file *os.File) error
}

// Run starts criu, sends it the request and follows it to its answer. It blocks as long as the job takes. Processes
// that were restored as siblings are children of this process.
func (s *Session) Run(c *Criu, req *rpc.CriuReq) (*rpc.CriuResp, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := pair[0], os.NewFile(uintptr(pair[1]), "criu")
	defer unix.Close(ours)
	cmd := exec.Command(c.Path, "swrk", "3")
	if s.Stdio[0] != nil {
		cmd.Stdin = s.Stdio[0]
	}
	if s.Stdio[1] != nil {
		cmd.Stdout = s.Stdio[1]
	}
	if s.Stdio[2] != nil {
		cmd.Stderr = s.Stdio[2]
	}
	cmd.ExtraFiles = append([]*os.File{theirs}, s.Files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: s.Unshare}
	if s.Cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(s.Cgroup.Fd())
	}
	err = s.start(cmd)
	theirs.Close() // held here, it would hide criu's death
	if err != nil {
		return nil, err
	}
	resp, err := s.talk(ours, cmd.Process.Pid, req)
	if err != nil {
		_ = unix.Shutdown(ours, unix.SHUT_RDWR)
	} else {
		_ = unix.Shutdown(ours, unix.SHUT_WR)
	}
	werr := cmd.Wait()
	if err == nil && werr != nil && req.GetType() != rpc.CriuReqType_PRE_DUMP { // which waits for a dump that comes with another criu
		err = fmt.Errorf("criu: %w", werr)
	}
	return resp, err
}

func (s *Session) start(cmd *exec.Cmd) error {
	if s.Thread == nil {
		return sys.Spawn(cmd.Start)
	}
	return sys.OnThread(func() error {
		if err := s.Thread(); err != nil {
			return err
		}
		return sys.Spawn(cmd.Start)
	})
}

func (s *Session) talk(sock, pid int, req *rpc.CriuReq) (*rpc.CriuResp, error) {
	if s.Started != nil {
		if err := s.Started(pid); err != nil {
			return nil, err
		}
	}
	if err := send(sock, req); err != nil {
		return nil, err
	}
	for {
		resp, file, err := receive(sock)
		if err != nil {
			return nil, err
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			if file != nil {
				file.Close()
			}
			return resp, failure(resp)
		}
		n := resp.GetNotify()
		if s.Notify == nil {
			if file != nil {
				file.Close()
			}
		} else if err := s.Notify(n.GetScript(), int(n.GetPid()), file); err != nil {
			no := false
			_ = send(sock, &rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: &no})
			_, _, _ = receive(sock) // it takes back what it has made, and says so
			return nil, err
		}
		yes := true
		if err := send(sock, &rpc.CriuReq{Type: rpc.CriuReqType_NOTIFY.Enum(), NotifySuccess: &yes}); err != nil {
			return nil, err
		}
	}
}

// failure is what an answer says went wrong.
func failure(resp *rpc.CriuResp) error {
	if resp.GetSuccess() {
		return nil
	}
	err := fmt.Errorf("criu failed: type %s", resp.GetType())
	if text := strings.TrimSpace(resp.GetCrErrmsg()); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	if n := resp.GetCrErrno(); n != 0 {
		err = fmt.Errorf("%w: %w", err, unix.Errno(n))
	}
	return err
}

func send(sock int, req *rpc.CriuReq) error {
	data, err := req.MarshalVT()
	if err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	return sys.SendFDs(sock, data)
}

// receive reads one message, and the descriptor that came with it.
func receive(sock int) (*rpc.CriuResp, *os.File, error) {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, flags, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, oobn, flags, _, err = unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, nil, os.NewSyscallError("recvmsg", err)
	}
	var file *os.File
	if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for i := range msgs {
			fds, _ := unix.ParseUnixRights(&msgs[i])
			for _, fd := range fds {
				if file != nil {
					unix.Close(fd)
					continue
				}
				file = os.NewFile(uintptr(fd), "criu")
			}
		}
	}
	resp := new(rpc.CriuResp)
	switch {
	case n == 0:
		err = errors.New("criu ended without an answer")
	case flags&unix.MSG_TRUNC != 0:
		err = errors.New("criu's answer is too long")
	default:
		err = resp.UnmarshalVT(buf[:n])
	}
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return resp, file, err
}
