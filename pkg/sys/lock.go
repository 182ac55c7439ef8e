package sys

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long LockFile waits. A process that was killed while it forked leaves a child that shares
// its locks until it execs, which is at once unless the machine is very busy.
const lockPatience = time.Second

// ErrLocked says that another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// LockFile makes the file at path, with mode 0600, when it is missing, and takes its exclusive lock, which the returned file
// holds until it is closed. When somebody else keeps it for a second the error wraps ErrLocked.
func LockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) //nolint:forbidigo // in a state directory of the caller's
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for deadline := time.Now().Add(lockPatience); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline):
			time.Sleep(5 * time.Millisecond)
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			err = ErrLocked
		}
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
}
