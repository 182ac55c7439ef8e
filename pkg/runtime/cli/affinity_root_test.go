//go:build root

package cli

import (
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/sys"
)

// TestOwnAffinity: a container does not inherit on which processors its runtime was run.
func TestOwnAffinity(t *testing.T) {
	b := newBench(t)
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		t.Fatal(err)
	}
	if own.Count() < 2 {
		testroot.Skip(t, "there is one processor")
	}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	all := allowed(string(text))
	pinned := func(args ...string) (r result) {
		_ = sys.OnThread(func() error {
			var first unix.CPUSet
			for i := 0; first.Count() == 0; i++ {
				if own.IsSet(i) {
					first.Set(i)
				}
			}
			if err := unix.SchedSetaffinity(0, &first); err != nil {
				return err
			}
			r = b.do(args...)
			return nil
		})
		return r
	}
	b.config("c1", func(s *specs.Spec) { s.Linux.Resources.CPU = nil }, "sh", "-c", "cat /proc/self/status; sleep 1000")
	if r := pinned("run", "-d", "--bundle", b.bundle, "c1"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	defer b.ok("delete", "-f", "c1")
	if out := b.ok("exec", "c1", "cat", "/proc/1/status"); allowed(out) != all {
		t.Errorf("the container runs on %s of %s", allowed(out), all)
	}
	if r := pinned("exec", "c1", "cat", "/proc/self/status"); r.code != 0 || allowed(r.out) != all {
		t.Errorf("an exec runs on %s of %s: %+v", allowed(r.out), all, r)
	}
}

// allowed is the list of processors in a status file.
func allowed(status string) string {
	_, rest, _ := strings.Cut(status, "Cpus_allowed_list:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}
