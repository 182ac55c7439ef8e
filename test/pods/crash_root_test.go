//go:build root

package pods

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// job is a request that a server dies in.
type job struct {
	name    string
	points  []string
	passes  int  // how many times the request passes each point; 0 is once
	keeps   bool // the request is about one container: its pod stays ready, and its neighbour as it was
	prepare func(n *node)
	request func(n *node) error
	after   func(n *node, err error) error // judges the repeated request; nil: it must succeed
}

func mapped(c *cri.PodSandboxConfig) {
	c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 18081}}
}

func (n *node) configA() *cri.PodSandboxConfig { return n.podConfig("a", mapped) }

func (n *node) runA() error {
	_, err := n.tryPod(n.configA())
	return err
}

// unwritable is a sysctl that no kernel has: the pod's holder cannot be made.
func unwritable(c *cri.PodSandboxConfig) {
	c.Linux.Sysctls = map[string]string{"net.core.no_such_thing": "1"}
}

func (n *node) runFailing() error {
	_, err := n.tryPod(n.podConfig("a", unwritable))
	return err
}

func (n *node) createOne(edit ...func(*cri.ContainerConfig)) error {
	_, err := n.tryCreate(n.pods()[0].Id, containerConfig(n.configA(), "one", "exec sleep 1000", edit...), n.configA())
	return err
}

func missingHostPath(c *cri.ContainerConfig) {
	c.Mounts = []*cri.Mount{{HostPath: "/no/such/path", ContainerPath: "/x"}}
}

func noSuchCommand(c *cri.ContainerConfig) { c.Command = []string{"/no/such/command"} }

// one is the id of the container of that name.
func (n *node) one() string {
	for _, c := range n.containers() {
		if c.Metadata.Name == "one" {
			return c.Id
		}
	}
	return "none"
}

func (n *node) podOfTwo() {
	pod := n.pod(n.configA())
	n.run(pod, n.configA(), "one", "exec sleep 1000")
	n.run(pod, n.configA(), "two", "exec sleep 1000")
}

// still is an after for requests that fail with a code however often they are made, and leave nothing.
func still(code codes.Code) func(*node, error) error {
	return func(_ *node, err error) error {
		if status.Code(err) != code {
			return fmt.Errorf("%w, want code %s", err, code)
		}
		return nil
	}
}

func crashJobs() []job {
	table := sandbox.FaultPoints()
	points := func(names ...string) (out []string) {
		for _, name := range names {
			out = append(out, table[name]...)
		}
		return out
	}
	var attach, detach []string
	for _, f := range network.Faults {
		if strings.HasPrefix(f, "Attach/") {
			attach = append(attach, f)
		} else {
			detach = append(detach, f)
		}
	}
	stop := func(n *node) error {
		_, err := n.rt.StopPodSandbox(n.ctx, &cri.StopPodSandboxRequest{PodSandboxId: n.pods()[0].Id})
		return err
	}
	return []job{
		{name: "run pod", points: append(points("RunPodSandbox"), attach...), request: (*node).runA},
		{name: "run pod undone", points: points("StopPodSandbox", "RemovePodSandbox"), request: (*node).runFailing, after: still(codes.InvalidArgument)},
		{name: "create", keeps: true, points: points("CreateContainer"), prepare: func(n *node) { n.pod(n.configA()) }, request: func(n *node) error { return n.createOne() }},
		{name: "create undone", points: points("StopContainer", "RemoveContainer"), prepare: func(n *node) { n.pod(n.configA()) },
			request: func(n *node) error { return n.createOne(missingHostPath) }, after: still(codes.NotFound)},
		{name: "start", keeps: true, points: points("StartContainer"), prepare: func(n *node) { n.podOfTwoCreated() }, request: func(n *node) error { return n.tryStart(n.one()) }},
		{name: "start undone", points: points("StopContainer"), prepare: func(n *node) { n.podOfTwoCreated(noSuchCommand) }, request: func(n *node) error { return n.tryStart(n.one()) },
			after: func(n *node, err error) error {
				if s := n.status(n.one()); s.State != cri.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || err == nil {
					return fmt.Errorf("a command that is not there: %s, reason %s: %w", s.State, s.Reason, err)
				}
				return nil
			}},
		{name: "stop container", keeps: true, points: points("StopContainer"), prepare: (*node).podOfTwo, request: func(n *node) error {
			_, err := n.rt.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: n.one()})
			return err
		}},
		{name: "remove container", keeps: true, points: points("StopContainer", "RemoveContainer"), prepare: (*node).podOfTwo, request: func(n *node) error {
			_, err := n.rt.RemoveContainer(n.ctx, &cri.RemoveContainerRequest{ContainerId: n.one()})
			return err
		}},
		{name: "stop pod", points: append(points("StopPodSandbox"), detach...), prepare: (*node).podOfTwo, request: stop},
		{name: "stop pod's containers", points: points("StopContainer"), passes: 2, prepare: (*node).podOfTwo, request: stop},
		{name: "remove pod", points: points("StopPodSandbox", "RemovePodSandbox"), prepare: (*node).podOfTwo, request: (*node).removeFirst},
		{name: "remove pod's containers", points: points("StopContainer", "RemoveContainer"), passes: 2, prepare: (*node).podOfTwo, request: (*node).removeFirst},
		{name: "pull", points: image.PullSteps(), prepare: (*node).newVersion, request: func(n *node) error {
			_, err := n.img.PullImage(n.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: versioned}})
			return err
		}},
	}
}

