//go:build root

package runtime_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
)

// TestNetDevices moves devices from the test's network namespace to a container's.
func TestNetDevices(t *testing.T) {
	testroot.NeedRoot(t)
	if _, err := exec.LookPath("ip"); err != nil {
		testroot.Skip(t, "there is no ip(8)")
	}
	ip := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	ip("link", "add", "mv0", "type", "veth", "peer", "name", "mv1")
	t.Cleanup(func() {
		for _, name := range []string{"mv1", "mv2p", "mv3p"} {
			exec.Command("ip", "link", "del", name).Run()
		}
	})
	ip("addr", "add", "10.99.1.2/24", "dev", "mv0")
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/mv0/accept_dad", []byte("0"), 0); err != nil { // no detection of duplicates, busybox's ip has no word for it
		t.Fatal(err)
	}
	ip("addr", "add", "fd99::2/64", "dev", "mv0")
	ip("addr", "add", "169.254.9.9/16", "dev", "mv0", "scope", "link")
	ip("link", "add", "mv2", "type", "veth", "peer", "name", "mv2p")
	root := testroot.Rootfs(t, t.TempDir())
	c := begin(t, runtime.Options{Spec: spec(root, "sleep 1000")})
	ns, err := os.Open("/proc/" + strconv.Itoa(c.Pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := runtime.MoveNetDevices(map[string]specs.LinuxNetDevice{"mv0": {Name: "eth0"}, "mv2": {Name: "dum%d"}}, ns); err != nil {
		t.Fatal(err)
	}
	r, err := c.exec(t, "ip addr")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" eth0", "inet 10.99.1.2/24", "inet6 fd99::2/64", " dum0", ",UP"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("no %q in %s", want, r.out)
		}
	}
	if strings.Contains(r.out, "169.254") {
		t.Errorf("an address of a link's scope came along: %s", r.out)
	}
	ip("link", "add", "mv3", "type", "veth", "peer", "name", "mv3p")
	for name, want := range map[string]error{"none": unix.ENODEV, "mv3": unix.EEXIST} {
		err := runtime.MoveNetDevices(map[string]specs.LinuxNetDevice{name: {Name: "eth0"}}, ns)
		if err == nil || !strings.Contains(err.Error(), want.Error()) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

// TestLoopback: a network namespace of a container's own comes with its loopback device up, as with other runtimes.
func TestLoopback(t *testing.T) {
	testroot.NeedRoot(t)
	s := spec(testroot.Rootfs(t, t.TempDir()), "ip addr show lo")
	r, err := run(t, runtime.Options{Spec: s})
	if err != nil || !strings.Contains(r.out, ",UP") || !strings.Contains(r.out, "127.0.0.1/8") {
		t.Errorf("%v: %s", err, r.out)
	}
}
