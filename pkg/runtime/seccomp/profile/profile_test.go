package profile

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func allows(p *specs.LinuxSeccomp, name string) bool {
	for _, s := range p.Syscalls {
		if s.Action == specs.ActAllow && len(s.Args) == 0 && slices.Contains(s.Names, name) {
			return true
		}
	}
	return false
}

func TestDefaultFollowsCapabilities(t *testing.T) {
	without, err := Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	with, err := Default([]string{"CAP_SYS_ADMIN"})
	if err != nil {
		t.Fatal(err)
	}
	if allows(without, "mount") || !allows(with, "mount") || !allows(without, "read") {
		t.Error("mount belongs to CAP_SYS_ADMIN, read to everybody")
	}
	if with.DefaultAction != specs.ActErrno {
		t.Errorf("the default action is %s", with.DefaultAction)
	}
}

func TestLoad(t *testing.T) {
	p, err := Load([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
		{"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
		{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`), nil)
	if err != nil || allows(p, "mount") || !allows(p, "read") {
		t.Errorf("Load = %+v, %v", p, err)
	}
	if _, err := Load([]byte("{"), nil); err == nil {
		t.Error("half a JSON text is a profile")
	}
}