func (n *node) podOfTwoCreated(edit ...func(*cri.ContainerConfig)) {
	pod := n.pod(n.configA())
	n.create(pod, containerConfig(n.configA(), "one", "exec sleep 1000", edit...), n.configA())
	n.create(pod, containerConfig(n.configA(), "two", "exec sleep 1000"), n.configA())
}

func (n *node) removeFirst() error {
	pods := n.pods()
	if len(pods) == 0 {
		return nil // what died had done its work
	}
	_, err := n.rt.RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pods[0].Id})
	return err
}

// versioned is an image whose tag moves.
const versioned = "registry.test/versioned:latest"

var versions int

// newVersion makes the tag mean an image that the node has not got yet.
func (n *node) newVersion() {
	versions++
	pushLayers(n.t, versioned, v1.Config{}, layer(n.t, file("same", 0o644, "same")), layer(n.t, file("version", 0o644, fmt.Sprint(versions))))
}

// TestCrashSweep kills the server at every step of every call that changes something, and of the undoing of those
// that fail. Started again, it finds nothing amiss, answers the same request, and everything can be removed.
func TestCrashSweep(t *testing.T) {
	n := newNode(t)
	n.newVersion()
	n.pull(versioned)
	fired := map[string]bool{}
	for _, j := range crashJobs() {
		for _, point := range j.points {
			for pass := range max(1, j.passes) {
				t.Run(fmt.Sprintf("%s/%s/%d", j.name, point, pass+1), func(t *testing.T) {
					n.t = t
					if n.crash(j, fmt.Sprintf("%s@%d", point, pass+1)) {
						fired[point] = true
					}
				})
				if n.t = t; t.Failed() {
					return // the node is not what the next one expects
				}
			}
		}
	}
	all := append(image.PullSteps(), network.Faults...)
	for _, points := range sandbox.FaultPoints() {
		all = append(all, points...)
	}
	for _, p := range all {
		if !fired[p] && p != network.FaultBound && p != network.FaultUnbound { // for plugins that are executed
			t.Errorf("no server died at %s", p)
		}
	}
}

// crash is one of the sweep: it reports whether the server died at the point.
func (n *node) crash(j job, point string) bool {
	n.kill()
	n.up(point + "=kill")
	if j.prepare != nil {
		j.prepare(n)
	}
	before := n.neighbour()
	err := j.request(n)
	died := status.Code(err) == codes.Unavailable || errors.Is(err, os.ErrClosed)
	if died && !n.died() {
		n.t.Fatalf("the server did not answer and did not die: %v", err)
	}
	if !died {
		n.kill()
	}
	n.up("")
	n.check()
	if after := n.neighbour(); j.keeps && after != before {
		n.t.Errorf("the pod and the other container are %s, and were %s", after, before)
	}
	err = j.request(n)
	if j.after != nil {
		err = j.after(n, err)
	}
	if err != nil {
		n.t.Errorf("the same request: %v", err)
	}
	n.check()
	n.removeAll()
	return died
}

// neighbour tells of the pod, and of the container in it that the requests are not about.
func (n *node) neighbour() string {
	var out []string
	for _, p := range n.pods() {
		out = append(out, p.State.String())
	}
	for _, c := range n.containers() {
		if c.Metadata.Name == "two" {
			out = append(out, c.State.String(), fmt.Sprint(n.status(c.Id).StartedAt))
		}
	}
	return strings.Join(out, " ")
}

