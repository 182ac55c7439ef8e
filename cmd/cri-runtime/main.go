// Command cri-runtime is the OCI runtime with runc's command line, and the per-pod shim.
package main

import (
	"os"

	"github.com/cri-server/cri-server/pkg/runtime/cli"
	"github.com/cri-server/cri-server/pkg/shim"
	"github.com/cri-server/cri-server/pkg/sys"
)

var version = "unknown" // set by the linker

func main() {
	if len(os.Args) > 1 && os.Args[1] == "shim" { // before anything else: there is one such process per pod
		os.Exit(shim.Main(os.Args[2:]))
	}
	sys.CalmMonitor()
	os.Exit(cli.Main(os.Args, version))
}
