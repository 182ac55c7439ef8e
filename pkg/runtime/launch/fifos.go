package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// The fifos of a program whose launcher does not stay. Their name is runc's for what a container waits at:
// it is what others expect among the descriptors of a created container.
const (
	GateFifo   = "exec.fifo"
	reportDir  = "report"
	reportName = reportDir + "/exec.fifo"
)

// fifos stand in for the two pipes when another process will open the gate.
type fifos struct {
	report, childReport, childGate *os.File

	gate *os.File // ours, where the program stops while we are there
}

// StartDetached is Start for a launcher that exits while the program is at its gate: the gate and the
// report pipe are fifos in dir, which Attach finds again. Request.Gate must be set. The fifos stay until
// dir is removed; a program whose gate nobody opens waits until it is killed.
func StartDetached(dir *os.File, req *Request, files []*os.File, stdio [3]*os.File) (*Process, error) {
	if !req.Gate {
		return nil, errors.New("start detached: the request has no gate")
	}
	f, err := makeFifos(dir)
	if err != nil {
		return nil, fmt.Errorf("start detached: %w", err)
	}
	defer f.childReport.Close()
	defer f.childGate.Close()
	if req.Stop || req.Notify != nil || req.Held {
		if f.gate, err = sys.OpenAt(dir, GateFifo, os.O_WRONLY|unix.O_NOFOLLOW, 0, sys.Beneath); err != nil {
			f.report.Close()
			return nil, fmt.Errorf("start detached: %w", err)
		}
	}
	return start(req, files, stdio, f)
}

func makeFifos(dir *os.File) (*fifos, error) {
	if err := unix.Mkdirat(int(dir.Fd()), reportDir, 0o700); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: reportDir, Err: err}
	}
	var rw [2]*os.File
	for i, name := range []string{GateFifo, reportName} {
		if err := unix.Mkfifoat(int(dir.Fd()), name, 0o600); err != nil {
			sys.CloseAll(rw[:])
			return nil, &os.PathError{Op: "mkfifo", Path: name, Err: err}
		}
		f, err := sys.OpenAt(dir, name, os.O_RDWR|unix.O_NOFOLLOW, 0, sys.Beneath)
		if err != nil {
			sys.CloseAll(rw[:])
			return nil, err
		}
		rw[i] = f
	}
	// The program holds both ends of the gate, so that it never reads end of file there; of the report it
	// holds the write end alone, so that its death is end of file here.
	defer rw[1].Close()
	r, err := sys.OpenAt(dir, reportName, os.O_RDONLY|unix.O_NOFOLLOW, 0, sys.Beneath)
	if err != nil {
		rw[0].Close()
		return nil, err
	}
	w, err := sys.OpenAt(dir, reportName, os.O_WRONLY|unix.O_NOFOLLOW, 0, sys.Beneath)
	if err != nil {
		rw[0].Close()
		r.Close()
		return nil, err
	}
	return &fifos{report: r, childReport: w, childGate: rw[0]}, nil
}

// RemoveFifos removes what StartDetached made in dir, which goes with the directory otherwise.
func RemoveFifos(dir *os.File) {
	_ = unix.Unlinkat(int(dir.Fd()), GateFifo, 0)
	_ = unix.Unlinkat(int(dir.Fd()), reportName, 0)
	_ = unix.Unlinkat(int(dir.Fd()), reportDir, unix.AT_REMOVEDIR)
}

// Attach returns a process that StartDetached left at its gate: Release, Kill, Exited and Close work on
// it, Wait returns when it has ended, without a status. The caller has checked that pidfd is the process
// of that pid; it becomes the Process's.
func Attach(dir *os.File, pid int, pidfd *os.File) (*Process, error) {
	r, err := sys.OpenAt(dir, reportName, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0, sys.Beneath)
	if err != nil {
		return nil, fmt.Errorf("attach to process %d: %w", pid, err)
	}
	if err := unix.SetNonblock(int(r.Fd()), false); err != nil {
		r.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	w, err := sys.OpenAt(dir, GateFifo, os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0, sys.Beneath)
	if err != nil {
		r.Close()
		if errors.Is(err, unix.ENXIO) { // nobody reads: started already, or dead
			err = os.ErrProcessDone
		}
		return nil, fmt.Errorf("attach to process %d: %w", pid, err)
	}
	fd, err := unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		r.Close()
		w.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	_ = unix.SetNonblock(fd, true) // without it a wait takes a thread
	pidfd.Close()
	return &Process{Pid: pid, Pidfd: os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid)), report: r, gate: w}, nil
}
