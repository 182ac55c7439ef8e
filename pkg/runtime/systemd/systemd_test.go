package systemd

import (
	"context"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/errs"
)

var unit = Unit{Slice: "a.slice", Name: "cri-1.scope"}

func TestStartScope(t *testing.T) {
	for _, direct := range []bool{true, false} {
		for _, early := range []bool{true, false} {
			b := newFakeBus(t, direct)
			b.behave(func() { b.early = early })
			c := b.dial()
			if v, err := c.Version(t.Context()); v != 252 || err != nil {
				t.Errorf("version %d, %v", v, err)
			}
			if err := c.StartScope(t.Context(), unit, "what", 77, []Property{{"TasksMax", Value{"t", uint64(5)}}}); err != nil {
				t.Fatal(err)
			}
			want := map[string]Value{
				"Description": {"s", "what"}, "Slice": {"s", "a.slice"}, "Delegate": {"b", true}, "DefaultDependencies": {"b", false},
				"PIDs": {"au", []any{uint32(77)}}, "TasksMax": {"t", uint64(5)},
			}
			if got := b.props("StartTransientUnit"); !reflect.DeepEqual(got, want) {
				t.Errorf("properties %v, want %v", got, want)
			}
			if got := b.members(); got != "Get StartTransientUnit" {
				t.Errorf("calls: %s", got)
			}
		}
	}
}

func TestStartScopeFailures(t *testing.T) {
	for name, x := range map[string]struct {
		fail   []string
		result string
		kind   errs.Kind
		text   string
		calls  string
	}{
		"a failed unit of the name": {fail: []string{"UnitExists", ""}, calls: "StartTransientUnit ResetFailedUnit StartTransientUnit"},
		"one that lives":            {fail: []string{"UnitExists", "UnitExists"}, kind: errs.Exists, text: "start unit cri-1.scope", calls: "StartTransientUnit ResetFailedUnit StartTransientUnit"},
		"refused":                   {fail: []string{"PropertyReadOnly"}, text: "PropertyReadOnly!", calls: "StartTransientUnit ResetFailedUnit"},
		"a job that fails":          {result: "failed", text: `ended as "failed"`, calls: "StartTransientUnit ResetFailedUnit"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newFakeBus(t, true)
			b.behave(func() { b.fail["StartTransientUnit"] = x.fail })
			if x.result != "" {
				b.behave(func() { b.result = x.result })
			}
			err := b.dial().StartScope(t.Context(), unit, "what", 77, nil)
			switch {
			case x.text == "" && err != nil:
				t.Error(err)
			case x.text != "" && (err == nil || !strings.Contains(err.Error(), x.text) || errs.KindOf(err) != x.kind):
				t.Errorf("error %v", err)
			}
			if got := b.members(); got != x.calls {
				t.Errorf("calls: %s", got)
			}
		})
	}
}

func TestAttach(t *testing.T) {
	b := newFakeBus(t, true)
	c := b.dial()
	for below, want := range map[string]string{"": "", "/": "", "/a/b": "/a/b"} {
		if err := c.Attach(t.Context(), unit.Name, below, 77); err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		m := b.calls[len(b.calls)-1]
		b.mu.Unlock()
		if m.member != "AttachProcessesToUnit" || m.sig != "ssau" || !reflect.DeepEqual(m.body, []any{unit.Name, want, []any{uint32(77)}}) {
			t.Errorf("%s(%s) %v", m.member, m.sig, m.body)
		}
	}
	b.behave(func() { b.fail["AttachProcessesToUnit"] = []string{"NoSuchUnit"} })
	if err := c.Attach(t.Context(), unit.Name, "", 77); err == nil || !strings.Contains(err.Error(), unit.Name) {
		t.Errorf("error %v", err)
	}
}

func TestSettled(t *testing.T) {
	at, err := unified(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	for _, answer := range []error{nil, refused} {
		if err := settled(os.Getpid(), at, answer); err != answer {
			t.Errorf("where it is to be: %v", err)
		}
		err := settled(os.Getpid(), "/else.scope", answer)
		if err == nil || !strings.Contains(err.Error(), "from cgroup "+at+" to /else.scope: ") || !strings.Contains(err.Error(), "systemd-run --user ") {
			t.Errorf("elsewhere: %v", err)
		}
		if answer != nil && !errors.Is(err, answer) {
			t.Errorf("the cause is lost: %v", err)
		}
	}
	if err := settled(1<<30, at, refused); !errors.Is(err, refused) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that is gone: %v", err)
	}
}

