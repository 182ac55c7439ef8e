package sys

import "testing"

func TestProbe(t *testing.T) {
	for _, c := range []struct {
		without  string
		feature  Feature
		possible bool
	}{
		{"5.15", MountOnTree, false},
		{"5.15", IdmapTmpfs, false},
		{"6.3", IdmapTmpfs, true},
		{"6.14", OverlayFDs, true},
		{"6.14", OverlayTrees, false},
		{"7.0", OverlayTrees, true},
		{"execmemfd,overlayfds", ExecMemfd, false},
		{"execmemfd,overlayfds", OverlayFDs, false},
		{"-mountontree", MountOnTree, false},
		{"6.7", OverlayAppend, false},
		{"6.8", OverlayAppend, true},
		{"overlayappend", OverlayAppend, false},
		{"6.17", ProcPidns, false},
		{"6.18", ProcPidns, true},
	} {
		if got := probe(c.without)>>c.feature&1 != 0; got != c.possible {
			t.Errorf("%s=%s: %v is %v", KernelEnv, c.without, c.feature, got)
		}
	}
}

// TestNames has a name for every feature: one without could not be taken away, or always would be.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for f := range featureCount {
		if name := f.String(); name == "" || seen[name] {
			t.Errorf("feature %d is named %q", f, name)
		}
		seen[f.String()] = true
	}
}

func TestParseVersion(t *testing.T) {
	for s, want := range map[string][2]int{"6.12.117+deb13-cloud-amd64": {6, 12}, "5.14.0-503.el9": {5, 14}, "6.18": {6, 18}} {
		a, b, ok := parseVersion(s)
		if !ok || [2]int{a, b} != want {
			t.Errorf("parseVersion(%q) = %d, %d, %v", s, a, b, ok)
		}
	}
	for _, s := range []string{"", "6", "x.y", "6.", "99999999.1"} {
		if _, _, ok := parseVersion(s); ok {
			t.Errorf("parseVersion(%q) is a version", s)
		}
	}
}
