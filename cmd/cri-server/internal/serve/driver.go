package serve

import (
	"os"
	"strings"

	"github.com/cri-server/cri-server/cmd/cri-server/internal/config"
	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/systemd"
)

// The cgroup drivers.
const (
	driverFiles   = "cgroupfs"
	driverSystemd = "systemd"
)

// settleDriver settles which driver "auto" is, and that the one asked for can work.
func settleDriver(cfg *config.Config) error {
	first, _ := os.ReadFile("/proc/1/comm")
	can := systemd.Booted() && strings.TrimSpace(string(first)) == "systemd" // one of another PID namespace knows other pids
	switch {
	case cfg.CgroupDriver == "auto" && can:
		cfg.CgroupDriver = driverSystemd
	case cfg.CgroupDriver == "auto":
		cfg.CgroupDriver = driverFiles
	case cfg.CgroupDriver == driverSystemd && !can:
		return errs.New(errs.Unsupported, "cgroup driver (systemd): systemd is not process 1 here. Configure cgroup_driver = \"cgroupfs\"")
	}
	return nil
}
