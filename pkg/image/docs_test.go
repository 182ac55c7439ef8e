package image

import (
	"os"
	"slices"
	"testing"

	"github.com/cri-server/cri-server/internal/arch"
)

// TestArchitectureNamesTheSteps holds the step table of ARCHITECTURE.md to that of the code.
func TestArchitectureNamesTheSteps(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	documented, err := arch.Steps(string(text))
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, s := range pullSteps {
		have = append(have, s.name)
	}
	if got := documented["PullImage"]; !slices.Equal(got, have) {
		t.Errorf("ARCHITECTURE.md has %v, the code %v", got, have)
	}
}
