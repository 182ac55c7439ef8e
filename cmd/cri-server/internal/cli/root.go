// Package cli is cri-server's command line: serve, and the operator's verbs, one file each.
//
// Every verb but serve, check and config speaks to a running server on its socket. Errors read
// "what (subject): cause. next step."
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/config"
)

// SocketEnv names the server's socket where no flag does.
const SocketEnv = "CRI_SERVER_SOCKET"

// app is what the verbs share.
type app struct {
	version string
	files   []string // --config
	root    string
	state   string
	socket  string
	in      io.Reader
	out     io.Writer
	err     io.Writer
}

// exitCode ends the program with a code of its own, after everything was said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Main runs the command line and returns the exit code.
func Main(version string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	a := &app{version: version, in: os.Stdin, out: os.Stdout, err: os.Stderr}
	cmd := a.command()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	var code exitCode
	if err == nil || errors.As(err, &code) {
		return int(code)
	}
	fmt.Fprintln(a.err, "cri-server:", explain(err))
	return failureCode(err)
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "cri-server",
		Short:         "A Kubernetes CRI server with its own runtime",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.CompletionOptions.HiddenDefaultCmd = true
	f := root.PersistentFlags()
	f.StringArrayVar(&a.files, "config", nil, "configuration file, repeatable: later ones override (default "+config.DefaultFile+")")
	f.StringVar(&a.root, "root", "", "directory of images and records (default "+config.DefaultRoot+")")
	f.StringVar(&a.state, "state", "", "directory of what a reboot may lose (default "+config.DefaultState+")")
	f.StringVar(&a.socket, "socket", os.Getenv(SocketEnv), "the server's socket (default cri-server.sock in the state directory; env "+SocketEnv+")")
	root.AddCommand(a.serve(), a.configCmd(), a.versionCmd(), a.check(), a.network(),
		a.pull(), a.images(), a.rmi(), a.run(), a.ps(), a.pods(), a.logs(), a.exec(), a.stop(), a.rm())
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return misused(c, err) })
	explainArgs(root)
	return root
}

// explainArgs makes a verb and those below it say how they are used to who gives them too many words, or too few.
func explainArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return misused(c, err)
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		explainArgs(c)
	}
}

func misused(c *cobra.Command, err error) error {
	return fmt.Errorf("arguments (%s): %w. Use: %s; \"%s --help\" says more.", c.CommandPath(), err, c.UseLine(), c.CommandPath()) //nolint:staticcheck // read by a person
}

// load reads the configuration and what flags override.
func (a *app) load() (*config.Config, error) {
	cfg, err := config.Load(a.files...)
	if err != nil {
		return nil, err
	}
	for _, o := range []struct {
		flag string
		key  *string
	}{{a.root, &cfg.Root}, {a.state, &cfg.State}, {a.socket, &cfg.Socket}} {
		if o.flag != "" {
			*o.key = o.flag
		}
	}
	return cfg, nil
}
