//go:build root

package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/fault"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

// victimEnv names, in the process that is to die, the crash job; victimDir and victimName are its node's.
const (
	victimEnv  = "CRI_TEST_VICTIM"
	victimDir  = "CRI_TEST_VICTIM_DIR"
	victimName = "CRI_TEST_VICTIM_NAME"
	victimRef  = "CRI_TEST_VICTIM_REF"
)

// crashJob is a request that a process of its own is killed in.
type crashJob struct {
	table   string
	prepare func(r *rig)
	request func(r *rig) error
}

func (r *rig) onePod() string { return r.mgr.Pods()[0].ID }

func (r *rig) oneContainer() string {
	for _, c := range r.mgr.Containers() {
		return c.ID
	}
	return ""
}

func (r *rig) createOne() error {
	pod, err := r.mgr.Pod(r.onePod())
	if err != nil {
		return err
	}
	_, err = r.mgr.CreateContainer(r.ctx, pod.ID, &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: r.ref}, Command: []string{"sleep", "1000"}, LogPath: "c.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: pod.Config.Linux.SecurityContext.NamespaceOptions}},
	}, nil)
	return err
}

var crashJobs = []crashJob{
	{"RunPodSandbox", func(*rig) {}, func(r *rig) error {
		_, err := r.mgr.RunPod(r.ctx, r.podConfig("a"), "")
		return err
	}},
	{"CreateContainer", func(r *rig) { r.runPod(r.podConfig("a")) }, (*rig).createOne},
	{"StartContainer", func(r *rig) {
		r.runPod(r.podConfig("a"))
		if err := r.createOne(); err != nil {
			r.t.Fatal(err)
		}
	}, func(r *rig) error { return r.mgr.StartContainer(r.ctx, r.oneContainer()) }},
	{"StopContainer", (*rig).podWithContainer, func(r *rig) error { return r.mgr.StopContainer(r.ctx, r.oneContainer(), 0) }},
	{"StopPodSandbox", (*rig).podWithContainer, func(r *rig) error { return r.mgr.StopPod(r.ctx, r.onePod()) }},
	{"RemoveContainer", (*rig).podWithContainer, func(r *rig) error { return r.mgr.RemoveContainer(r.ctx, r.oneContainer()) }},
	{"RemovePodSandbox", (*rig).podWithContainer, func(r *rig) error {
		for _, p := range r.mgr.Pods() {
			return r.mgr.RemovePod(r.ctx, p.ID)
		}
		return nil
	}},
}

func (r *rig) podWithContainer() { r.container(r.runPod(r.podConfig("a")), "c", "exec sleep 1000") }

// TestCrashSweep kills the process that serves a request at every step, with nothing faked, and starts another on
// what it left.
func TestCrashSweep(t *testing.T) {
	testroot.NeedRoot(t)
	for _, j := range crashJobs {
		for _, point := range sandbox.FaultPoints()[j.table] {
			t.Run(point, func(t *testing.T) {
				r := newRig(t)
				j.prepare(r)
				r.close()
				if !r.die(j.table, point) {
					t.Fatal("the process did not die there")
				}
				r.open()
				r.clean()
				if err := j.request(r); err != nil {
					t.Errorf("the same request: %v", err)
				}
				r.clean()
				r.removeAll()
			})
		}
	}
}

// die runs the job's request in a process that is killed at the point.
func (r *rig) die(job, point string) bool {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), victimEnv+"="+job, victimDir+"="+r.dir, victimName+"="+r.name, victimRef+"="+r.ref, fault.Env+"="+point+"=kill")
	out, err := cmd.CombinedOutput()
	ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() || ctx.Err() != nil {
		r.t.Logf("the victim: %v: %s", err, out)
		return false
	}
	return true
}

// TestVictim is the process that dies. It does nothing in a run of the tests.
func TestVictim(t *testing.T) {
	job := os.Getenv(victimEnv)
	if job == "" {
		return
	}
	r := &rig{t: t, ctx: context.Background(), dir: os.Getenv(victimDir), name: os.Getenv(victimName), ref: os.Getenv(victimRef)}
	r.logs = filepath.Join(r.dir, "logs")
	r.open()
	if err := fault.FromEnv(); err != nil {
		t.Fatal(err)
	}
	for _, j := range crashJobs {
		if strings.EqualFold(j.table, job) {
			fmt.Println(j.request(r))
		}
	}
}