func TestSession(t *testing.T) {
	for base, want := range map[string]bool{
		"/user.slice/user-7.slice/user@7.service": true, "/user.slice/user-0.slice/user@0.service": false, "/": false, "/init.scope": false, "/user@7": false,
	} {
		if got := ofUser(base); got != want {
			t.Errorf("%s: %v", base, got)
		}
	}
	b := newFakeBus(t, false)
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+b.socket)
	if !Session(t.Context()) {
		t.Error("a user's manager is none")
	}
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "")
	if Session(t.Context()) {
		t.Error("there is a manager where none is named")
	}
}

func TestSilence(t *testing.T) {
	b := newFakeBus(t, true)
	b.behave(func() { b.silent = true })
	c := b.dial()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.StartScope(ctx, unit, "what", 77, nil); err == nil {
		t.Error("no answer is no error")
	}
}

func TestStop(t *testing.T) {
	b := newFakeBus(t, false)
	c := b.dial()
	b.behave(func() { b.fail["ResetFailedUnit"] = []string{"NoSuchUnit"} })
	if err := c.Stop(t.Context(), unit.Name); err != nil {
		t.Error(err)
	}
	b.behave(func() { b.fail["StopUnit"] = []string{"NoSuchUnit", "Bad"} })
	if err := c.Stop(t.Context(), unit.Name); err != nil {
		t.Errorf("a unit that systemd does not know: %v", err)
	}
	if err := c.Stop(t.Context(), unit.Name); err == nil {
		t.Error("no error")
	}
}

func TestSetProperties(t *testing.T) {
	b := newFakeBus(t, true)
	c := b.dial()
	if err := c.SetProperties(t.Context(), unit.Name, nil); err != nil || b.members() != "" {
		t.Errorf("nothing to set: %v, calls %s", err, b.members())
	}
	props := []Property{{"TasksMax", Value{"t", uint64(5)}}}
	if err := c.SetProperties(t.Context(), unit.Name, props); err != nil {
		t.Fatal(err)
	}
	if got := b.props("SetUnitProperties"); !reflect.DeepEqual(got, map[string]Value{"TasksMax": {"t", uint64(5)}}) {
		t.Errorf("properties %v", got)
	}
	b.behave(func() { b.fail["SetUnitProperties"] = []string{"NoSuchUnit"} })
	if err := c.SetProperties(t.Context(), unit.Name, props); !errs.Is(err, errs.NotFound) {
		t.Errorf("error %v", err)
	}
}

