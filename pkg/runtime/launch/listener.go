package launch

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// SetNotify says who gets the listener of the filter that an attached program is still to load: agent is a
// connected unix socket, which stays the caller's; the message's parts are joined by the pid. Start does it
// for a request with Notify.
func (p *Process) SetNotify(agent *os.File, message []string) { p.agent, p.message = agent, message }

// fetchListener takes a copy of the listener out of the process that has loaded the filter, and lets it go
// on. The process makes no call for it that the filter could hold up but the write and read of its pipes.
func (p *Process) fetchListener(pid, fd int) error {
	if p.agent == nil {
		return fmt.Errorf("seccomp listener of process %d: nobody is there to get it", pid)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	n, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return fmt.Errorf("fetch the seccomp listener of process %d: %w", pid, os.NewSyscallError("pidfd_getfd", err))
	}
	p.listener = os.NewFile(uintptr(n), "seccomp-listener")
	return p.token()
}

// sendListener sends the listener that has been fetched, if one has.
func (p *Process) sendListener() error {
	if p.listener == nil {
		return nil
	}
	defer func() { p.listener.Close(); p.listener = nil }()
	msg := strings.Join(p.message, strconv.Itoa(p.Pid))
	if err := sys.SendFDs(int(p.agent.Fd()), []byte(msg), p.listener); err != nil {
		return fmt.Errorf("send the seccomp listener to its agent: %w", err)
	}
	return nil
}
