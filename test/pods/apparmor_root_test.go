//go:build root

package pods

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/internal/testroot"
)

// TestAppArmor is the profile that the server loads: who is under it, what it denies, and what it must not.
func TestAppArmor(t *testing.T) {
	if b, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(b), "Y") {
		testroot.Skip(t, "this kernel has no AppArmor, or it is off")
	}
	testroot.NeedProgram(t, "apparmor_parser")
	n := newNode(t)
	if r, err := n.rt.Status(n.ctx, &cri.StatusRequest{Verbose: true}); err != nil || !strings.Contains(r.Info["host"], `"apparmorDefault":"cri-server-default"`) {
		t.Errorf("status: %v, %v", r.GetInfo()["host"], err)
	}
	config := n.podConfig("armor", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	pod := n.pod(config)
	confined := func(name string, p *cri.SecurityProfile, edit ...func(*cri.LinuxContainerSecurityContext)) string {
		return n.run(pod, config, name, "trap 'exit 7' TERM; while :; do sleep 0.1; done", func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.Apparmor = p
			for _, e := range edit {
				e(c.Linux.SecurityContext)
			}
		})
	}
	admin := func(sc *cri.LinuxContainerSecurityContext) {
		sc.Capabilities = &cri.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	}
	privileged := func(sc *cri.LinuxContainerSecurityContext) { sc.Privileged = true }
	const ours = "cri-server-default (enforce)"
	unset := confined("unset", nil, admin)
	for id, want := range map[string]string{
		unset: ours, confined("default", &cri.SecurityProfile{}): ours,
		confined("unconfined", &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}): "unconfined",
		confined("privileged", nil, privileged):                                                   "unconfined",
	} {
		if got := n.exec(id, "cat /proc/1/attr/current; cat /proc/self/attr/current"); got != want+"\n"+want {
			t.Errorf("%q, want %q twice", got, want)
		}
	}
	for what, script := range map[string]string{
		"a mount":      "mkdir -p /m && mount -t tmpfs x /m",
		"a bind mount": "mkdir -p /m && mount --bind /bin /m",
		"a remount":    "mount -o remount,rw /proc/sys",
		"kcore":        "head -c1 /proc/kcore",
		"a trigger":    "echo x > /proc/sysrq-trigger",
		"uevents":      "echo add > /sys/class/net/lo/uevent",
	} {
		r, err := n.rt.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: unset, Cmd: []string{"sh", "-c", script}, Timeout: 60})
		if err != nil || r.ExitCode == 0 {
			t.Errorf("%s is allowed: %v, %s", what, err, r)
		}
	}
	n.exec(unset, "echo x > /tmp/x && cp /bin/busybox /tmp/true && /tmp/true && echo 5 > /proc/self/oom_score_adj && ls /proc/1/fd /sys/class/net >/dev/null && (sleep 100 & kill $!)")
	if _, err := n.rt.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: unset, Timeout: 60}); err != nil {
		t.Error(err)
	}
	if s := n.ended(unset); s.ExitCode != 7 {
		t.Errorf("exit code %d: TERM did not reach the confined container", s.ExitCode)
	}
	local := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "cri-no-such-profile"}
	if _, err := n.tryPod(n.podConfig("bad", func(c *cri.PodSandboxConfig) { c.Linux.SecurityContext.Apparmor = local })); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "apparmor.localhost_ref") {
		t.Errorf("a pod with a profile that is not loaded: %v", err)
	}
	n.removeAll()
}
