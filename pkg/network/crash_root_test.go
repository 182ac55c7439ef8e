//go:build root

package network

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/fault"
)

const crashEnv = "CRI_NETWORK_CRASH" // {"Config": …, "Pod": …} for a process that attaches and detaches a pod

type crashJob struct {
	Config Config
	Pod    Pod
}

// crashChild is the process that dies at an armed place.
func crashChild(job string) error {
	var j crashJob
	if err := json.Unmarshal([]byte(job), &j); err != nil {
		return err
	}
	if err := fault.FromEnv(); err != nil {
		return err
	}
	m, err := Open(j.Config)
	if err != nil {
		return err
	}
	if _, err := m.Attach(ctx, j.Pod); err != nil {
		return err
	}
	return m.Detach(ctx, j.Pod)
}

// A server dies at every place of a pod's life on the network; the next one sweeps, or detaches the pod
// that it has a record of, and nothing is left.
func TestCrashSweep(t *testing.T) {
	h := newHost(t, dualStack)
	if err := os.WriteFile(h.dir+"/bin/custom", []byte("#!/bin/sh\nsed -n 's/.*\"prevResult\":\\(.*\\),\"type.*/\\1/p'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, exec := range []bool{false, true} {
		if exec {
			h.conf("1.conflist", strings.Replace(string(h.defNet.Bytes), `"plugins": [`, `"plugins": [`, 1))
			data, _ := os.ReadFile(h.dir + "/net.d/1.conflist")
			h.conf("1.conflist", strings.TrimSuffix(strings.TrimSpace(string(data)), "]\n}")+`,{"type":"custom"}]}`)
		}
		for _, place := range Faults {
			for _, how := range []string{"GC", "Detach", "Detach, namespace gone"} {
				name := place + ", " + how
				p := newPod(t, onePort...)
				crash(t, h, p, place)
				h.reopen()
				if how == "Detach, namespace gone" {
					p.stop()
				}
				if how == "GC" {
					if err := h.GC(ctx, nil); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				} else if err := h.Detach(ctx, p.Pod); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if left := h.leftovers(); len(left) > 0 {
					t.Errorf("%s: %v", name, left)
				}
				if binds, _ := os.ReadDir(h.cfg.NetnsDir); len(binds) > 0 {
					t.Errorf("%s: %v", name, binds)
				}
				p.stop()
			}
		}
	}
}

func crash(t *testing.T, h *host, p *holder, place string) {
	t.Helper()
	job, err := json.Marshal(crashJob{h.cfg, p.Pod})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashEnv+"="+string(job), fault.Env+"="+place+"=kill")
	if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("%s: it was not killed: %v: %s", place, err, out)
	}
}
