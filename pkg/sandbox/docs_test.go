package sandbox

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestArchitectureNamesTheSteps holds the step tables of ARCHITECTURE.md to those of the code.
func TestArchitectureNamesTheSteps(t *testing.T) {
	data, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "<!-- steps -->")
	text, _, _ = strings.Cut(text, "<!-- end -->")
	documented := map[string][]string{}
	call := ""
	for _, line := range strings.Split(text, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || strings.Contains(line, "---") || strings.Contains(line, "steps, in order") {
			continue
		}
		if c := strings.TrimSpace(cells[1]); c != "" {
			call = c
		}
		for _, s := range strings.Split(cells[2], ",") {
			documented[call] = append(documented[call], call+"/"+strings.TrimSpace(s))
		}
	}
	for call, points := range FaultPoints() {
		if got := append(documented[call], call+"/end"); !slices.Equal(got, points) {
			t.Errorf("ARCHITECTURE.md has %v, the code %v", got, points)
		}
	}
}
