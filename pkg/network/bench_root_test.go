//go:build root

package network

import (
	"context"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The pods of a benchmark are made beforehand; one iteration is one pod's ADD and DEL.
func benchmark(b *testing.B, ports []PortMapping, change func(*Config)) {
	h := newHost(b, change)
	warm := newPod(b)
	h.attach(warm)
	var add, del []time.Duration
	var addCPU, delCPU time.Duration
	ctx := context.Background()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		p := newPod(b, ports...)
		b.StartTimer()
		c0, t0 := cpu(), time.Now()
		if _, err := h.Attach(ctx, p.Pod); err != nil {
			b.Fatal(err)
		}
		c1, t1 := cpu(), time.Now()
		if err := h.Detach(ctx, p.Pod); err != nil {
			b.Fatal(err)
		}
		add, del = append(add, t1.Sub(t0)), append(del, time.Since(t1))
		addCPU, delCPU = addCPU+c1-c0, delCPU+cpu()-c1
		b.StopTimer()
		p.stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(addCPU.Microseconds())/float64(b.N), "µs/add-cpu")
	b.ReportMetric(float64(delCPU.Microseconds())/float64(b.N), "µs/del-cpu")
	for name, times := range map[string][]time.Duration{"add": add, "del": del} {
		slices.Sort(times)
		b.ReportMetric(float64(times[0].Microseconds()), "µs/"+name+"-min")
		b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs/"+name+"-p50")
	}
}

// cpu is the time that this process and the children it has waited for have used.
func cpu() time.Duration {
	var all time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			panic(err)
		}
		all += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return all
}

var onePort = []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}

func BenchmarkInProcess(b *testing.B)         { benchmark(b, nil, defaultNetwork) }
func BenchmarkInProcessHostPort(b *testing.B) { benchmark(b, onePort, defaultNetwork) }

// The same configuration by the reference plugins, as programs. Their default backend is iptables where
// that is installed; nftables is the quicker of the two for them.
func BenchmarkReference(b *testing.B)         { benchmark(b, nil, reference(b)) }
func BenchmarkReferenceHostPort(b *testing.B) { benchmark(b, onePort, reference(b)) }

func reference(b *testing.B) func(*Config) {
	dir := referencePlugins(b)
	return func(c *Config) {
		defaultNetwork(c)
		c.BinDirs, c.ExecTypes = []string{dir}, []string{"loopback", "bridge", "host-local", "portmap"}
	}
}
