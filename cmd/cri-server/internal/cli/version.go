package cli

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program and of the server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(a.out, "client: cri-server %s (%s %s/%s)\n", a.version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			err := a.with(cmd.Context(), func(c *client) error {
				v, err := c.Version(cmd.Context(), &cri.VersionRequest{})
				if err == nil {
					fmt.Fprintf(a.out, "server: %s %s, CRI %s\n", v.GetRuntimeName(), v.GetRuntimeVersion(), v.GetRuntimeApiVersion())
				}
				return err
			})
			if errors.Is(err, errNoServer) {
				fmt.Fprintln(a.out, "server: not running")
				return nil
			}
			return err
		},
	}
}
