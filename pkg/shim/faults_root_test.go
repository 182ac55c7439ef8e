//go:build root

package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// boxIn makes a container that enters a memory-limited cgroup before its first step.
func boxIn(t *testing.T, id, steps string, limit int64) *box {
	t.Helper()
	host, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	g, err := host.Create(testroot.Cgroup(t)+"/"+id, cgroup.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Apply(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	w, err := g.WatchOOM()
	if err != nil {
		t.Fatal(err)
	}
	if w == nil {
		testroot.Skip(t, "no memory controller")
	}
	t.Cleanup(w.Close)
	tasks, err := g.TaskFiles()
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, id, fmt.Sprintf("cgroup:%d;%s", len(tasks), steps))
	for _, f := range tasks {
		b.req.Launch.Files = append(b.req.Launch.Files, len(b.req.Files))
		b.req.Files = append(b.req.Files, f)
	}
	if dir, err := g.Dir(); err != nil {
		t.Fatal(err)
	} else if dir != nil {
		b.req.Launch.Cgroup = len(b.req.Files)
		b.req.Files = append(b.req.Files, dir)
	}
	b.req.OOM = OOMWatch{Event: w.Event, Count: w.Counter}
	return b
}

func TestOutOfMemory(t *testing.T) {
	c := spawn(t, spawnConfig(t))
	ctx := testContext(t)
	b := boxIn(t, "bomb", "out:before;eat:256", 48<<20)
	if _, err := c.Start(ctx, b.req); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, c, "bomb"); st.ExitCode != 137 || !st.OOMKilled || st.OOMKills == 0 {
		t.Errorf("state %+v", st)
	}
	if r, err := ReadExit(b.dir); err != nil || !r.OOMKilled || r.ExitCode != 137 {
		t.Errorf("record %+v, %v", r, err)
	}
	if got := b.log(t, "0.log"); got != "stdout F before\n" {
		t.Errorf("log %q", got)
	}
	calm := boxIn(t, "calm", "exit:137", 48<<20)
	if _, err := c.Start(ctx, calm.req); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, c, "calm"); st.ExitCode != 137 || st.OOMKilled {
		t.Errorf("state %+v", st)
	}
}

func TestChildOutOfMemoryIsAnEvent(t *testing.T) {
	c := spawn(t, spawnConfig(t))
	ctx := testContext(t)
	b := boxIn(t, "parent", "child:eat:256;wait", 48<<20)
	if _, err := c.Start(ctx, b.req); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-c.Events():
		if e.Type != EventOOM || e.State.ID != "parent" || e.State.Exited || !e.State.OOMKilled {
			t.Errorf("event %+v", e)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no event of the child's death")
	}
	_ = c.Signal(ctx, "parent", 15, false) // unless the kernel has chosen it next
	if st := waitExit(t, c, "parent"); !st.OOMKilled {
		t.Errorf("state %+v", st)
	}
}

