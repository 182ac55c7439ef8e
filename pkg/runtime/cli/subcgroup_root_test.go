//go:build root

package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// TestExecCgroup puts processes into groups below the container's.
func TestExecCgroup(t *testing.T) {
	b := newBench(t)
	b.config("c1", func(s *specs.Spec) { // on cgroup v2 the default has a cgroup namespace, which hides the path
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	}, "sleep", "1000")
	b.ok("run", "--detach", "--bundle", b.bundle, "c1")
	defer b.ok("delete", "-f", "c1")
	h, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	group := b.cgroup + "/c1"
	in := func(args ...string) string {
		return b.ok(append(append([]string{"exec"}, args...), "c1", "cat", "/proc/self/cgroup")...)
	}
	if got := in("--cgroup", "/"); strings.Count(got, group+"\n") != strings.Count(got, "\n") {
		t.Errorf("the container's own group: %s", got)
	}
	first := ""
	for _, tree := range h.Hierarchies() {
		if err := os.Mkdir(filepath.Join(tree.Mount, group, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if !tree.Unified && first == "" && len(tree.Controllers) > 0 {
			first = tree.Controllers[0]
			if err := os.Mkdir(filepath.Join(tree.Mount, group, "other"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := in("--cgroup", "sub"); strings.Count(got, group+"/sub\n") != strings.Count(got, "\n") {
		t.Errorf("one path for all: %s", got)
	}
	if first != "" {
		if got := in("--cgroup", first+":other"); strings.Count(got, group+"/other\n") != 1 || strings.Count(got, group+"\n") != strings.Count(got, "\n")-1 {
			t.Errorf("the path of %s: %s", first, got)
		}
	}
	for value, want := range map[string]string{"..": "bad sub cgroup path", "a/../../b": "bad sub cgroup path", "none": " adding pid ", "whaaat:/": "unknown controller "} {
		if r := b.do("exec", "--cgroup", value, "c1", "true"); r.code != 255 || !strings.Contains(r.err, want) {
			t.Errorf("--cgroup %s: %+v", value, r)
		}
	}
}
