//go:build root

package cgroup

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
)

// A v2 hierarchy beside those of v1 is found wherever it is mounted: controllers may be there alone.
func TestUnifiedElsewhere(t *testing.T) {
	testroot.NeedRoot(t)
	const there = usualPlace + "/unified"
	if root(there) != unix.CGROUP2_SUPER_MAGIC {
		testroot.Skip(t, "there is no v2 hierarchy beside those of v1")
	}
	elsewhere := t.TempDir()
	move := func(from, to string) {
		if err := unix.Mount(from, to, "", unix.MS_MOVE, ""); err != nil {
			t.Fatalf("move %s to %s: %v", from, to, err)
		}
	}
	move(there, elsewhere)
	defer move(elsewhere, there)
	h, err := Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if u := h.unified(); h.Usual() || u == nil || u.Mount != elsewhere {
		t.Errorf("of a v2 hierarchy on %s it is found that %+v", elsewhere, u)
	}
}
