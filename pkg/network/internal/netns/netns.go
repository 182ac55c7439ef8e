// Package netns runs code in another network namespace without ever letting a thread loose in the wrong one.
package netns

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// Open opens the network namespace that path names and says whether it exists: a path that is gone, or
// whose process is, is nil without an error. Anything else than a network namespace is an error. The
// caller closes the file.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	typ, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || typ != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("open network namespace (%s): it is not one", path)
	}
	return f, nil
}

// Do calls fn on a thread that is in the network namespace ns and ends with it, and returns what fn returns.
// Sockets that fn makes and /proc/sys/net as fn sees it are of that namespace. fn must not start goroutines
// that count on it.
func Do(ns *os.File, fn func() error) error {
	return sys.OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}
