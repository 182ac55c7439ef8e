//go:build root

package pods

import (
	"testing"

	"github.com/cri-server/cri-server/internal/testroot"
)

func TestMain(m *testing.M) { testroot.Main(m) }
