//go:build root

package runtime_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
)

const profile = `profile cri-runtime-test flags=(attach_disconnected) { file, capability, network, signal, ptrace, mount, umount, deny /etc/secret rw, }`

func TestAppArmor(t *testing.T) {
	testroot.NeedRoot(t)
	if b, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(b), "Y") {
		testroot.Skip(t, "this kernel has no AppArmor, or it is off")
	}
	parser := testroot.NeedProgram(t, "apparmor_parser")
	cmd := exec.Command(parser, "-r", "-K")
	cmd.Stdin = strings.NewReader(profile)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	root := testroot.Rootfs(t, t.TempDir())
	os.WriteFile(root+"/etc/secret", []byte("secret\n"), 0o644)
	for _, nnp := range []bool{false, true} {
		s := spec(root, "cat /proc/self/attr/current; cat /etc/secret")
		s.Process.ApparmorProfile = "cri-runtime-test"
		s.Process.NoNewPrivileges = nnp
		r, err := run(t, runtime.Options{Spec: s})
		if err != nil || !strings.HasPrefix(r.out, "cri-runtime-test (enforce)") || strings.Contains(r.out, "secret\n") {
			t.Errorf("no_new_privs %v: got %+v, %v", nnp, r, err)
		}
		s.Process.Args = []string{"sleep", "1000"}
		c := begin(t, runtime.Options{Spec: s})
		r, err = c.exec(t, "cat /proc/self/attr/current /etc/secret")
		if err != nil || !strings.HasPrefix(r.out, "cri-runtime-test (enforce)") || strings.Contains(r.out, "secret\n") {
			t.Errorf("exec, no_new_privs %v: got %+v, %v", nnp, r, err)
		}
	}
	s := spec(root, "cat /proc/self/attr/current")
	s.Process.ApparmorProfile = "unconfined"
	if r, err := run(t, runtime.Options{Spec: s}); err != nil || !strings.HasPrefix(r.out, "unconfined") {
		t.Errorf("unconfined: %+v, %v", r, err)
	}
	s.Process.ApparmorProfile = "cri-no-such-profile"
	if _, err := run(t, runtime.Options{Spec: s}); err == nil || !strings.Contains(err.Error(), "AppArmor profile cri-no-such-profile") {
		t.Errorf("a profile that is not loaded: %v", err)
	}
	p, err := runtime.PrepareHolder(context.Background(), runtime.HolderOptions{ID: "pod", Namespaces: podTypes, ApparmorProfile: "cri-runtime-test", Clamp: true})
	if err != nil {
		t.Fatal(err)
	}
	proc := startPrepared(t, p)
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", proc.Pid)); err != nil || !strings.HasPrefix(string(b), "cri-runtime-test") {
		t.Errorf("the holder's profile is %q, %v", b, err)
	}
}

// TestSharedPIDHidden has a container that may trace watch others being made and exec'd beside it.
func TestSharedPIDHidden(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	types := append([]specs.LinuxNamespaceType{specs.PIDNamespace}, podTypes...)
	pidfd, _ := pod(t, runtime.HolderOptions{Namespaces: types})
	s := spec(root, watchScript)
	s.Hostname = ""
	caps := append(s.Process.Capabilities.Bounding, "CAP_SYS_PTRACE")
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	o := joined(s, pidfd, types...)
	o.ID, o.Clamp = "watch", true
	p, err := runtime.Prepare(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	done, pids := make(chan result, 1), make(chan int, 1)
	go func() {
		r, err := launchWatched(t, p, pids)
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	<-pids
	other := testroot.Rootfs(t, t.TempDir())
	for range 40 {
		s := spec(other, "true")
		s.Hostname = ""
		if _, err := run(t, joined(s, pidfd, types...)); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(root+"/stop", nil, 0o644)
	r := <-done
	for line := range strings.Lines(r.out) {
		// The helper that older kernels need has the context it makes and the socket it sends it by.
		if f := strings.Fields(line); line != "end\n" && !(len(f) == 3 && f[0] == "fd" && (strings.HasPrefix(f[2], "socket:") || f[2] == "anon_inode:[fscontext]")) {
			t.Errorf("seen: %s", line)
		}
	}
	if !strings.HasSuffix(r.out, "end\n") {
		t.Errorf("the watcher: %s %s", r.out, r.err)
	}
}
