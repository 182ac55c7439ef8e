//go:build !amd64

package catch

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

func catch(fd int, list []syscall.Signal) error {
	came := make(chan os.Signal, 64)
	for _, sig := range list {
		signal.Notify(came, sig)
	}
	go func() {
		for s := range came {
			_, _ = unix.Write(fd, []byte{byte(s.(syscall.Signal))})
		}
	}()
	return nil
}
