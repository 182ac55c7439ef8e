package cli

import (
	"flag"
	"strconv"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/serve"
)

func (a *app) serve() *cobra.Command {
	verbosity := -1
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the CRI until told to stop",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			if verbosity >= 0 {
				cfg.LogLevel = verbosity
			}
			if err := cfg.Finish(); err != nil {
				return err
			}
			logging(cfg.LogLevel)
			defer klog.Flush()
			return serve.Run(c.Context(), cfg, a.version)
		},
	}
	cmd.Flags().IntVarP(&verbosity, "verbosity", "v", -1, "log verbosity: 0 failures, 2 changes, 4 every call (default log_level of the configuration)")
	return cmd
}

// logging sends the log to standard error.
func logging(level int) {
	fs := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(fs)
	_ = fs.Set("logtostderr", "true") // flags of klog's own, which exist
	_ = fs.Set("v", strconv.Itoa(level))
}
