package image

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/fault"
	it "github.com/cri-server/cri-server/pkg/image/internal/imagetest"
)

// crashEnv makes the test binary a process that pulls and dies: "ROOT REFERENCE".
const crashEnv = "CRI_IMAGE_CRASH"

// TestCrashHelper is that process, and nothing in every other one.
func TestCrashHelper(t *testing.T) {
	args := strings.Fields(os.Getenv(crashEnv))
	if len(args) != 2 {
		return
	}
	if err := fault.FromEnv(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(ctx, Config{Root: args[0], Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(ctx, args[1], PullOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestCrashSweep kills a pull at each of its fault points. After a restart an audit finds nothing, the tag
// means the old image or the new one, and the pull works.
func TestCrashSweep(t *testing.T) {
	r := it.NewRegistry(t)
	for _, point := range PullSteps() {
		t.Run(filepath.Base(point), func(t *testing.T) {
			r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "old"))}})
			s := newStore(t, nil)
			old := mustPull(t, s, r.Host()+"/a:v1")
			s.Close()
			r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "old")), gz(it.File("f", "new"))}})
			cmd := exec.Command(os.Args[0], "-test.run=^TestCrashHelper$")
			cmd.Env = append(os.Environ(), crashEnv+"="+s.cfg.Root+" "+r.Host()+"/a:v1", fault.Env+"="+point+"=kill")
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("it did not die at the point: %v\n%s", err, out)
			}
			s2, err := Open(ctx, s.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s2.Close()
			clean(t, s2)
			img, err := s2.Get(r.Host() + "/a:v1")
			if err != nil {
				t.Fatal(err)
			}
			if recorded := strings.HasPrefix(point, "PullImage/record/"); recorded != (img.ID != old) {
				t.Errorf("the tag means %s, the old image is %s", img.ID, old)
			}
			if id := mustPull(t, s2, r.Host()+"/a:v1"); id == old {
				t.Error("the second pull brought the old image")
			}
			clean(t, s2)
		})
	}
}

// TestFaultSweep makes every point of a pull fail: the error comes out, and what stays is whole.
func TestFaultSweep(t *testing.T) {
	r := it.NewRegistry(t)
	r.Push("a", "v1", it.Image{Layers: []it.Layer{gz(it.File("f", "x"))}})
	for _, point := range PullSteps() {
		t.Run(filepath.Base(point), func(t *testing.T) {
			s := newStore(t, nil)
			fault.Arm(point, 1, func() error { return &fault.ErrInjected{Name: point} })
			defer fault.Disarm()
			_, err := s.Pull(ctx, r.Host()+"/a:v1", PullOptions{})
			var injected *fault.ErrInjected
			if point == "PullImage/record/untagged" { // nothing had the tag before
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.As(err, &injected) || errs.KindOf(err) != errs.Unknown {
				t.Errorf("%v", err)
			}
			clean(t, s)
			if point != "PullImage/record/written" {
				empty(t, s)
			}
			mustPull(t, s, r.Host()+"/a:v1")
			clean(t, s)
		})
	}
}
