// Command cri-server is a Kubernetes CRI server, and its operator's command line.
package main

import (
	"os"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/cli"
)

// version is set by the linker to what git describes.
var version = "unknown"

func main() { os.Exit(cli.Main(version, os.Args[1:])) }
