//go:build root

package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// devices stand for a CDI registry: each is what it does to a spec.
type devices map[string]func(*specs.Spec)

func (d devices) InjectDevices(spec *specs.Spec, names ...string) ([]string, error) {
	for _, n := range names {
		d[n](spec)
	}
	return nil, nil
}

// TestHooksOfDevices runs the hooks that CDI devices bring: programs of the node, linked to its libraries,
// that change the container's files through root.path.
func TestHooksOfDevices(t *testing.T) {
	r := newRig(t)
	seen := filepath.Join(r.dir, "seen")
	sh := func(text string) []specs.Hook {
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", text}, Env: []string{"PATH=/usr/bin:/bin"}}}
	}
	all := devices{
		"good": func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{
				CreateContainer: sh("cat >" + seen + `; bundle=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/' ` + seen + `)
root=$(sed -n 's/.*"path": *"\(.*rootfs\)".*/\1/p' $bundle/config.json); echo made >$root/made; ls $root/proc/self/status >>` + seen),
				StartContainer: sh("cat >/state; echo here >>/state"),
			}
		},
		"bad":  func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateContainer: sh("echo no such device >&2; exit 7")} },
		"late": func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: sh("true")} },
	}
	r.close()
	r.cdi = all
	r.open()
	pod := r.runPod(r.podConfig("a"))
	make := func(name, device string) (string, error) {
		config := &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: r.ref}, Command: []string{"sleep", "1000"}, LogPath: name + ".log",
			Linux:      &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: r.podConfig("a").Linux.SecurityContext.NamespaceOptions}},
			CDIDevices: []*cri.CDIDevice{{Name: device}},
		}
		return r.mgr.CreateContainer(r.ctx, pod, config, r.podConfig("a"))
	}
	id, err := make("good", "good")
	if err == nil {
		err = r.mgr.StartContainer(r.ctx, id)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := r.exec(id, "cat /made /state; mount | wc -l"); !strings.HasPrefix(got, "made\n{") || !strings.Contains(got, `"status":"created"`) || !strings.Contains(got, "here\n") {
		t.Errorf("the container sees %s", got)
	}
	if text, err := os.ReadFile(seen); err != nil || !strings.Contains(string(text), `"id":"`+id+`"`) || !strings.Contains(string(text), "/proc/self/status") {
		t.Errorf("the hook saw %s, %v", text, err)
	}
	if id, err = make("bad", "bad"); err != nil {
		t.Fatal(err)
	}
	if err := r.mgr.StartContainer(r.ctx, id); err == nil || !strings.Contains(err.Error(), "error running createContainer hook #0: exit status 7, stdout: , stderr: no such device") {
		t.Errorf("a hook that fails: %v", err)
	}
	if _, err = make("late", "late"); !errs.Is(err, errs.Unsupported) {
		t.Errorf("a poststop hook: %v", err)
	}
	r.clean()
	r.removeAll()
}
