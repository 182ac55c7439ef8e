//go:build !root

package cli

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	asCommand()
	os.Exit(m.Run())
}
