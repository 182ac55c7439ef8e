//go:build root

package cgroup_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // its filter of devices
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
)

// The oracle is github.com/opencontainers/cgroups, with which runc and the kubelet write cgroups. What these
// tests link of it, nothing of the project does.

func p[T any](v T) *T { return &v }

// random makes resources that mostly are accepted, and a few that are not.
func random(r *rand.Rand) *specs.LinuxResources {
	some := func(f func()) {
		if r.IntN(3) == 0 {
			f()
		}
	}
	res := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}, Pids: &specs.LinuxPids{}}
	some(func() { res.CPU.Shares = p([]uint64{2, 100, 512, 1024, 4096, 262144}[r.IntN(6)]) })
	some(func() {
		res.CPU.Quota, res.CPU.Period = p([]int64{-1, 1000, 5000, 50000, 200000, 500}[r.IntN(6)]), p([]uint64{100000, 50000, 1000000, 10}[r.IntN(4)])
	})
	some(func() { res.CPU.Cpus = []string{"0", "0-1", "1", "0,1", "7-9"}[r.IntN(5)] })
	some(func() { res.CPU.Mems = []string{"0", "0", "5"}[r.IntN(3)] })
	some(func() {
		res.Memory.Limit = p([]int64{-1, 8 << 20, 64 << 20, 1 << 30}[r.IntN(4)])
		if *res.Memory.Limit > 0 {
			res.Memory.Swap = p([]int64{-1, *res.Memory.Limit, 2 * *res.Memory.Limit, *res.Memory.Limit / 2}[r.IntN(4)])
		}
	})
	some(func() { res.Memory.Reservation = p([]int64{-1, 4 << 20, 32 << 20}[r.IntN(3)]) })
	some(func() { res.Pids.Limit = p([]int64{-1, 0, 1, 20, 4096}[r.IntN(5)]) })
	return res
}

// theirs says the same to the oracle, for which 0 is "not set".
func theirs(res *specs.LinuxResources) *cgroups.Resources {
	deref := func(v *int64) int64 {
		if v == nil {
			return 0
		}
		return *v
	}
	out := &cgroups.Resources{
		Memory: deref(res.Memory.Limit), MemorySwap: deref(res.Memory.Swap), MemoryReservation: deref(res.Memory.Reservation),
		CpuQuota: deref(res.CPU.Quota), CpusetCpus: res.CPU.Cpus, CpusetMems: res.CPU.Mems, PidsLimit: res.Pids.Limit, SkipDevices: true,
	}
	if res.CPU.Shares != nil {
		out.CpuShares, out.CpuWeight = *res.CPU.Shares, cgroups.ConvertCPUSharesToCgroupV2Value(*res.CPU.Shares)
	}
	if res.CPU.Period != nil {
		out.CpuPeriod = *res.CPU.Period
	}
	return out
}

// snapshot reads the files that hold limits, by their names below a group's directories.
func snapshot(t *testing.T, path string) string {
	t.Helper()
	var lines []string
	for _, pattern := range []string{"/sys/fs/cgroup/*" + path + "/*", "/sys/fs/cgroup" + path + "/*"} {
		list, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			switch filepath.Base(f) {
			case "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "pids.max",
				"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes", "memory.max", "memory.low",
				"memory.swap.max", "devices.list":
				text, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				words := strings.Split(strings.TrimSpace(string(text)), "\n")
				sort.Strings(words)
				lines = append(lines, strings.TrimPrefix(strings.Replace(f, path, "", 1), "/sys/fs/cgroup/")+": "+strings.Join(words, "; "))
			}
		}
	}
	if len(lines) < 3 {
		t.Fatalf("no files below %s", path)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// pair is the same group twice.
type pair struct {
	ours   *cgroup.Group
	oracle cgroups.Manager
	a, b   string
}

func makePair(t *testing.T, h *cgroup.Host, name string) *pair {
	t.Helper()
	x := &pair{a: testroot.Cgroup(t) + "/" + name + "-a", b: testroot.Cgroup(t) + "/" + name + "-b"}
	var err error
	if x.ours, err = h.Create(x.a, cgroup.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// The oracle's v1 makes a directory only where a process enters it: ours makes them all.
	second, err := h.Create(x.b, cgroup.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if x.oracle, err = manager.New(&cgroups.Cgroup{Path: x.b, Resources: &cgroups.Resources{SkipDevices: true}}); err != nil {
		t.Fatal(err)
	}
	if err := x.oracle.Apply(-1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, g := range []*cgroup.Group{x.ours, second} {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := g.Delete(ctx); err != nil {
				t.Error(err)
			}
			cancel()
		}
	})
	return x
}

// TestOracleLimits gives both the same random resources, one after the other. They take or refuse the same, and
// leave the same files, unless one refused: ours then has the former values, the oracle some of the new.
func TestOracleLimits(t *testing.T) {
	testroot.NeedRoot(t)
	h, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	compared := 0
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			x := makePair(t, h, fmt.Sprint("limits", seed))
			for range 6 {
				res := random(r)
				before := snapshot(t, x.a)
				errA, errB := x.ours.Update(res), x.oracle.Set(theirs(res))
				if (errA == nil) != (errB == nil) {
					t.Fatalf("ours: %v\noracle: %v\nresources: %s", errA, errB, show(res))
				}
				after := snapshot(t, x.a)
				if errA != nil {
					if after != before {
						t.Fatalf("a refused update (%v) changed\n%s\nto\n%s", errA, before, after)
					}
					return
				}
				compared++
				if want := snapshot(t, x.b); after != want {
					t.Fatalf("resources: %s\nours:\n%s\noracle:\n%s", show(res), after, want)
				}
			}
		})
	}
	if compared < 40 {
		t.Errorf("only %d updates were accepted and compared", compared)
	}
}

func show(res *specs.LinuxResources) string {
	return fmt.Sprintf("%+v", *theirs(res))
}

// TestOracleDevices compares v1's lists; what the programs of v2 let through is tested beside them.
func TestOracleDevices(t *testing.T) {
	testroot.NeedRoot(t)
	h, err := cgroup.Probe()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.Mode() == cgroup.V2 {
		testroot.Skip(t, "no list of devices on cgroup v2")
	}
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 15 {
		x := makePair(t, h, fmt.Sprint("devices", i))
		list := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
		for range r.IntN(5) {
			list = append(list, specs.LinuxDeviceCgroup{Allow: true, Type: []string{"c", "b"}[r.IntN(2)], Major: p(int64(r.IntN(12))),
				Minor: p(int64(r.IntN(5) - 1)), Access: []string{"r", "rw", "rwm", "m"}[r.IntN(4)]})
		}
		if err := x.ours.Apply(&specs.LinuxResources{Devices: list}); err != nil {
			t.Fatal(err)
		}
		rules := []*devices.Rule{{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm"}}
		for _, l := range append(list[1:], cgroup.DefaultDevices()...) {
			rules = append(rules, &devices.Rule{Type: devices.Type(l.Type[0]), Major: *l.Major, Minor: *l.Minor, Permissions: devices.Permissions(l.Access), Allow: true})
		}
		if err := x.oracle.Set(&cgroups.Resources{Devices: rules}); err != nil {
			t.Fatal(err)
		}
		if a, b := snapshot(t, x.a), snapshot(t, x.b); a != b {
			t.Fatalf("rules %+v\nours:\n%s\noracle:\n%s", list, a, b)
		}
	}
}
