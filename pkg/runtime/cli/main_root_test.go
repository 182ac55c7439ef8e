//go:build root

package cli

import (
	"testing"

	"github.com/cri-server/cri-server/internal/testroot"
)

func TestMain(m *testing.M) {
	asCommand()
	testroot.Main(m)
}
