// Package arch holds the project to ARCHITECTURE.md: its tests read the import table and the size limits there, and those
// of other packages the step tables.
package arch

import (
	"fmt"
	"strings"
)

// Steps returns the step tables of ARCHITECTURE.md, given its text: the names of each call's steps, in order. Those
// that run at the same time come as they are listed.
func Steps(text string) (map[string][]string, error) {
	_, table, begun := strings.Cut(text, "<!-- steps -->")
	table, _, ended := strings.Cut(table, "<!-- end -->")
	if !begun || !ended {
		return nil, fmt.Errorf("ARCHITECTURE.md has no step tables between <!-- steps --> and <!-- end -->")
	}
	steps := map[string][]string{}
	call := ""
	for i, line := range strings.Split(strings.TrimSpace(table), "\n") {
		cells := strings.Split(line, "|")
		if i < 2 || len(cells) < 4 { // the head
			continue
		}
		if c := strings.TrimSpace(cells[1]); c != "" {
			call = c
		}
		for s := range strings.SplitSeq(cells[2], ",") {
			steps[call] = append(steps[call], strings.TrimSpace(s))
		}
	}
	return steps, nil
}
