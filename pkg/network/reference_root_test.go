//go:build root

package network

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/cri-server/cri-server/internal/testroot"
)

// referenceEnv names a directory that holds the plugins already.
const referenceEnv = "CRI_CNI_REFERENCE"

var buildReference = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(referenceEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("/run", "cni-reference-") // a tmpfs of the test run's own
	if err != nil {
		return "", err
	}
	if out, err := exec.Command("../../hack/cni-reference", dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, nil
})

// referencePlugins builds the reference plugins, of the version that go.mod names, and returns their
// directory.
func referencePlugins(t testing.TB) string {
	t.Helper()
	testroot.NeedRoot(t)
	testroot.NeedProgram(t, "nft")
	dir, err := buildReference()
	if err != nil {
		testroot.Skip(t, "the reference plugins cannot be built (without a network?): "+err.Error())
	}
	return dir
}
