// Command show links the interpreter, for a test that reads it out of the executable.
package main

import (
	"os"

	"github.com/cri-server/cri-server/pkg/runtime/program/internal/interp"
)

func main() { os.Stdout.Write(interp.Code()) }
