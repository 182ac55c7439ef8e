//go:build root

package image

import (
	"os"
	"testing"

	"github.com/cri-server/cri-server/internal/testroot"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" { // a process of TestCrashSweep, which is inside already
		os.Exit(m.Run())
	}
	testroot.Main(m)
}
