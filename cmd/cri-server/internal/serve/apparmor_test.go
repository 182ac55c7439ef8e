package serve

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/oci"
)

// TestProfileIsOne has the profile compiled, which needs neither root nor a kernel that has AppArmor.
func TestProfileIsOne(t *testing.T) {
	parser := appArmorParser()
	if parser == "" {
		t.Skip("there is no apparmor_parser on this machine")
	}
	for _, own := range []string{"", "cri-server", "/usr/bin/cri server"} {
		cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache", "--quiet")
		cmd.Stdin = strings.NewReader(profileText("some-name", own))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("under %q: %v: %s", own, err, out)
		}
	}
	if text := profileText("x", ""); strings.Contains(text, "%") {
		t.Errorf("a placeholder is left in\n%s", text)
	}
}

func TestAppArmorChoice(t *testing.T) {
	host := &oci.HostFacts{AppArmorLoaded: func(string) bool { return false }}
	if name, why := appArmor(t.Context(), "x", host); name != "" || why != "" {
		t.Errorf("without AppArmor: %q, %q", name, why)
	}
	host.AppArmor = true
	if name, why := appArmor(t.Context(), "x", host); name != "x" || why != "" {
		t.Errorf("a configured profile: %q, %q", name, why)
	}
	if err := loadAppArmor(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "Install") {
		t.Errorf("no parser: %v", err)
	}
	parser := filepath.Join(t.TempDir(), "parser")
	if err := os.WriteFile(parser, []byte("#!/bin/sh\ncat >/dev/null; echo bad policy >&2; exit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := loadAppArmor(t.Context(), parser); err == nil || !strings.Contains(err.Error(), "bad policy") {
		t.Errorf("a parser that fails: %v", err)
	}
}