// shimFaults are the places at which a shim can be made to die, by the request that passes them and how often it did before.
var shimFaults = []struct {
	point  string
	create bool // passed by the start of the pod's holder: there is no pod
	runs   bool // the container's exit is known to the shim's record
}{
	{"shim/launch@1", true, false}, {"shim/launched@1", true, false}, {"shim/launch@2", false, false}, {"shim/launched@2", false, false},
	{"shim/record@1", false, false}, {"shim/recorded@1", false, true}, {"shim/exec@1", false, false},
}

// TestShimCrashSweep kills a shim at every one of its places.
func TestShimCrashSweep(t *testing.T) {
	n := newNode(t)
	for _, f := range shimFaults {
		t.Run(f.point, func(t *testing.T) {
			n.t = t
			n.kill()
			n.up(f.point + "=kill")
			pod, err := n.tryPod(n.configA())
			if f.create {
				if err == nil {
					t.Errorf("pod %s was made by a shim that died", pod)
				}
				n.clean()
				n.kill()
				n.up("")
				n.pod(n.configA())
				n.removeAll()
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			id := n.create(pod, containerConfig(n.configA(), "one", "echo out; exit 3"), n.configA())
			if f.point == "shim/exec@1" {
				n.shimDiesInExec(pod)
				return
			}
			err = n.tryStart(id)
			if s := n.ended(id); f.runs && (s.ExitCode != 3 || s.Reason == "ShimDied" || err != nil) {
				t.Errorf("exit %d, reason %s, start: %v", s.ExitCode, s.Reason, err)
			} else if !f.runs && s.ExitCode != 137 && s.Reason != "StartError" {
				t.Errorf("exit %d, reason %s, start: %v", s.ExitCode, s.Reason, err)
			}
			n.notReady(pod)
			n.check()
			n.removeAll()
		})
		n.t = t
	}
}

func (n *node) shimDiesInExec(pod string) {
	id := n.run(pod, n.configA(), "two", "exec sleep 1000")
	if r, err := n.rt.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 60}); err == nil {
		n.t.Errorf("exec without a shim: %+v", r)
	}
	if s := n.ended(id); s.ExitCode != 137 || s.Reason != "ShimDied" {
		n.t.Errorf("exit %d, reason %s", s.ExitCode, s.Reason)
	}
	n.notReady(pod)
	n.check()
	n.removeAll()
}

// notReady waits for the pod to be told as such.
func (n *node) notReady(pod string) {
	n.t.Helper()
	eventually(n.t, "pod "+pod+" is not ready", func() bool { return n.podStatus(pod).State == cri.PodSandboxState_SANDBOX_NOTREADY })
}

// leasePlugin is a CNI plugin that only takes and gives back a lease, which is a file.
const leasePlugin = `#!/bin/sh
lease=%s/$CNI_CONTAINERID
case $CNI_COMMAND in
ADD) [ -e "$CNI_NETNS" ] || exit 1; touch "$lease"; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.99.0.2/24"}]}' ;;
DEL) rm -f "$lease" ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
esac
`

// TestCrashWithExecutedPlugin sweeps the places of a network whose plugin is a program: the namespace is bound for it to find.
func TestCrashWithExecutedPlugin(t *testing.T) {
	n := idleNode(t)
	leases, bin := filepath.Join(filepath.Dir(n.dir), "leases"), filepath.Join(filepath.Dir(n.dir), "cni")
	n.config = fmt.Sprintf("[network]\nbin_dirs = [%q]\n[network.default]\nenabled = false\n", bin)
	for _, d := range []string{leases, bin, n.path("net.d")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(bin, "lease"), fmt.Appendf(nil, leasePlugin, leases), 0o700),
		os.WriteFile(n.path("net.d", "10-lease.conflist"), []byte(`{"cniVersion":"1.0.0","name":"leases","plugins":[{"type":"lease"}]}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	n.up("")
	n.pull(busybox)
	config := n.podConfig("a")
	attach := job{request: func(n *node) error { _, err := n.tryPod(config); return err }}
	detach := job{prepare: func(n *node) { n.pod(config) }, request: func(n *node) error {
		_, err := n.rt.StopPodSandbox(n.ctx, &cri.StopPodSandboxRequest{PodSandboxId: n.pods()[0].Id})
		return err
	}}
	for point, j := range map[string]job{network.FaultRecorded: attach, network.FaultBound: attach, network.FaultAdded: attach, network.FaultDeleted: detach, network.FaultUnbound: detach} {
		t.Run(point, func(t *testing.T) {
			n.t = t
			if !n.crash(j, point) {
				t.Error("the server did not die")
			}
			if left, _ := os.ReadDir(leases); len(left) != 0 {
				t.Errorf("leases are left: %v", left)
			}
		})
		n.t = t
	}
}
