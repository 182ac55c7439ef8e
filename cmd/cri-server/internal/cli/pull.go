package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cri-server/cri-server/pkg/image"
)

func (a *app) pull() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image, and print its identifier", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *client) error {
				id, err := a.pullImage(cmd.Context(), c, args[0], quiet)
				if err == nil {
					fmt.Fprintln(a.out, id)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return cmd
}

// pullImage pulls, with bars on standard error where that is a terminal.
func (a *app) pullImage(ctx context.Context, c *client, ref string, quiet bool) (string, error) {
	if f, ok := a.err.(*os.File); ok && !quiet && term.IsTerminal(int(f.Fd())) {
		b := &bars{out: f, width: width(f), byLayer: map[string]image.Progress{}}
		defer b.done()
		return c.admin.Pull(ctx, ref, b.update)
	}
	return c.admin.Pull(ctx, ref, nil)
}

func width(f *os.File) int {
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 40 {
		return w
	}
	return 80
}

// bars draws a line per layer and redraws them in place.
type bars struct {
	out     io.Writer
	width   int
	order   []string
	byLayer map[string]image.Progress
	lines   int // drawn before
	drawn   time.Time
}

func (b *bars) update(p image.Progress) {
	if _, ok := b.byLayer[p.Layer]; !ok {
		b.order = append(b.order, p.Layer)
	}
	b.byLayer[p.Layer] = p
	if time.Since(b.drawn) > 50*time.Millisecond {
		b.draw()
	}
}

// done draws the last state, which update may have thought too early to draw.
func (b *bars) done() {
	if len(b.order) > 0 {
		b.draw()
	}
}

func (b *bars) draw() {
	var s strings.Builder
	if b.lines > 0 {
		fmt.Fprintf(&s, "\x1b[%dA", b.lines) // up to the first line
	}
	for _, layer := range b.order {
		fmt.Fprintf(&s, "\r%s\x1b[K\n", bar(b.byLayer[layer], b.width-1))
	}
	b.lines, b.drawn = len(b.order), time.Now()
	fmt.Fprint(b.out, s.String())
}

// bar is one line: the layer, how far it is, and what is being done to it.
func bar(p image.Progress, width int) string {
	left, right := short(p.Layer)+" ", fmt.Sprintf(" %-9s %s", p.Phase, size(float64(p.Done)))
	if p.Total > 0 {
		right += " of " + size(float64(p.Total))
	}
	room := width - len(left) - 2 - 34
	if room < 5 {
		return left + right
	}
	full := 0
	switch {
	case p.Phase == "done" || p.Phase == "exists":
		full = room
	case p.Total > 0:
		full = int(float64(room) * min(1, float64(p.Done)/float64(p.Total)))
	}
	return left + "[" + strings.Repeat("=", full) + strings.Repeat(" ", room-full) + "]" + right
}
