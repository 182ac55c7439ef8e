package cgroup

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// What is found without the mount table is what the mount table says.
func TestUsual(t *testing.T) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	byMount := func(a, b Hierarchy) int { return strings.Compare(a.Mount, b.Mount) }
	want := parseMountinfo(string(text))
	if root(usualPlace) != 0 { // v2 alone is looked at, whatever of v1 is mounted elsewhere
		want = slices.DeleteFunc(want, func(h Hierarchy) bool { return !h.Unified })
	}
	got := usual(usualPlace)
	if got == nil {
		listed, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		if v1 := strings.Count(string(listed), "\n") - strings.Count("\n"+string(listed), "\n0::"); v1 > len(want) {
			t.Skip("a hierarchy of this machine is mounted nowhere: only the mount table says what there is")
		}
		for _, h := range want {
			if !strings.HasPrefix(h.Mount, usualPlace) || root(h.Mount) == 0 {
				t.Skipf("%s is mounted on %s, which is not usual", h.Name, h.Mount)
			}
		}
		if len(want) > 0 {
			t.Fatalf("nothing is found, and mounted is %+v", want)
		}
	}
	slices.SortFunc(got, byMount)
	slices.SortFunc(want, byMount)
	if !slices.EqualFunc(got, want, func(a, b Hierarchy) bool {
		return a.Name == b.Name && a.Mount == b.Mount && a.Unified == b.Unified && slices.Equal(a.Controllers, b.Controllers)
	}) {
		t.Errorf("found\n%+v\nmounted\n%+v", got, want)
	}
	if list := usual(t.TempDir()); list != nil {
		t.Errorf("in an empty directory there is %+v", list)
	}
}
