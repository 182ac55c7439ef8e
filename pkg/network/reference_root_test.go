//go:build root

package network

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cri-server/cri-server/internal/testroot"
)

var built struct {
	sync.Once
	dir string
	err string
}

// referencePlugins builds the reference plugins, of the version that go.mod names, and returns their
// directory. What they need beyond our own go.mod goes into a copy of it.
func referencePlugins(t testing.TB) string {
	t.Helper()
	testroot.NeedRoot(t)
	gobin := testroot.NeedProgram(t, "go")
	testroot.NeedProgram(t, "nft")
	built.Do(func() {
		dir, err := os.MkdirTemp("/run", "cni-reference-") // a tmpfs of the test run's own
		if err != nil {
			built.err = err.Error()
			return
		}
		for _, f := range []string{"go.mod", "go.sum"} {
			data, err := os.ReadFile(filepath.Join("../..", f))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, f), data, 0o644)
			}
			if err != nil {
				built.err = err.Error()
				return
			}
		}
		const module = "github.com/containernetworking/plugins/plugins/"
		cmd := exec.Command(gobin, "build", "-mod=mod", "-modfile="+dir+"/go.mod", "-o", dir+"/bin/",
			module+"main/bridge", module+"main/loopback", module+"main/ptp", module+"ipam/host-local", module+"meta/portmap")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = err.Error() + ": " + string(out)
		}
		built.dir = dir
	})
	if built.err != "" {
		testroot.Skip(t, "the reference plugins cannot be built (without a network?): "+built.err)
	}
	return filepath.Join(built.dir, "bin")
}
