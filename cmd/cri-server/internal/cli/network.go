package cli

import (
	"fmt"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) network() *cobra.Command {
	cmd := &cobra.Command{Use: "network", Short: "The pods' network", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(
		&cobra.Command{
			Use: "enable-default", Short: "Switch on a bridge network for a machine without a CNI configuration", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.with(cmd.Context(), func(c *client) error { return c.admin.EnableDefaultNetwork(cmd.Context()) })
			},
		},
		&cobra.Command{
			Use: "remove-default", Short: "Switch the default network off and remove its bridge", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.with(cmd.Context(), func(c *client) error { return c.admin.RemoveDefaultNetwork(cmd.Context()) })
			},
		},
		&cobra.Command{
			Use: "status", Short: "Say whether pods can be attached", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return a.with(cmd.Context(), func(c *client) error {
					ready, why, err := networkReady(cmd, c)
					if err != nil {
						return err
					}
					if !ready {
						fmt.Fprintln(a.out, "not ready:", why)
						return exitCode(1)
					}
					fmt.Fprintln(a.out, "ready")
					return nil
				})
			},
		},
	)
	return cmd
}

func networkReady(cmd *cobra.Command, c *client) (ready bool, why string, err error) {
	st, err := c.Status(cmd.Context(), &cri.StatusRequest{})
	if err != nil {
		return false, "", err
	}
	for _, cond := range st.GetStatus().GetConditions() {
		if cond.GetType() == cri.NetworkReady {
			return cond.GetStatus(), cond.GetMessage(), nil
		}
	}
	return false, "the server does not say", nil
}
