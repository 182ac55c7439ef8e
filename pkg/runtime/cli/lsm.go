package cli

import (
	"os"
	"strings"
)

// dropLabels leaves out, with a warning, a mount label and an AppArmor profile where the kernel has no such
// security module, as crun does, so that a configuration written elsewhere runs here too. A process's SELinux
// label stays, and is an error there, as with every other runtime. It reports whether it left anything out.
func (cr *creation) dropLabels() (dropped bool) {
	l, p := cr.config.Linux, cr.config.Process
	if l.MountLabel != "" && !selinux() {
		cr.app.log.warn("mountLabel %s is left out: this kernel runs without SELinux", l.MountLabel)
		l.MountLabel, dropped = "", true
	}
	if p.ApparmorProfile != "" && !apparmor() {
		cr.app.log.warn("apparmorProfile %s is left out: this kernel runs without AppArmor", p.ApparmorProfile)
		p.ApparmorProfile, dropped = "", true
	}
	return dropped
}

func selinux() bool {
	_, err := os.Stat("/sys/fs/selinux/status")
	return err == nil
}

func apparmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(b), "Y")
}
