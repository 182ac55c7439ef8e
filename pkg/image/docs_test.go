package image

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestArchitectureNamesTheSteps holds the step table of ARCHITECTURE.md to that of the code.
func TestArchitectureNamesTheSteps(t *testing.T) {
	data, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "<!-- steps -->")
	text, _, _ = strings.Cut(text, "<!-- end -->")
	var documented, have []string
	call := ""
	for line := range strings.SplitSeq(text, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		if c := strings.TrimSpace(cells[1]); c != "" {
			call = c
		}
		if call == "PullImage" {
			documented = append(documented, strings.TrimSpace(cells[2]))
		}
	}
	for _, s := range pullSteps {
		have = append(have, s.name)
	}
	if !slices.Equal(documented, have) {
		t.Errorf("ARCHITECTURE.md has %v, the code %v", documented, have)
	}
}