func TestList(t *testing.T) {
	got, err := newFakeBus(t, true).dial().List(t.Context(), "cri-*.scope")
	if err != nil || !reflect.DeepEqual(got, []Status{{"cri-1.scope", "what", "failed"}}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestUserPath(t *testing.T) {
	b := newFakeBus(t, false)
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+b.socket+",guid=7")
	got, err := Path(t.Context(), Unit{Slice: "user.slice", Name: "runc-1.scope", User: true})
	if want := "/user.slice/user-7.slice/user@7.service/user.slice/runc-1.scope"; err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

func TestAddresses(t *testing.T) {
	for _, x := range []struct {
		env  map[string]string
		want []address
	}{
		{map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"}, []address{{"/run/user/7/systemd/private", true}, {"/run/user/7/bus", false}}},
		{map[string]string{"DBUS_SESSION_BUS_ADDRESS": "tcp:host=x;unix:abstract=/tmp/a%20b,guid=1;unix:path=/c"}, []address{{"@/tmp/a b", false}, {"/c", false}}},
		{nil, nil},
	} {
		got, err := addresses(true, func(k string) string { return x.env[k] })
		if !reflect.DeepEqual(got, x.want) || (err == nil) != (x.want != nil) {
			t.Errorf("%v: %v, %v", x.env, got, err)
		}
	}
}

func TestPaths(t *testing.T) {
	for _, x := range []struct {
		path, id string
		user     bool
		want     Unit
		cgroup   string
	}{
		{"", "c1", false, Unit{Slice: "system.slice", Name: "runc-c1.scope"}, "/system.slice/runc-c1.scope"},
		{"", "c1", true, Unit{Slice: "user.slice", Name: "runc-c1.scope", User: true}, "/user.slice/runc-c1.scope"},
		{"machine.slice:libpod:1", "c1", false, Unit{Slice: "machine.slice", Name: "libpod-1.scope"}, "/machine.slice/libpod-1.scope"},
		{"a-b-c.slice:cri:1", "c1", false, Unit{Slice: "a-b-c.slice", Name: "cri-1.scope"}, "/a.slice/a-b.slice/a-b-c.slice/cri-1.scope"},
		{":x:1", "c1", false, Unit{Slice: "system.slice", Name: "x-1.scope"}, "/system.slice/x-1.scope"},
		{"-.slice:x:1", "c1", false, Unit{Slice: "-.slice", Name: "x-1.scope"}, "/x-1.scope"},
	} {
		u, err := ParsePath(x.path, x.id, x.user)
		x.want.Container = u.Container
		if err != nil || u != x.want {
			t.Errorf("%q: %+v, %v", x.path, u, err)
			continue
		}
		if got, err := u.Cgroup(); err != nil || got != x.cgroup {
			t.Errorf("%q: cgroup %q, %v", x.path, got, err)
		}
	}
	for _, path := range []string{"/a/b", "a", "a:b", "a:b:c:d", "a:b:c", "a--b.slice:b:c", "-a.slice:b:c", "../x.slice:b:c", "a.slice:b:../c", "a.slice:b:c/d",
		"a.slice:b:c\n", "a.slice:b:x.slice", ".slice:b:c", "a.slice:b:" + strings.Repeat("x", 300)} {
		if u, err := ParsePath(path, "c1", false); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %+v, %v", path, u, err)
		}
	}
	for _, slice := range []string{"a.slice", "a-b.slice", "-.slice", "a_b-c-d.slice"} {
		got, err := ExpandSlice(slice)
		want, err2 := systemd.ExpandSlice(slice)
		if err != nil || err2 != nil || got != want {
			t.Errorf("%s: %s, %v; theirs %s, %v", slice, got, err, want, err2)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestProperties(t *testing.T) {
	dev := func(kind string, major, minor int64, may string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: may}
	}
	defaults := []any{[]any{"char-*", "m"}, []any{"block-*", "m"}, []any{"/dev/char/1:3", "rwm"}, []any{"/dev/char/1:5", "rwm"}, []any{"/dev/char/1:7", "rwm"},
		[]any{"/dev/char/1:8", "rwm"}, []any{"/dev/char/1:9", "rwm"}, []any{"/dev/char/5:0", "rwm"}, []any{"/dev/char/5:1", "rwm"}, []any{"/dev/char/5:2", "rwm"}, []any{"/dev/char/10:200", "rwm"}, []any{"char-136", "rwm"}}
	num := func(n uint64) Value { return Value{"t", n} }
	yes := Value{"b", true}
	for name, x := range map[string]struct {
		res     specs.LinuxResources
		v1, new bool
		version int
		want    map[string]Value
	}{
		"nothing": {new: true, want: map[string]Value{"MemoryAccounting": yes, "CPUAccounting": yes, "IOAccounting": yes, "TasksAccounting": yes,
			"DevicePolicy": {"s", "strict"}, "DeviceAllow": {"a(ss)", defaults}}},
		"nothing on v1": {v1: true, new: true, want: map[string]Value{"MemoryAccounting": yes, "CPUAccounting": yes, "BlockIOAccounting": yes, "TasksAccounting": yes,
			"DevicePolicy": {"s", "strict"}, "DeviceAllow": {"a(ss)", defaults}}},
		"memory":          {res: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150)), Reservation: ptr(int64(50))}}, want: map[string]Value{"MemoryMax": num(100), "MemoryLow": num(50), "MemorySwapMax": num(50)}},
		"memory on v1":    {v1: true, res: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150)), Reservation: ptr(int64(50))}}, want: map[string]Value{"MemoryLimit": num(100)}},
		"no memory limit": {res: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}, want: map[string]Value{"MemoryMax": num(infinity), "MemorySwapMax": num(infinity)}},
		"no swap":         {res: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(100))}}, want: map[string]Value{"MemoryMax": num(100), "MemorySwapMax": num(0)}},
		"shares":          {res: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))}}, want: map[string]Value{"CPUWeight": num(100)}},
		"shares on v1":    {v1: true, res: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))}}, want: map[string]Value{"CPUShares": num(1024)}},
		"idle":            {res: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024)), Idle: ptr(int64(1))}}, want: map[string]Value{"CPUWeight": num(0)}},
		"quota":           {res: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(5001)), Period: ptr(uint64(100000))}}, want: map[string]Value{"CPUQuotaPeriodUSec": num(100000), "CPUQuotaPerSecUSec": num(60000)}},
		"no quota":        {res: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}}, want: map[string]Value{"CPUQuotaPerSecUSec": num(infinity)}},
		"quota, old":      {version: 240, res: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(5000)), Period: ptr(uint64(100000)), Cpus: "1"}}, want: map[string]Value{"CPUQuotaPerSecUSec": num(50000)}},
		"cpuset":          {res: specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0,3-4, 9", Mems: "0"}}, want: map[string]Value{"AllowedCPUs": {"ay", []byte{0x19, 2}}, "AllowedMemoryNodes": {"ay", []byte{1}}}},
		"pids":            {res: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(0))}}, want: map[string]Value{"TasksMax": num(1)}},
		"no pids limit":   {res: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}, want: map[string]Value{"TasksMax": num(infinity)}},
		"io weight":       {res: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000))}}, want: map[string]Value{"IOWeight": num(10000)}},
		"io weight on v1": {v1: true, res: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000))}}, want: map[string]Value{"BlockIOWeight": num(1000)}},
		"everything":      {res: specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}, want: map[string]Value{"DevicePolicy": {"s", "auto"}, "DeviceAllow": {"a(ss)", []any{}}}},
		"a minor of all":  {res: specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{dev("c", -1, 7, "r")}}, want: map[string]Value{"DevicePolicy": {"s", "auto"}, "DeviceAllow": {"a(ss)", []any{}}}},
		"unified":         {res: specs.LinuxResources{Unified: map[string]string{"memory.high": "5", "pids.max": "max", "cpu.max": "max 5000", "cpuset.cpus": "1", "memory.oom.group": "1", "hugetlb.2MB.max": "7"}}, want: map[string]Value{"MemoryHigh": num(5), "TasksMax": num(infinity), "CPUQuotaPeriodUSec": num(5000), "CPUQuotaPerSecUSec": num(infinity), "AllowedCPUs": {"ay", []byte{2}}}},
		"unified idle":    {res: specs.LinuxResources{Unified: map[string]string{"cpu.idle": "1", "cpu.weight": "5"}}, want: map[string]Value{"CPUWeight": num(0)}},
	} {
		t.Run(name, func(t *testing.T) {
			version := 252
			if x.version != 0 {
				version = x.version
			}
			do := ForUpdate
			if x.new {
				do = ForScope
			}
			props, err := do(&x.res, !x.v1, version)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]Value{}
			for _, p := range props {
				got[p.Name] = p.Value
			}
			if !reflect.DeepEqual(got, x.want) {
				t.Errorf("got  %v\nwant %v", got, x.want)
			}
		})
	}
	for _, bad := range []specs.LinuxResources{
		{CPU: &specs.LinuxCPU{Cpus: "3-1"}}, {CPU: &specs.LinuxCPU{Cpus: ","}}, {CPU: &specs.LinuxCPU{Mems: "a"}}, {CPU: &specs.LinuxCPU{Cpus: "99999999"}},
		{Unified: map[string]string{"memory.max": "x"}}, {Unified: map[string]string{"cpu.max": "1 2 3"}}, {Unified: map[string]string{"pids.max": "-1"}},
		{Devices: []specs.LinuxDeviceCgroup{{Type: "z"}}},
	} {
		if p, err := ForScope(&bad, true, 252); err == nil {
			t.Errorf("%+v: %v", bad, p)
		}
	}
}

