package cli

import (
	"io"
	"os"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) exec() *cobra.Command {
	var stdin, tty bool
	cmd := &cobra.Command{
		Use: "exec [-it] CONTAINER COMMAND [ARG...]", Short: "Run a command in a running container", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *client) error {
				resp, err := c.Exec(cmd.Context(), &cri.ExecRequest{ContainerId: args[0], Cmd: args[1:], Tty: tty, Stdin: stdin, Stdout: true, Stderr: !tty})
				if err != nil {
					return err
				}
				code, err := a.session(cmd.Context(), resp.GetUrl(), stdin, true, tty)
				if err == nil && code != 0 {
					err = exitCode(code)
				}
				return err
			})
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "connect standard input")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return cmd
}

// input is standard input, or nothing.
func (a *app) input(on bool) io.Reader {
	if !on {
		return nil
	}
	return a.in
}

// terminal returns the file of a terminal on standard input, nil where there is none.
func (a *app) terminal() *os.File {
	f, ok := a.in.(*os.File)
	if !ok || !isTerminal(f) {
		return nil
	}
	return f
}
