package oci

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestEntrypointRules(t *testing.T) {
	for name, c := range map[string]struct {
		entrypoint, cmd, command, args, want []string
	}{
		"image alone":            {[]string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		"args replace cmd":       {[]string{"e"}, []string{"c"}, nil, []string{"a"}, []string{"e", "a"}},
		"command replaces both":  {[]string{"e"}, []string{"c"}, []string{"x"}, nil, []string{"x"}},
		"command and args":       {[]string{"e"}, []string{"c"}, []string{"x"}, []string{"a"}, []string{"x", "a"}},
		"cmd alone":              {nil, []string{"c", "d"}, nil, nil, []string{"c", "d"}},
		"args alone":             {nil, []string{"c"}, nil, []string{"a"}, []string{"a"}},
		"entrypoint alone":       {[]string{"e"}, nil, nil, nil, []string{"e"}},
		"empty argument is kept": {[]string{"e"}, nil, nil, []string{""}, []string{"e", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			in.Image.Entrypoint, in.Image.Cmd, in.Config.Command, in.Config.Args = c.entrypoint, c.cmd, c.command, c.args
			if got := mustTranslate(t, in).Spec.Process.Args; !slices.Equal(got, c.want) {
				t.Errorf("args %q, want %q", got, c.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	in := input(t)
	in.Image.Env = []string{"PATH=/image", "A=1", "B=1", "broken", "=x", "TWICE=1", "TWICE=2", "HOME=/image"}
	in.Config.Tty = true
	in.Config.Envs = []*cri.KeyValue{
		{Key: "B", Value: []byte("2")}, {Key: "RAW", Value: []byte("a\xff\xfeb")}, {Key: "EMPTY"}, {Key: "C", Value: []byte("x=y=z")},
		{Key: "TERM", Value: []byte("dumb")}, {Key: "with.dot-dash", Value: []byte("ok\nline")},
	}
	want := []string{"PATH=/image", "HOSTNAME=pod", "TERM=dumb", "A=1", "B=2", "TWICE=2", "HOME=/image", "RAW=a\xff\xfeb", "EMPTY=", "C=x=y=z", "with.dot-dash=ok\nline"}
	if diff := cmp.Diff(want, mustTranslate(t, in).Spec.Process.Env); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestEmptyHomeIsNone(t *testing.T) {
	in := input(t)
	in.Image.Env = []string{"HOME="}
	if env := mustTranslate(t, in).Spec.Process.Env; !slices.Contains(env, "HOME=/root") || slices.Contains(env, "HOME=") {
		t.Errorf("environment %q, want the account's home", env)
	}
}

func TestHostnameVariable(t *testing.T) {
	in := input(t)
	in.podSecurity().NamespaceOptions.Network = cri.NamespaceMode_NODE
	if env := mustTranslate(t, in).Spec.Process.Env; !slices.Contains(env, "HOSTNAME=node") {
		t.Errorf("in the node's network HOSTNAME is not the node's: %q", env)
	}
}

func TestWorkingDirectory(t *testing.T) {
	for _, c := range []struct{ image, request, want string }{
		{"", "", "/"}, {"/srv", "", "/srv"}, {"srv", "", "/srv"}, {"../../x", "", "/x"}, {"/srv", "/one/../w//", "/w"},
	} {
		in := input(t)
		in.Image.WorkingDir, in.Config.WorkingDir = c.image, c.request
		if got := mustTranslate(t, in).Spec.Process.Cwd; got != c.want {
			t.Errorf("%+v gives %q", c, got)
		}
	}
}

func TestProcessRefused(t *testing.T) {
	checkRefusals(t, map[string]refusal{
		"nothing to run":       {func(in *ContainerInput) { in.Image = &ocispec.ImageConfig{} }, errs.Invalid, []string{"command", "the image names none"}},
		"empty program":        {func(in *ContainerInput) { in.Config.Command = []string{"", "x"} }, errs.Invalid, []string{"command"}},
		"NUL in an argument":   {func(in *ContainerInput) { in.Config.Args = []string{"a\x00b"} }, errs.Invalid, []string{"args[0]", "NUL"}},
		"giant argument":       {func(in *ContainerInput) { in.Config.Args = []string{strings.Repeat("x", maxText+1)} }, errs.Invalid, []string{"args[0]"}},
		"env without key":      {func(in *ContainerInput) { in.Config.Envs = []*cri.KeyValue{{Value: []byte("x")}} }, errs.Invalid, []string{"envs[0].key"}},
		"env key with =":       {func(in *ContainerInput) { in.Config.Envs = []*cri.KeyValue{{Key: "a=b"}} }, errs.Invalid, []string{"envs[0].key", "a=b"}},
		"NUL in an env value":  {func(in *ContainerInput) { in.Config.Envs = []*cri.KeyValue{{Key: "a", Value: []byte{0}}} }, errs.Invalid, []string{"envs[0]", "NUL"}},
		"NUL in image env":     {func(in *ContainerInput) { in.Image.Env = []string{"A=\x00"} }, errs.Invalid, []string{"image env[0]"}},
		"relative working_dir": {func(in *ContainerInput) { in.Config.WorkingDir = "x" }, errs.Invalid, []string{"working_dir", `"x"`}},
		"no name":              {func(in *ContainerInput) { in.Config.Metadata = nil }, errs.Invalid, []string{"metadata.name"}},
		"no config":            {func(in *ContainerInput) { in.Config = nil }, errs.Invalid, []string{"config"}},
		"log path climbs":      {func(in *ContainerInput) { in.Config.LogPath = "a/../../x" }, errs.Invalid, []string{"log_path"}},
		"privileged in a pod that is not": {func(in *ContainerInput) { in.security().Privileged = true }, errs.Invalid,
			[]string{"privileged", "sandbox"}},
	})
}

func TestRlimitsAreClamped(t *testing.T) {
	in := input(t)
	in.Defaults.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 4096, Hard: 8192}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 10}}
	in.Host.HardLimits = map[string]uint64{"RLIMIT_NOFILE": 1024}
	want := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 10}}
	if diff := cmp.Diff(want, mustTranslate(t, in).Spec.Process.Rlimits); diff != "" {
		t.Error(diff)
	}
	if in.Defaults.Rlimits[0].Hard != 8192 {
		t.Error("the operator's limits were changed")
	}
}

func TestExec(t *testing.T) {
	spec := mustTranslate(t, input(t)).Spec
	before := slices.Clone(spec.Process.Env)
	p, err := Exec(spec, []string{"sh", "-c", "true"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Args, []string{"sh", "-c", "true"}) || !p.Terminal || p.Cwd != "/srv" || !slices.Contains(p.Env, "TERM=xterm") {
		t.Errorf("%+v", p)
	}
	if p.Capabilities == nil || p.User.UID != spec.Process.User.UID || p.NoNewPrivileges != spec.Process.NoNewPrivileges {
		t.Error("an exec has not the container's identity")
	}
	if !slices.Equal(before, spec.Process.Env) || spec.Process.Terminal {
		t.Error("the container's spec was changed")
	}
	for _, cmd := range [][]string{nil, {""}, {"a\x00"}} {
		_, err := Exec(spec, cmd, false)
		wantError(t, err, errs.Invalid, "cmd")
	}
}

func TestTranslationsShareNothing(t *testing.T) {
	in := input(t)
	a := mustTranslate(t, in).Spec
	before, err := Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	a.Process.Env[0], a.Mounts[0].Options[0], a.Linux.MaskedPaths[0], a.Process.Args[0] = "x", "x", "x", "x"
	a.Process.Capabilities.Bounding[0] = "x"
	*a.Linux.Resources.Devices[5].Major = 99
	after, err := Marshal(mustTranslate(t, in).Spec)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("changing one spec changed another:\n%s", diff)
	}
}

func TestBundleKeepsBytes(t *testing.T) {
	in := input(t)
	in.Config.Envs = []*cri.KeyValue{{Key: "RAW", Value: []byte("a\xff\x01")}, {Key: "OK", Value: []byte("é")}}
	spec := mustTranslate(t, in).Spec
	b, err := Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(spec, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if spec.Annotations != nil {
		t.Error("Marshal changed the spec")
	}
	if _, err := Unmarshal([]byte(`{"process":{"env":[]},"annotations":{"` + rawEnvAnnotation + `":"{\"7\":\"\"}"}}`)); err == nil {
		t.Error("an entry that is not there was restored")
	}
}
