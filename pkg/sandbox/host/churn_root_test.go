//go:build root

package host

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

// TestChurn has many clients do anything to the same few pods, while containers, holders and shims are killed and the
// daemon is restarted. Nobody may hang, and what is left must be in order.
func TestChurn(t *testing.T) {
	r := newRig(t)
	for round := range 3 {
		ctx, cancel := context.WithTimeout(r.ctx, 2*time.Minute)
		var wg sync.WaitGroup
		for client := range 6 {
			rng := rand.New(rand.NewPCG(uint64(round), uint64(client)))
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 25 {
					r.anything(ctx, rng)
				}
			}()
		}
		wg.Wait()
		if ctx.Err() != nil {
			t.Error("somebody hung")
		}
		cancel()
		r.close()
		r.open()
	}
	r.removeAll()
}

func (r *rig) anything(ctx context.Context, rng *rand.Rand) {
	pods, containers := r.mgr.Pods(), r.mgr.Containers()
	p, c := &sandbox.Pod{ID: "none"}, &sandbox.Container{ID: "none"}
	if len(pods) > 0 {
		p = pods[rng.IntN(len(pods))]
	}
	if len(containers) > 0 {
		c = containers[rng.IntN(len(containers))]
	}
	if rng.IntN(8) == 0 { // a client that loses patience
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(20))*time.Millisecond)
		defer cancel()
	}
	switch n := rng.IntN(20); n {
	case 0, 1, 2:
		config := r.podConfig(fmt.Sprint("p", rng.IntN(3)))
		if rng.IntN(2) == 0 {
			config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
		}
		_, _ = r.mgr.RunPod(ctx, config, "")
	case 3, 4, 5, 6:
		script := []string{"exec sleep 1000", "exit 3", "sleep 1000 & sleep 1000 & exit 0", "trap '' TERM; while :; do sleep 0.1; done"}[rng.IntN(4)]
		_, _ = r.mgr.CreateContainer(ctx, p.ID, &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: fmt.Sprint("c", rng.IntN(3))}, Image: &cri.ImageSpec{Image: r.ref}, Command: []string{"sh", "-c", script},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
		}, nil)
	case 7, 8, 9, 10:
		_ = r.mgr.StartContainer(ctx, c.ID)
	case 11, 12:
		_, _, _, _ = r.mgr.ExecSync(ctx, c.ID, []string{"sh", "-c", "sleep 1000 & echo hi"}, time.Second)
	case 13, 14:
		_ = r.mgr.StopContainer(ctx, c.ID, time.Duration(rng.IntN(200))*time.Millisecond)
	case 15:
		_ = r.mgr.RemoveContainer(ctx, c.ID)
	case 16:
		_ = r.mgr.StopPod(ctx, p.ID)
	case 17:
		_ = r.mgr.RemovePod(ctx, p.ID)
	case 18, 19:
		pid := []int{c.Pid, p.HolderPid, p.ShimPid}[rng.IntN(3)]
		if pid > 1 && p.Ready && rng.IntN(3) == 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
