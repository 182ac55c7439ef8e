package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fake is a cgroup machine of plain directories. What the kernel would put into a new cgroup, it puts
// there; what is written, it remembers.
type fake struct {
	*Host
	t      *testing.T
	root   string
	log    strings.Builder
	fail   map[string]error // "op file": what the operation is to return, once
	others bool             // it has hugetlb, rdma, net_cls and net_prio
	onFail func()           // what else it does then
}

// files are what a new cgroup of a hierarchy has, with what the kernel has in them.
var files = map[string]map[string]string{
	"cpu": {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1", "cpu.cfs_burst_us": "0", "cpu.idle": "0",
		"cpu.stat": "nr_periods 5\nnr_throttled 2\nthrottled_time 300\n"},
	"cpuacct": {"cpuacct.usage": "1000", "cpuacct.usage_user": "600", "cpuacct.usage_sys": "400"},
	"cpuset":  {"cpuset.cpus": "", "cpuset.mems": ""},
	"memory": {"memory.limit_in_bytes": "9223372036854771712", "memory.memsw.limit_in_bytes": "9223372036854771712",
		"memory.soft_limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "8192", "memory.max_usage_in_bytes": "9000",
		"memory.memsw.usage_in_bytes": "8192", "memory.swappiness": "60", "memory.failcnt": "3", "memory.kmem.usage_in_bytes": "512",
		"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
		"memory.stat":        "cache 1\ntotal_cache 4096\ntotal_rss 2048\ntotal_mapped_file 100\ntotal_inactive_file 192\ntotal_pgfault 9\ntotal_pgmajfault 1\n"},
	"devices":   {"devices.list": "a *:* rwm", "devices.allow": "", "devices.deny": ""},
	"freezer":   {"freezer.state": "THAWED"},
	"pids":      {"pids.max": "max", "pids.current": "4"},
	"blkio":     {"blkio.throttle.read_bps_device": "", "blkio.throttle.write_bps_device": "", "blkio.throttle.read_iops_device": "", "blkio.throttle.write_iops_device": "8:0 77\n", "blkio.bfq.weight": "100", "blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\nTotal 30\n", "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n"},
	"v2":        {"cgroup.subtree_control": "", "cgroup.controllers": "cpu cpuset io memory pids", "cgroup.events": "populated 0\nfrozen 0\n", "cgroup.freeze": "0", "cgroup.kill": "", "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"},
	"v2.cpu":    {"cpu.weight": "100", "cpu.max": "max 100000", "cpu.max.burst": "0", "cpu.idle": "0", "cpu.stat": "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 5\nthrottled_usec 3\n"},
	"v2.cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
	"v2.memory": {"memory.max": "max", "memory.low": "0", "memory.high": "max", "memory.swap.max": "max", "memory.current": "8192", "memory.reclaim": "", "memory.swap.current": "0", "memory.events": "low 0\nmax 2\noom_kill 7\n", "memory.stat": "anon 2048\nfile 4096\ninactive_file 192\nslab 5\nkernel_stack 6\n"},
	"v2.pids":   {"pids.max": "max", "pids.current": "4"},
	"v2.io":     {"io.max": "", "io.weight": "default 100\n", "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n"},
	"hugetlb":   {"hugetlb.2MB.limit_in_bytes": "9223372036854771712", "hugetlb.2MB.rsvd.limit_in_bytes": "9223372036854771712", "hugetlb.1GB.limit_in_bytes": "9223372036854771712"},
	"rdma":      {"rdma.max": ""},
	"net_cls":   {"net_cls.classid": "0"},
	"net_prio":  {"net_prio.ifpriomap": "lo 0\n"},
	"v2.others": {"cgroup.controllers": "cpu cpuset io memory pids hugetlb rdma", "hugetlb.2MB.max": "max", "hugetlb.2MB.rsvd.max": "max", "hugetlb.1GB.max": "max", "rdma.max": ""},
	"every":     {"cgroup.procs": "", "tasks": ""},
	"every.v2":  {"cgroup.procs": ""},
}

func newFake(t *testing.T, mode Mode) *fake { return newFakeWith(t, mode, false) }

// newFakeWith has the controllers that few machines have, too.
func newFakeWith(t *testing.T, mode Mode, others bool) *fake {
	t.Helper()
	f := &fake{t: t, root: t.TempDir(), fail: map[string]error{}, others: others}
	var list []Hierarchy
	if mode != V2 {
		controllers := []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"}
		if others {
			controllers = append(controllers, "hugetlb", "rdma", "net_cls", "net_prio")
		}
		for _, c := range controllers {
			list = append(list, Hierarchy{Name: c, Mount: filepath.Join(f.root, c), Controllers: []string{c}})
		}
		list = append(list, Hierarchy{Name: "systemd", Mount: filepath.Join(f.root, "systemd")})
	}
	if mode != V1 {
		list = append(list, Hierarchy{Name: "unified", Mount: filepath.Join(f.root, "unified"), Unified: true})
	}
	for _, h := range list {
		if err := os.Mkdir(h.Mount, 0o755); err != nil {
			t.Fatal(err)
		}
		f.populate(h.Mount, mode)
	}
	if mode != V2 {
		f.put("cpuset/cpuset.cpus", "0-3")
		f.put("cpuset/cpuset.mems", "0")
	}
	if mode == Hybrid {
		f.put("unified/cgroup.controllers", "")
	}
	host, err := open(list)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	host.hook = func(op, file, value string) error {
		rel := strings.TrimPrefix(file, f.root+"/")
		if err := f.fail[op+" "+rel]; err != nil {
			delete(f.fail, op+" "+rel)
			if f.onFail != nil {
				f.onFail()
			}
			f.log.WriteString(op + " " + rel + " " + value + ": " + err.Error() + "\n")
			return err
		}
		f.log.WriteString(strings.TrimSpace(op+" "+rel+" "+value) + "\n")
		switch op {
		case "mkdir":
			f.populate(file, mode)
		case "rmdir": // a cgroup's files do not keep it from being removed
			list, _ := os.ReadDir(file)
			for _, e := range list {
				if !e.IsDir() {
					os.Remove(filepath.Join(file, e.Name()))
				}
			}
		}
		return nil
	}
	f.Host = host
	return f
}

// populate makes the control files of the cgroup at dir.
func (f *fake) populate(dir string, mode Mode) {
	tree := strings.SplitN(strings.TrimPrefix(dir, f.root+"/"), "/", 2)[0]
	kinds := []string{tree, "every"}
	if tree == "unified" {
		kinds = []string{"v2", "every.v2"}
		if mode == V2 {
			kinds = append(kinds, "v2.cpu", "v2.cpuset", "v2.memory", "v2.pids", "v2.io")
			if f.others {
				kinds = append(kinds, "v2.others")
			}
		}
	}
	for _, k := range kinds {
		for name, text := range files[k] {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

func (f *fake) put(file, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.root, file), []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) remove(file string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.root, file)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) get(file string) string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.root, file))
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// take returns what was done since it was last asked.
func (f *fake) take() string {
	s := f.log.String()
	f.log.Reset()
	return s
}

// group makes a group and forgets how.
func (f *fake) group(path string) *Group {
	f.t.Helper()
	g, err := f.Create(path, CreateOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	f.take()
	return g
}

// transcript compares a transcript, written with any indentation.
func transcript(t *testing.T, got, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if want = strings.Join(lines, "\n"); strings.TrimSpace(got) != want {
		t.Errorf("what was done:\n%s\nwant:\n%s", got, want)
	}
}
