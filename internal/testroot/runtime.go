package testroot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// runtimeEnv names a cri-runtime to use instead of one built from the source at hand.
const runtimeEnv = "CRI_RUNTIME"

// Runtime returns the path of cri-runtime, built from the source at hand as it is shipped: static, since
// shims are started where there are no libraries. A test binary may be linked to some (-race does that),
// and cannot stand in for it.
func Runtime(t testing.TB) string {
	t.Helper()
	NeedRoot(t)
	path, err := buildRuntime()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildRuntime = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(runtimeEnv); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("/run", "cri-runtime-") // inside's own tmpfs: it goes with the mount namespace
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "cri-runtime")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, "github.com/cri-server/cri-server/cmd/cri-runtime")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cri-runtime: %w: %s", err, out)
	}
	return path, os.Setenv(runtimeEnv, path) // for processes that the tests start in turn
})
