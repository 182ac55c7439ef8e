//go:build root

package host

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkPodCycle is the whole life of a pod with one container, step by step.
func BenchmarkPodCycle(b *testing.B) {
	r := newRig(b)
	var mu sync.Mutex
	steps := map[string][]time.Duration{}
	r.close()
	r.onStep = func(job, step string, took time.Duration, _ error) {
		mu.Lock()
		defer mu.Unlock()
		steps[job+"/"+step] = append(steps[job+"/"+step], took)
	}
	r.open()
	timed := func(name string, do func()) {
		begin := time.Now()
		do()
		r.onStep("total", name, time.Since(begin), nil)
	}
	n := 0
	for b.Loop() {
		n++
		config := r.podConfig(fmt.Sprint("p", n))
		var pod, id string
		timed("run", func() { pod = r.runPod(config) })
		timed("create+start", func() { id = r.container(pod, "c", "trap exit TERM; while :; do sleep 1000 & wait; done") })
		timed("exec", func() { r.exec(id, "true") })
		timed("stop container", func() {
			if err := r.mgr.StopContainer(r.ctx, id, 10*time.Second); err != nil {
				b.Fatal(err)
			}
		})
		timed("stop+remove pod", func() {
			if err := r.mgr.RemovePod(r.ctx, pod); err != nil {
				b.Fatal(err)
			}
		})
	}
	names := make([]string, 0, len(steps))
	for name := range steps {
		names = append(names, name)
	}
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		d := steps[name]
		slices.Sort(d)
		fmt.Fprintf(&out, "%-32s min %6.2f p50 %6.2f p99 %6.2f ms\n", name, ms(d[0]), ms(d[len(d)/2]), ms(d[len(d)*99/100]))
	}
	fmt.Fprint(os.Stderr, out.String())
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
