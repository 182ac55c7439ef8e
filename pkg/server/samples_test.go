package server

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/sandbox"
	"github.com/cri-server/cri-server/pkg/stats"
)

func TestSnapshotsForStats(t *testing.T) {
	now := time.Now()
	pod := &sandbox.Pod{
		ID: "p", Ready: true, HolderPid: 7, Cgroup: "/k/podu", CgroupPath: "/k/podu/p", CreatedAt: now,
		Config: &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}}},
	}
	want := stats.Pod{ID: "p", Parent: "/k/podu", Holder: "/k/podu/p", HolderPid: 7, HostNetwork: true, CreatedAt: now}
	if diff := cmp.Diff(want, statsPod(pod)); diff != "" {
		t.Error(diff)
	}
	pod.Ready = false
	if statsPod(pod).HolderPid != 0 {
		t.Error("a pod that is not ready is measured")
	}
	ctr := &sandbox.Container{
		ID: "c", PodID: "p", Pid: 9, StartedAt: now, CgroupPath: "/k/podu/c", ImageRef: "r@sha256:x",
		Config: &cri.ContainerConfig{Image: &cri.ImageSpec{Image: "sha256:x", UserSpecifiedImage: "web:1"}},
	}
	if got := statsContainer(ctr); got.Image != "web:1" || got.Pid != 9 || got.Cgroup != "/k/podu/c" || got.PodID != "p" {
		t.Errorf("%+v", got)
	}
	ctr.FinishedAt, ctr.Config = now, &cri.ContainerConfig{}
	if got := statsContainer(ctr); got.Running() || got.Image != "r@sha256:x" {
		t.Errorf("%+v", got)
	}
}
