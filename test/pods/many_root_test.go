//go:build root

package pods

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// load is what the server holds on to: descriptors and goroutines.
type load struct{ fds, goroutines int }

var (
	debugAddress = regexp.MustCompile(`"Serving".* debug="([^"]+)"`)
	goroutines   = regexp.MustCompile(`goroutine profile: total (\d+)`)
)

func (n *node) load() load {
	n.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.pid()))
	if err != nil {
		n.t.Fatal(err)
	}
	log, err := os.ReadFile(n.path("cri-server.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	addresses := debugAddress.FindAllStringSubmatch(string(log), -1) // the last is that of the server that runs
	r, err := http.Get("http://" + addresses[len(addresses)-1][1] + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		n.t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	m := goroutines.FindSubmatch(body)
	if m == nil {
		n.t.Fatalf("the profile says %.200s", body)
	}
	count, _ := strconv.Atoi(string(m[1]))
	return load{len(fds), count}
}

// back waits for the server to let go of what it took since.
func (n *node) back(base load) {
	n.t.Helper()
	http.DefaultClient.CloseIdleConnections()
	var now load
	defer func() {
		if n.t.Failed() {
			n.t.Logf("the server holds %+v, %+v before", now, base)
		}
	}()
	eventually(n.t, "the server lets go", func() bool {
		now = n.load()
		http.DefaultClient.CloseIdleConnections()
		return now.fds <= base.fds+2 && now.goroutines <= base.goroutines+4 // connections of the profile, threads of a pool
	})
}

// parallel does the jobs, some at a time.
func parallel(workers, jobs int, do func(i int)) {
	todo := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range todo {
				do(i)
			}
		})
	}
	for i := range jobs {
		todo <- i
	}
	close(todo)
	wg.Wait()
}

// warm runs some pods at a time, so that pools have what they keep, and returns what the server holds after that.
func (n *node) warm() load {
	n.t.Helper()
	parallel(8, 32, func(i int) {
		if err := n.cycle(fmt.Sprint("warm", i)); err != nil {
			n.t.Errorf("cycle: %v", err)
		}
	})
	n.clean()
	return n.load()
}

// cycle is the whole life of a pod, with all that can be called in it.
func (n *node) cycle(name string) error {
	config := n.podConfig(name)
	pod, err := n.tryPod(config)
	if err != nil {
		return err
	}
	id, err := n.tryCreate(pod, containerConfig(config, "c", "trap 'exit 0' TERM; touch /ready; while :; do sleep 0.02; done"), config)
	if err != nil {
		return err
	}
	if err := n.tryStart(id); err != nil {
		return err
	}
	r, err := n.rt.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "while [ ! -e /ready ]; do usleep 1000; done; hostname"}, Timeout: 60})
	if err != nil || strings.TrimSpace(string(r.Stdout)) != name {
		return fmt.Errorf("exec says %q: %w", r.GetStdout(), err)
	}
	if _, err := n.rt.ContainerStats(n.ctx, &cri.ContainerStatsRequest{ContainerId: id}); err != nil {
		return err
	}
	if _, err := n.rt.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 60}); err != nil {
		return err
	}
	s, err := n.rt.ContainerStatus(n.ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return err
	}
	if s.Status.ExitCode != 0 {
		return fmt.Errorf("the container ended with %d", s.Status.ExitCode)
	}
	if _, err := n.rt.StopPodSandbox(n.ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		return err
	}
	_, err = n.rt.RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	return err
}

// TestChurn has eight clients run and remove pods.
func TestChurn(t *testing.T) {
	n := newNode(t)
	base := n.warm()
	parallel(8, 200, func(i int) {
		if err := n.cycle(fmt.Sprint("churn", i)); err != nil {
			t.Errorf("cycle %d: %v", i, err)
		}
	})
	n.clean()
	n.back(base)
}

// TestHundredPods run side by side, keep running while the server is killed, and go.
func TestHundredPods(t *testing.T) {
	n := newNode(t)
	base := n.warm()
	const count = 100
	ids := make([]string, count)
	parallel(8, count, func(i int) {
		config := n.podConfig(fmt.Sprint("pod", i))
		pod, err := n.tryPod(config)
		if err == nil {
			ids[i], err = n.tryCreate(pod, containerConfig(config, "c", "exec sleep 1000"), config)
		}
		if err == nil {
			err = n.tryStart(ids[i])
		}
		if err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
	})
	if t.Failed() {
		return
	}
	n.check()
	addresses, pids := map[string]bool{}, make([]int, count)
	for _, p := range n.pods() {
		addresses[n.podStatus(p.Id).GetNetwork().GetIp()] = true
	}
	if len(addresses) != count || addresses[""] {
		t.Errorf("%d addresses of %d pods", len(addresses), count)
	}
	for i, id := range ids {
		pids[i] = n.containerPid(id)
	}
	n.kill()
	n.up("")
	n.check()
	parallel(8, count, func(i int) {
		if pid := n.containerPid(ids[i]); pid != pids[i] {
			t.Errorf("container %d is process %d, was %d", i, pid, pids[i])
		}
		r, err := n.rt.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: ids[i], Cmd: []string{"hostname"}, Timeout: 60})
		if err != nil || strings.TrimSpace(string(r.Stdout)) != fmt.Sprint("pod", i) {
			t.Errorf("exec in pod %d: %q, %v", i, r.GetStdout(), err)
		}
	})
	pods := n.pods()
	parallel(8, len(pods), func(i int) { n.removePod(pods[i].Id) })
	n.clean()
	n.back(base)
}

// TestExecsThatLeaveChildren are commands that end and leave a child with their output behind: nothing waits for it.
func TestExecsThatLeaveChildren(t *testing.T) {
	n := newNode(t)
	config := n.podConfig("a")
	id := n.run(n.pod(config), config, "c", "exec sleep 1000")
	n.execs(id, 5)
	base := n.load()
	parallel(4, 100, func(int) {
		r, err := n.rt.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; sleep 1000 &"}, Timeout: 60})
		if err != nil || string(r.Stdout) != "out\n" {
			t.Errorf("exec: %q, %v", r.GetStdout(), err)
		}
	})
	n.back(base)
	n.removeAll()
}
