package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestOffer(t *testing.T) {
	for _, m := range []Mode{V1, Hybrid, V2} {
		f := newFake(t, m)
		f.group("/pod/a")
		if m == V2 {
			f.put("unified/cpuset.cpus.effective", "0-3\n")
			f.put("unified/pod/cpuset.cpus.effective", "1-2\n")
			f.put("unified/cpuset.mems.effective", "0\n") // the pod's group is without the file
			if err := os.Chmod(filepath.Join(f.root, "unified/pod/a/memory.current"), 0o444); err != nil {
				t.Fatal(err)
			}
		} else {
			f.put("cpuset/pod/cpuset.cpus", "1-2\n")
		}
		g, err := f.At("/pod/a")
		if err != nil {
			t.Fatal(err)
		}
		o, err := g.Offer()
		if err != nil {
			t.Fatal(err)
		}
		if o.Cpus != "1-2" || o.Mems != "0" {
			t.Errorf("%v: processors %q, nodes %q", m, o.Cpus, o.Mems)
		}
		for file, want := range map[string]bool{"memory.max": m == V2, "memory.current": false, "cgroup.procs": false, "cgroup.kill": false, "cpu.pressure": m != V1, "memory.none": false} {
			if slices.Contains(o.Unified, file) != want {
				t.Errorf("%v: unified file %s: %t, want %t", m, file, !want, want)
			}
		}
	}
}

func TestHugePages(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"hugepages-64kB", "hugepages-2048kB", "hugepages-1048576kB", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := hugePages(dir), []string{"1GB", "2MB", "64KB"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLacking(t *testing.T) {
	for _, c := range []struct {
		list, have string
		n          uint64
		lacks      bool
	}{
		{"0", "0-1", 0, false},
		{"0-1", "0,1", 0, false},
		{"0-65535", "0-65535", 0, false},
		{"0-3", "0-1,3", 2, true},
		{"4000", "0-1", 4000, true},
		{"1,0-2", "0-1\n", 2, true},
		{"0", "", 0, true},
		{"", "0", 0, false},
	} {
		if n, lacks := Lacking(c.list, c.have); n != c.n || lacks != c.lacks {
			t.Errorf("%q of %q: %d, %t", c.list, c.have, n, lacks)
		}
	}
}