func TestFullDiskDropsAndResumes(t *testing.T) {
	c := spawn(t, spawnConfig(t))
	ctx := testContext(t)
	b := newBox(t, "c1", "count:100000;cat")
	if err := unix.Mount("tmpfs", b.dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(b.dir, unix.MNT_DETACH)
	b.req.Log, b.req.ExitDir, b.req.Stdin = b.openLog(t), nil, true
	if _, err := c.Start(ctx, b.req); err != nil {
		t.Fatal(err)
	}
	stdin, stdout, _, err := c.Attach(ctx, "c1", AttachRequest{Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	var st ContainerState
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		states, err := c.States(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if st = states[0]; st.DroppedLines > 90000 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the container is held up: %+v", st)
		}
	}
	if !strings.Contains(st.LogError, "no space") || st.DroppedBytes == 0 {
		t.Errorf("state %+v", st)
	}
	if err := unix.Mount("", b.dir, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.WriteString("after\n"); err != nil {
		t.Fatal(err)
	}
	got := ""
	for deadline := time.Now().Add(20 * time.Second); !strings.HasSuffix(got, "after\n"); time.Sleep(time.Millisecond) {
		if got = b.log(t, "0.log"); time.Now().After(deadline) {
			t.Fatalf("the log does not go on: ...%q", got[max(0, len(got)-200):])
		}
	}
	stdout.Close()
}

// BenchmarkExecFlood runs 200 execs at a time and reports what is left of them in the shim.
func BenchmarkExecFlood(b *testing.B) {
	c := spawn(b, spawnConfig(b))
	ctx := testContext(b)
	start(b, c, "c1", "wait")
	req, files := script(b, "exit:0")
	for i := range b.N {
		var wg sync.WaitGroup
		for k := range 200 {
			wg.Go(func() {
				e, err := c.Exec(ctx, ExecRequest{ID: fmt.Sprintf("e%d-%d", i, k), ContainerID: "c1", Launch: req, Files: files})
				if err == nil {
					_, err = e.Wait(ctx)
				}
				if err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	time.Sleep(3 * time.Second)
	pid := c.Info().Pid
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	b.ReportMetric(float64(len(threads)), "threads")
	b.ReportMetric(float64(len(fds)), "fds")
	b.ReportMetric(meanPSS(b, []*Client{c}, "Pss_Anon"), "MB-anon")
}

// BenchmarkSpawn measures Spawn alone, and until the shim has answered.
func BenchmarkSpawn(b *testing.B) {
	for _, name := range []string{"returned", "answered"} {
		b.Run(name, func(b *testing.B) {
			cfg := spawnConfig(b)
			cfg.ShmSize = 64 << 20
			ctx := testContext(b)
			b.ResetTimer()
			for i := range b.N {
				b.StopTimer()
				dir := filepath.Join(cfg.Dir, fmt.Sprint(i))
				if err := os.Mkdir(dir, 0o700); err != nil {
					b.Fatal(err)
				}
				one := cfg
				one.Dir = dir
				b.StartTimer()
				c, err := Spawn(ctx, one)
				if err == nil && name == "answered" {
					_, err = c.States(ctx)
				}
				b.StopTimer()
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Shutdown(ctx); err != nil {
					b.Fatal(err)
				}
				<-c.Done()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkShimPSS reports the mean PSS of 20 shims with 0, 1 and 2 containers, right after the starts
// have been quiet for a while and after 20 more runs and 20 MB of log.
func BenchmarkShimPSS(b *testing.B) {
	for _, n := range []int{0, 1, 2} {
		b.Run(fmt.Sprintf("containers=%d", n), func(b *testing.B) {
			cfg := spawnConfig(b)
			cfg.ShmSize = 64 << 20
			for range b.N {
				pssOf(b, cfg, n)
			}
		})
	}
}

func pssOf(b *testing.B, cfg SpawnConfig, containers int) {
	ctx := testContext(b)
	const shims = 20
	var clients []*Client
	for i := range shims {
		one := cfg
		one.Dir = b.TempDir()
		c := spawn(b, one)
		clients = append(clients, c)
		req, files := script(b, "wait")
		if _, err := c.Holder(ctx, req, files); err != nil {
			b.Fatal(err)
		}
		for k := range containers {
			start(b, c, fmt.Sprintf("c%d-%d", i, k), "out:hello;wait")
		}
	}
	time.Sleep(3 * time.Second) // the quiet after which memory is given back
	b.ReportMetric(meanPSS(b, clients, "Pss"), "MB")
	for i, c := range clients[:4] {
		for k := range 20 {
			id := fmt.Sprintf("w%d-%d", i, k)
			start(b, c, id, "count:10000")
			waitExit(b, c, id)
			if err := c.Forget(ctx, id); err != nil {
				b.Fatal(err)
			}
		}
	}
	time.Sleep(3 * time.Second)
	b.ReportMetric(meanPSS(b, clients[:4], "Pss"), "MB-after-work")
}

func meanPSS(b *testing.B, clients []*Client, field string) float64 {
	sum := 0
	for _, c := range clients {
		for line := range strings.Lines(procFile(b, c.Info().Pid, "smaps_rollup")) {
			var kb int
			if n, _ := fmt.Sscanf(line, field+": %d kB", &kb); n == 1 {
				sum += kb
			}
		}
	}
	return float64(sum) / float64(len(clients)) / 1000
}

// BenchmarkPump measures a container that logs as fast as it goes, through a real shim into tmpfs.
func BenchmarkPump(b *testing.B) {
	cfg := spawnConfig(b)
	c := spawn(b, cfg)
	dir := b.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		b.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	const mib = 512
	b.SetBytes(mib << 20)
	for i := range b.N {
		id := fmt.Sprint(i)
		x := newBox(b, id, fmt.Sprintf("gate;flood:%d", mib))
		x.dir = dir
		x.req.Log = x.openLog(b)
		b.StopTimer()
		if _, err := c.Start(testContext(b), x.req); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := c.Release(testContext(b), id); err != nil {
			b.Fatal(err)
		}
		waitExit(b, c, id)
		b.StopTimer()
		os.Remove(filepath.Join(dir, "0.log"))
		b.StartTimer()
	}
}
