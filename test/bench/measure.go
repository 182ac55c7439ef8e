package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// series is what one target gave with one number of clients.
type series struct {
	times map[string][]time.Duration
	wall  time.Duration
	cpu   time.Duration // of the whole machine
	n     int
}

// alternate runs rounds of one cycle per client on each target in turn until each has n cycles.
func alternate(ctx context.Context, targets []*target, clients, n int) ([]*series, error) {
	results := make([]*series, len(targets))
	for i := range results {
		results[i] = &series{times: map[string][]time.Duration{}}
	}
	for done := 0; done < n; done += clients {
		for i, t := range targets {
			if err := round(ctx, t, clients, results[i]); err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	return results, nil
}

func round(ctx context.Context, t *target, clients int, s *series) error {
	var wg sync.WaitGroup
	all, errs := make([]timings, clients), make([]error, clients)
	cpu, start := busy(), time.Now()
	for i := range clients {
		wg.Go(func() { all[i], errs[i] = t.cycle(ctx) })
	}
	wg.Wait()
	s.wall += time.Since(start)
	s.cpu += busy() - cpu
	s.n += clients
	for _, tm := range all {
		for call, d := range tm {
			s.times[call] = append(s.times[call], d)
		}
	}
	return errors.Join(errs...)
}

// busy returns the processor time that the machine has spent so far, idle and waiting excluded.
func busy() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	var ticks int
	for i, f := range strings.Fields(line) {
		if n, err := strconv.Atoi(f); err == nil && i != 4 && i != 5 && i < 9 {
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

func quantile(v []time.Duration, q float64) time.Duration {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d.Microseconds())/1000) }

func ratio(a, b time.Duration) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", float64(a)/float64(b))
}

func printTable(w io.Writer, clients int, targets []*target, results []*series) {
	fmt.Fprintf(w, "\n%d client(s), n=%d, ms\n%-20s", clients, results[0].n, "")
	for _, t := range targets {
		fmt.Fprintf(w, " %24s p50     p99", t.name)
	}
	if len(targets) == 2 {
		fmt.Fprintf(w, "  p50 ratio  p99 ratio")
	}
	fmt.Fprintln(w)
	for _, call := range calls {
		fmt.Fprintf(w, "%-20s", call)
		for _, r := range results {
			fmt.Fprintf(w, " %28s %7s", ms(quantile(r.times[call], .5)), ms(quantile(r.times[call], .99)))
		}
		if len(results) == 2 {
			a, b := results[0].times[call], results[1].times[call]
			fmt.Fprintf(w, "  %9s  %9s", ratio(quantile(a, .5), quantile(b, .5)), ratio(quantile(a, .99), quantile(b, .99)))
		}
		fmt.Fprintln(w)
	}
	for i, r := range results {
		fmt.Fprintf(w, "%s: %.1f cycles/s, %s ms of processor time per cycle\n", targets[i].name, float64(r.n)/r.wall.Seconds(), ms(r.cpu/time.Duration(r.n)))
	}
}

// memory prints the proportional set size of each daemon, idle and with pods, and of its shims.
func memory(ctx context.Context, targets []*target, pods int) error {
	fmt.Printf("\nproportional set size, MB, %d pods with one container each\n", pods)
	for _, t := range targets {
		idle := pss(t.pid)
		before := shims()
		var ids []string
		var err error
		for range pods {
			var pod string
			if pod, _, err = t.start(ctx, timings{}); pod != "" {
				ids = append(ids, pod)
			}
			if err != nil {
				break
			}
		}
		var total int64
		n := 0
		for pid := range shims() {
			if !before[pid] {
				total += pss(pid)
				n++
			}
		}
		loaded := pss(t.pid)
		for _, id := range ids {
			if serr := t.stop(context.WithoutCancel(ctx), id, timings{}); err == nil {
				err = serr
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		fmt.Printf("%s: daemon idle %.1f, with pods %.1f; %d shims, mean %.2f\n", t.name, mb(idle), mb(loaded), n, mb(total/int64(max(n, 1))))
	}
	return nil
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

// shims returns the processes that keep containers for a CRI server.
func shims() map[int]bool {
	found := map[int]bool{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cmdline"))
		args := strings.Split(string(b), "\x00")
		if err != nil || len(args) == 0 {
			continue
		}
		name := filepath.Base(args[0])
		if (name == "cri-runtime" && slices.Contains(args, "shim")) || strings.HasPrefix(name, "containerd-shim") || name == "conmon" {
			pid, _ := strconv.Atoi(filepath.Base(d))
			found[pid] = true
		}
	}
	return found
}

// pss returns the proportional set size of a process in bytes, 0 when it is gone.
func pss(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "Pss:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb * 1024
		}
	}
	return 0
}
