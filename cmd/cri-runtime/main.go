// Command cri-runtime is the OCI runtime with runc's command line, and the per-pod shim.
package main

import (
	"fmt"
	"os"

	"github.com/cri-server/cri-server/pkg/shim"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "shim" { // before anything else: there is one such process per pod
		os.Exit(shim.Main(os.Args[2:]))
	}
	fmt.Fprintln(os.Stderr, "cri-runtime: no such command")
	os.Exit(1)
}
