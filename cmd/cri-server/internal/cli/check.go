package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/serve"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

func (a *app) check() *cobra.Command {
	var images bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare the records with the machine, and list what does not agree",
		Long: "Check looks for mounts, namespaces, cgroups, processes, addresses and files that no record explains, and for\n" +
			"records that the machine does not bear out. It changes nothing. A running server is asked; without one the\n" +
			"records are read from --root. The exit code is 1 when something was found; notes,\n" +
			"which go to standard error, are none.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			problems, err := a.audit(cmd, images)
			if err != nil {
				return err
			}
			found := false
			for _, p := range problems {
				to := a.out
				if p.Kind == sandbox.Note {
					to = a.err
				} else {
					found = true
				}
				fmt.Fprintf(to, "%s %s: %s\n", p.Kind, p.Subject, p.Detail)
			}
			if found {
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&images, "images", false, "re-hash the content of all images too")
	return cmd
}

func (a *app) audit(cmd *cobra.Command, images bool) (problems []sandbox.Problem, err error) {
	err = a.with(cmd.Context(), func(c *client) (err error) {
		problems, err = c.admin.Check(cmd.Context(), images)
		return err
	})
	if !errors.Is(err, errNoServer) {
		return problems, err
	}
	cfg, err := a.load()
	if err == nil {
		err = cfg.Finish()
	}
	if err != nil {
		return nil, err
	}
	return serve.Audit(cmd.Context(), cfg, images)
}
