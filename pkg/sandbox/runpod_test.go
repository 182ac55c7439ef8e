package sandbox

import (
	"errors"
	"slices"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A network namespace that the holder has to make is attached after it, and a holder that fails keeps nobody waiting.
func TestNetworkAfterTheHolderThatMadeIt(t *testing.T) {
	sysctls := podConfig("sysctls")
	sysctls.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	userns := podConfig("userns")
	maps := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
	userns.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: maps, Gids: maps}
	for _, config := range []*cri.PodSandboxConfig{sysctls, userns} {
		t.Run(config.Metadata.Name, func(t *testing.T) {
			w := newWorld(t)
			boom := errors.New("boom")
			w.m.setFail("holder", boom)
			if _, err := w.mgr.RunPod(t.Context(), config, ""); !errors.Is(err, boom) || strings.Contains(err.Error(), "context") {
				t.Errorf("with a failing holder: %v", err)
			}
			w.clean()
			w.m.setFail("holder", nil)
			w.m.log = nil
			if _, err := w.mgr.RunPod(t.Context(), config, ""); err != nil {
				t.Fatal(err)
			}
			if h, a := slices.Index(w.m.log, "holder"), slices.Index(w.m.log, "attach"); h < 0 || a < h {
				t.Errorf("calls %v", w.m.log)
			}
		})
	}
}
