package serve

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-server/cri-server/pkg/oci"
)

// appArmorName is what the profile of our own is called. Several servers of a machine share it: it is the same text.
const appArmorName = "cri-server-default"

//go:embed apparmor.profile
var appArmorProfile string

// appArmor settles which AppArmor profile containers get that name none: the configured one, or our own, which is
// loaded. Without an AppArmor in the kernel it is none. Where ours cannot be loaded it is none, too, and why says so:
// a container that asks for RuntimeDefault is refused then, one that asks for nothing goes without.
func appArmor(ctx context.Context, configured string, host *oci.HostFacts) (name, why string) {
	if !host.AppArmor {
		return "", ""
	}
	if configured != "" {
		if configured != "unconfined" && !host.AppArmorLoaded(configured) {
			klog.InfoS("The configured AppArmor profile is not loaded: containers that need it will not start", "profile", configured)
		}
		return configured, ""
	}
	if err := loadAppArmor(ctx, appArmorParser()); err != nil {
		klog.ErrorS(err, "Containers that name no AppArmor profile run without one")
		return "", err.Error()
	}
	return appArmorName, ""
}

// appArmorParser finds the tool of the AppArmor project that compiles profiles; "" where there is none.
func appArmorParser() string {
	for _, name := range []string{"apparmor_parser", "/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

func loadAppArmor(ctx context.Context, parser string) error {
	if parser == "" {
		return fmt.Errorf("load AppArmor profile %s: there is no apparmor_parser. Install the package apparmor", appArmorName)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache", "--quiet")
	cmd.Stdin = strings.NewReader(profileText(appArmorName, ownAppArmor()))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %s: %w: %s", appArmorName, parser, err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// profileText is the profile for a server that itself runs under the profile own, "" for none.
func profileText(name, own string) string {
	peer := ""
	if own != "" {
		peer = fmt.Sprintf("  signal (receive) peer=%q,\n", own)
	}
	return strings.NewReplacer("%NAME%", name, "%PEER%", peer).Replace(appArmorProfile)
}

// ownAppArmor is the profile that this process is under, "" for none.
func ownAppArmor() string {
	for _, file := range []string{"/proc/self/attr/apparmor/current", "/proc/self/attr/current"} {
		if b, err := os.ReadFile(file); err == nil {
			name, _, _ := strings.Cut(strings.TrimSpace(string(b)), " (")
			if name == "unconfined" || strings.ContainsAny(name, "\"\\\n") {
				return ""
			}
			return name
		}
	}
	return ""
}
