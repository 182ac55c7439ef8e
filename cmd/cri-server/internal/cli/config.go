package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/config"
)

func (a *app) configCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Show and check the configuration", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(
		&cobra.Command{
			Use: "default", Short: "Print the default configuration, with what each key means", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprint(a.out, config.Default)
				return err
			},
		},
		&cobra.Command{
			Use: "check", Short: "Check the configuration files", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				cfg, err := a.load()
				if err == nil {
					err = cfg.Finish()
				}
				return err
			},
		},
	)
	return cmd
}
