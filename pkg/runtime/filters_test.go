package runtime

import (
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Every field of a profile sets it apart in the cache, those of a later specification included.
func TestProfileKey(t *testing.T) {
	one := uint(1)
	full := func() *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{
			DefaultAction: "a", DefaultErrnoRet: &one, Architectures: []specs.Arch{"b"}, Flags: []specs.LinuxSeccompFlag{"c"},
			ListenerPath: "d", ListenerMetadata: "e",
			Syscalls: []specs.LinuxSyscall{{Names: []string{"f"}, Action: "g", ErrnoRet: &one, Args: []specs.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "h"}}}},
		}
	}
	seen := map[string]string{profileKey(full()): "nothing", profileKey(nil): "all"}
	if _, same := seen[profileKey(full())]; !same {
		t.Error("the same profile has two keys")
	}
	without := func(name string, p *specs.LinuxSeccomp, field reflect.Value) {
		field.SetZero()
		k := profileKey(p)
		if other, ok := seen[k]; ok {
			t.Errorf("without %s and without %s a profile has the same key", name, other)
		}
		seen[k] = name
	}
	for i, f := range reflect.VisibleFields(reflect.TypeFor[specs.LinuxSeccomp]()) {
		p := full()
		without(f.Name, p, reflect.ValueOf(p).Elem().Field(i))
	}
	for i, f := range reflect.VisibleFields(reflect.TypeFor[specs.LinuxSyscall]()) {
		p := full()
		without("Syscalls."+f.Name, p, reflect.ValueOf(&p.Syscalls[0]).Elem().Field(i))
	}
	for i, f := range reflect.VisibleFields(reflect.TypeFor[specs.LinuxSeccompArg]()) {
		p := full()
		without("Args."+f.Name, p, reflect.ValueOf(&p.Syscalls[0].Args[0]).Elem().Field(i))
	}
	split := full()
	split.Syscalls[0].Names, split.ListenerPath = []string{"f1,f"}, ""
	joined := full()
	joined.Syscalls[0].Names, joined.ListenerPath = []string{"f", "f"}, ""
	if profileKey(split) == profileKey(joined) {
		t.Error("a name can pass for two")
	}
}
