package sandbox

import (
	"os"
	"slices"
	"testing"

	"github.com/cri-server/cri-server/internal/arch"
)

// TestArchitectureNamesTheSteps holds the step tables of ARCHITECTURE.md to those of the code.
func TestArchitectureNamesTheSteps(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	documented, err := arch.Steps(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for call, points := range FaultPoints() {
		var got []string
		for _, s := range append(documented[call], "end") {
			got = append(got, call+"/"+s)
		}
		if !slices.Equal(got, points) {
			t.Errorf("ARCHITECTURE.md has %v, the code %v", got, points)
		}
	}
}