func TestRound(t *testing.T) {
	res := &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(5001)), Period: ptr(uint64(100000))}}
	if got := Round(res); *got.CPU.Quota != 6000 || *res.CPU.Quota != 5001 {
		t.Errorf("quota %d, and of the original %d", *got.CPU.Quota, *res.CPU.Quota)
	}
	for _, res := range []*specs.LinuxResources{nil, {}, {CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}}, {CPU: &specs.LinuxCPU{Quota: ptr(int64(33000))}}} {
		if got := Round(res); !reflect.DeepEqual(got, res) {
			t.Errorf("%+v became %+v", res, got)
		}
	}
}

func TestAnnotations(t *testing.T) {
	got, err := Annotations(map[string]string{
		"org.systemd.property.CollectMode": "'inactive-or-failed'", "org.systemd.property.TimeoutStopSec": "uint64 3", "other": "x",
		"org.systemd.property.TimeoutStopUSec": "uint64 5", "org.systemd.property.JobRunningTimeoutSec": "2.5",
	})
	want := []Property{{"CollectMode", Value{"s", "inactive-or-failed"}}, {"JobRunningTimeoutUSec", Value{"t", uint64(2500000)}},
		{"TimeoutStopUSec", Value{"t", uint64(3000000)}}, {"TimeoutStopUSec", Value{"t", uint64(5)}}}
	if len(got) == 4 && got[2].Value.V == uint64(5) {
		got[2], got[3] = got[3], got[2]
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for k, v := range map[string]string{"A": "1", "Ab": "1", "Exec.Start": "'x'", "A1234": "1", "TasksMax": "x", "TimeoutStopSec": "'x'", "": "1"} {
		if p, err := Annotations(map[string]string{annotationPrefix + k: v}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s=%s: %v, %v", k, v, p, err)
		}
	}
}
