package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MaxFDs is how many descriptors one SCM_RIGHTS message carries (SCM_MAX_FD of the kernel).
const MaxFDs = 253

// SendFDs writes one message with the descriptors of files on the connected unix socket sock. Files stay
// open and stay the caller's. It blocks when the socket does.
func SendFDs(sock int, msg []byte, files ...*os.File) error {
	if len(files) > MaxFDs {
		return fmt.Errorf("send %d descriptors: the kernel takes %d in a message", len(files), MaxFDs)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(sock, msg, oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// CloseAll closes every file that is not nil.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
