package launch

import (
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// TestForkError: on cgroup v2, where a program is born into its limits, too little memory shows at its exec.
func TestForkError(t *testing.T) {
	for errno, kind := range map[syscall.Errno]errs.Kind{unix.E2BIG: errs.Exhausted, unix.ENOMEM: errs.Exhausted, unix.EPERM: errs.KindOf(unix.EPERM)} {
		if err := forkError(errno); errs.KindOf(err) != kind || !errors.Is(err, errno) {
			t.Errorf("%v: %v (%v), want kind %v", errno, err, errs.KindOf(err), kind)
		}
	}
}
