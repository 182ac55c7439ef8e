package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// resctrl makes a directory that looks like a class of service.
func resctrl(t *testing.T, dir, schemata string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "mon_groups"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"schemata": schemata, "tasks": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRdt(t *testing.T) {
	root := t.TempDir()
	resctrl(t, root, "")
	resctrl(t, filepath.Join(root, "gold"), "    L3:0=f\n    MB:0=50\n")
	for _, c := range []struct {
		name string
		rdt  specs.LinuxIntelRdt
		want string // in the error of PlanRdt or Make, "" for none
	}{
		{"default class", specs.LinuxIntelRdt{ClosID: "/"}, ""},
		{"a class that is there", specs.LinuxIntelRdt{ClosID: "gold"}, ""},
		{"with its schema", specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=f", Schemata: []string{"MB:0=50"}}, ""},
		{"with another schema", specs.LinuxIntelRdt{ClosID: "gold", MemBwSchema: "MB:0=70"}, `has another schema than "MB:0=70"`},
		{"a class that is not there", specs.LinuxIntelRdt{ClosID: "lead"}, "does not exist"},
		{"a class outside", specs.LinuxIntelRdt{ClosID: "../x"}, "is no name of a class"},
		{"two lines", specs.LinuxIntelRdt{Schemata: []string{"a\nb"}}, "more than a line"},
		{"bad bandwidth", specs.LinuxIntelRdt{MemBwSchema: "L3:0=1"}, "does not begin with MB:"},
	} {
		p, err := planRdt(root, "c1", &c.rdt)
		if err == nil {
			var files []*os.File
			if files, err = p.Make(&c.rdt); err == nil && len(files) != p.Groups() {
				t.Errorf("%s: %d files", c.name, len(files))
			}
			for _, f := range files {
				f.Close()
			}
			if err := p.Remove(); err != nil {
				t.Error(err)
			}
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "gold")); err != nil {
		t.Error("a class that was there is gone")
	}
}

// TestRdtMade is a class of the container's own, in a directory that the kernel would fill.
func TestRdtMade(t *testing.T) {
	root := t.TempDir()
	rdt := &specs.LinuxIntelRdt{L3CacheSchema: "L3:0=1", MemBwSchema: "MB:0=10", Schemata: []string{"L3:0=3"}, EnableMonitoring: true}
	p, err := planRdt(root, "c1", rdt)
	if err != nil || !p.Created || p.Groups() != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	resctrl(t, p.Dir, "")
	if err := os.Mkdir(p.Mon, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.Mon, "tasks"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	files, err := p.Make(rdt)
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		f.Close()
	}
	if text, _ := os.ReadFile(filepath.Join(p.Dir, "schemata")); !strings.HasPrefix(string(text), "L3:0=3\n") { // each a write of its own, from the start of the file
		t.Errorf("schemata %q", text)
	}
	if err := p.Update(&specs.LinuxIntelRdt{MemBwSchema: "MB:0=9"}); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(filepath.Join(p.Dir, "schemata")); !strings.HasPrefix(string(text), "MB:0=9\n") {
		t.Errorf("after an update: schemata %q", text)
	}
	if err := p.Update(&specs.LinuxIntelRdt{MemBwSchema: "L3:0=9"}); err == nil {
		t.Error("a bad schema is written")
	}
	if mi := "40 30 0:50 / /sys/fs/resctrl rw - resctrl resctrl rw\n"; resctrlRoot(mi) != "/sys/fs/resctrl" || resctrlRoot("x\n") != "" {
		t.Error("the mount is not found")
	}
}
