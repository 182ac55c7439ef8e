package network

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/cri-server/cri-server/pkg/errs"
)

func script(t *testing.T, dir, name, text string) {
	t.Helper()
	write(t, dir+"/bin/"+name, "#!/bin/sh\n"+text)
	if err := os.Chmod(dir+"/bin/"+name, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestFindInPath(t *testing.T) {
	m, dir := testManager(t)
	e := (*executor)(m)
	script(t, dir, "real", "")
	script(t, dir, "bridge", "")
	write(t, dir+"/bin/plain", "no program")
	os.Mkdir(dir+"/bin/dir", 0o755)
	write(t, dir+"/sh", "outside")
	for typ, want := range map[string]string{"real": dir + "/bin/real", "bridge": "builtin:bridge", "loopback": "builtin:loopback", "portmap": "builtin:portmap", "host-local": "builtin:host-local"} {
		if got, err := e.FindInPath(typ, m.cfg.BinDirs); err != nil || got != want {
			t.Errorf("%s: %q, %v", typ, got, err)
		}
	}
	for typ, kind := range map[string]errs.Kind{"": errs.Invalid, "..": errs.Invalid, ".": errs.Invalid, "../sh": errs.Invalid, "/bin/sh": errs.Invalid, "a b": errs.Invalid,
		"x\x00y": errs.Invalid, "builtin:bridge": errs.Invalid, "plain": errs.NotFound, "dir": errs.NotFound, "none": errs.NotFound} {
		if got, err := e.FindInPath(typ, m.cfg.BinDirs); !errs.Is(err, kind) {
			t.Errorf("%q: %q, %v", typ, got, err)
		}
	}
	m.cfg.ExecTypes = []string{"bridge"}
	if got, err := e.FindInPath("bridge", m.cfg.BinDirs); err != nil || got != dir+"/bin/bridge" {
		t.Errorf("bridge by ExecTypes: %q, %v", got, err)
	}
}

func TestExecPlugin(t *testing.T) {
	m, dir := testManager(t)
	m.cfg.PluginTimeout = 30 * time.Second
	e := (*executor)(m)
	run := func(name string, ctx context.Context) (string, error) {
		out, err := e.ExecPlugin(ctx, dir+"/bin/"+name, []byte(`{"in":1}`), []string{"CNI_COMMAND=ADD", "NOTIFY_SOCKET=/x", "LISTEN_FDS=1", "PATH=" + os.Getenv("PATH")})
		return string(out), err
	}
	script(t, dir, "good", `cat; echo " $CNI_COMMAND $NOTIFY_SOCKET$LISTEN_FDS"`)
	if out, err := run("good", context.Background()); err != nil || out != `{"in":1} ADD `+"\n" {
		t.Errorf("%q, %v", out, err)
	}
	script(t, dir, "told", `echo '{"code":7,"msg":"no addresses","details":"x"}'; exit 1`)
	_, err := run("told", context.Background())
	if cniErr := (*types.Error)(nil); !errors.As(err, &cniErr) || cniErr.Code != 7 {
		t.Error(err)
	}
	script(t, dir, "crash", `echo half; echo broken >&2; kill -SEGV $$`)
	if _, err = run("crash", context.Background()); err == nil || !strings.Contains(err.Error(), "broken") || !strings.Contains(err.Error(), "segmentation") {
		t.Error(err)
	}
	script(t, dir, "hang", `echo waiting >&2; sleep 1000`)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err = run("hang", ctx); !errs.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "hang") {
		t.Error(err)
	}
	script(t, dir, "flood", `exec cat /dev/zero`)
	if _, err = run("flood", context.Background()); !errs.Is(err, errs.Exhausted) || len(err.Error()) > 5000 {
		t.Error(err)
	}
}

// Configurations that only the reference plugins know are refused by name, or exec'd where those are.
func TestUnsupportedConfiguration(t *testing.T) {
	m, dir := testManager(t)
	e := (*executor)(m)
	for typ, conf := range map[string]string{
		"bridge":  `{"cniVersion":"1.0.0","name":"n","type":"bridge","vlan":5}`,
		"portmap": `{"cniVersion":"1.0.0","name":"n","type":"portmap","conditionsV4":["-s","1.2.3.4"],"prevResult":{"cniVersion":"1.0.0"}}`,
	} {
		env := []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=x", "CNI_IFNAME=eth0", "CNI_NETNS=/proc/self/ns/net"}
		if _, err := e.ExecPlugin(context.Background(), "builtin:"+typ, []byte(conf), env); !errs.Is(err, errs.Unsupported) {
			t.Errorf("%s: %v", typ, err)
		}
		script(t, dir, typ, `echo '{"cniVersion":"1.0.0"}'`)
		if out, err := e.ExecPlugin(context.Background(), "builtin:"+typ, []byte(conf), env); err != nil || len(out) == 0 {
			t.Errorf("%s: %q, %v", typ, out, err)
		}
	}
	if _, err := e.ExecPlugin(context.Background(), "builtin:sh", nil, nil); err == nil {
		t.Error("an unknown plugin in process ran")
	}
}

func TestStatusAsksPlugins(t *testing.T) {
	m, dir := testManager(t)
	write(t, dir+"/net.d/1.conflist", `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"custom"}]}`)
	if s := m.Status(context.Background()); s.Ready || !strings.Contains(s.Message, `"custom"`) {
		t.Errorf("without the program: %+v", s)
	}
	script(t, dir, "custom", `echo '{"cniVersion":"1.1.0","code":50,"msg":"controller is away"}'; exit 1`)
	if s := m.Status(context.Background()); s.Ready || !strings.Contains(s.Message, "controller is away") {
		t.Errorf("not ready: %+v", s)
	}
	script(t, dir, "custom", `exit 0`)
	m.probe.at = time.Time{}
	if s := m.Status(context.Background()); !s.Ready {
		t.Errorf("ready: %+v", s)
	}
	write(t, dir+"/net.d/1.conflist", `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge","ipam":{"type":"whereabouts"}}]}`)
	if s := m.Status(context.Background()); s.Ready || !strings.Contains(s.Message, "whereabouts") {
		t.Errorf("without the IPAM program: %+v", s)
	}
}
