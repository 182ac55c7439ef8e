package cgroup

import (
	"math/rand/v2"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

// run interprets a device program, knowing no more than the instructions it is made of.
func run(t *testing.T, prog []insn, kind uint32, a access, major, minor uint32) bool {
	t.Helper()
	ctx := map[int16]uint32{0: uint32(a)<<16 | kind, 4: major, 8: minor}
	var r [6]uint64
	for at := 0; ; at++ {
		switch in := prog[at]; in.op {
		case opLoad:
			r[in.dst] = uint64(ctx[in.off])
		case opMove:
			r[in.dst] = r[in.src]
		case opSet:
			r[in.dst] = uint64(in.imm)
		case opAnd:
			r[in.dst] = uint64(uint32(r[in.dst]) & uint32(in.imm))
		case opShift:
			r[in.dst] = uint64(uint32(r[in.dst]) >> in.imm)
		case opIfEqual:
			if r[in.dst] == uint64(in.imm) {
				at += int(in.off)
			}
		case opIfNot:
			if r[in.dst] != uint64(in.imm) {
				at += int(in.off)
			}
		case opExit:
			return r[r0] == 1
		default:
			t.Fatalf("instruction %#x", in.op)
		}
	}
}

// judge says what the rules mean: for each kind of access the last rule that names it decides.
func judge(rules []specs.LinuxDeviceCgroup, kind byte, a access, major, minor int64) bool {
	for _, bit := range []access{mayRead, mayWrite, mayMknod} {
		allowed := false
		for _, r := range rules {
			if (r.Type == "a" || r.Type == "" || r.Type[0] == kind) && (r.Major == nil || *r.Major == -1 || *r.Major == major) &&
				(r.Minor == nil || *r.Minor == -1 || *r.Minor == minor) && (r.Access == "" || strings.Contains(r.Access, bit.String())) {
				allowed = r.Allow
			}
		}
		if a&bit != 0 && !allowed {
			return false
		}
	}
	return true
}

func TestDevicePrograms(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	number := func() *int64 {
		if r.IntN(3) == 0 {
			return nil
		}
		return p(int64(r.IntN(4) - 1))
	}
	for range 2000 {
		var list []specs.LinuxDeviceCgroup
		for range r.IntN(8) {
			list = append(list, specs.LinuxDeviceCgroup{Allow: r.IntN(2) == 0, Type: []string{"a", "b", "c", ""}[r.IntN(4)],
				Major: number(), Minor: number(), Access: []string{"", "r", "w", "m", "rw", "rwm", "wm", "rwa"}[r.IntN(8)]})
		}
		rules, err := parseRules(list)
		if err != nil {
			t.Fatal(err)
		}
		all := append(list, DefaultDevices()...)
		prog := compileDevices(rules)
		for range 100 {
			kind, a := uint32(1+r.IntN(2)), access(1+r.IntN(7))
			major, minor := int64(r.IntN(6)), int64(r.IntN(9))
			want := judge(all, "?bc"[kind], a, major, minor)
			if got := run(t, prog, kind, a, uint32(major), uint32(minor)); got != want {
				t.Fatalf("%c %d:%d %v: the program says %v, the rules %v: %+v", "?bc"[kind], major, minor, a, got, want, list)
			}
			if opens(rules) && !want {
				t.Fatalf("the rules do not let everything through: %+v", list)
			}
		}
	}
}

var everything = []specs.LinuxDeviceCgroup{{Allow: true}}

func TestDevicesV1(t *testing.T) {
	f := newFake(t, V1)
	g := f.group("/a")
	fuse := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: p(int64(10)), Minor: p(int64(229)), Access: "rw"}
	if err := g.Apply(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, fuse}}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write devices/a/devices.deny a
		write devices/a/devices.allow c 10:229 rw
		write devices/a/devices.allow c *:* m
		write devices/a/devices.allow b *:* m
		write devices/a/devices.allow c 1:3 rwm
		write devices/a/devices.allow c 1:5 rwm
		write devices/a/devices.allow c 1:7 rwm
		write devices/a/devices.allow c 1:8 rwm
		write devices/a/devices.allow c 1:9 rwm
		write devices/a/devices.allow c 5:0 rwm
		write devices/a/devices.allow c 5:1 rwm
		write devices/a/devices.allow c 5:2 rwm
		write devices/a/devices.allow c 10:200 rwm
		write devices/a/devices.allow c 136:* rwm`)
	// Without fuse and with a disk, for a group that has processes: nothing else is touched.
	f.put("devices/a/devices.list", "b *:* m\nc *:* m\nc 10:229 rw\nc 136:* rwm\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\nc 5:1 rwm\nc 5:2 rwm\nc 10:200 rwm\n")
	disk := specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: p(int64(8)), Minor: p(int64(0)), Access: "r"}
	if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, disk}}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write devices/a/devices.allow b 8:0 r
		write devices/a/devices.deny c 10:229 rw`)
	if err := g.Update(&specs.LinuxResources{Devices: everything}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), "write devices/a/devices.allow a")
	privileged := f.group("/b")
	if err := privileged.Apply(&specs.LinuxResources{Devices: everything}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), "")
	// Everything but one disk, which v1 can say, and everything but writing to it after all disks, which it cannot.
	if err := privileged.Apply(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true}, {Type: "b", Major: p(int64(8)), Minor: p(int64(0))}}}); err != nil {
		t.Fatal(err)
	}
	transcript(t, f.take(), `
		write devices/b/devices.allow a
		write devices/b/devices.deny b 8:0 rw`)
	err := privileged.Apply(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{}, {Allow: true, Type: "b"}, {Type: "b", Major: p(int64(8)), Minor: p(int64(0)), Access: "w"}}})
	if !errs.Is(err, errs.Unsupported) {
		t.Errorf("an exception from an exception: %v", err)
	}
}

func TestDeviceRulesRefused(t *testing.T) {
	for _, r := range []specs.LinuxDeviceCgroup{{Type: "p"}, {Type: "c", Major: p(int64(-2))}, {Type: "c", Minor: p(int64(1 << 21))}, {Access: "x"}} {
		if err := newFake(t, V1).group("/a").Apply(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{r}}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
