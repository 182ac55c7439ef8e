package sandbox

import (
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

// TestSystemdPlaces has pods and containers be where systemd's names put them.
func TestSystemdPlaces(t *testing.T) {
	w := newWorld(t)
	w.mgr.Close()
	w.cfg.Systemd = true
	w.open()
	for asked, parent := range map[string]string{
		"kubepods-burstable-pod1.slice": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
		"/a.slice/a-b.slice":            "/a.slice/a-b.slice",
		"":                              "/test.slice/test-pod",
	} {
		config := podConfig("p")
		config.Linux.CgroupParent = asked
		id, err := w.mgr.RunPod(w.ctx, config, "")
		if err != nil {
			t.Fatal(err)
		}
		if asked == "" {
			parent += id + ".slice"
		}
		p, err := w.mgr.Pod(id)
		if err != nil {
			t.Fatal(err)
		}
		if want := parent + "/cri-" + id + ".scope"; p.CgroupPath != want {
			t.Errorf("%q: the holder is in %s, want %s", asked, p.CgroupPath, want)
		}
		c := w.create(id, "c")
		w.start(c)
		if want := parent + "/cri-" + c + ".scope"; w.container(c).CgroupPath != want || !w.m.CgroupExists(want) {
			t.Errorf("%q: the container is in %s, want %s", asked, w.container(c).CgroupPath, want)
		}
		w.clean()
		w.restart()
		w.clean()
		if err := w.mgr.RemovePod(w.ctx, id); err != nil {
			t.Error(err)
		}
		w.clean()
	}
	for _, asked := range []string{"/kubepods/pod1", "a--b.slice", ".slice", "a.scope"} {
		config := podConfig("bad")
		config.Linux.CgroupParent = asked
		if id, err := w.mgr.RunPod(w.ctx, config, ""); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "cgroup_parent") {
			t.Errorf("%q: %s, %v", asked, id, err)
		}
	}
	w.clean()
}

// TestDriverChange restarts the server with another driver: pods stay where they are, and so do their containers.
func TestDriverChange(t *testing.T) {
	w := newWorld(t)
	old := w.runPod("old")
	w.cfg.Systemd = true
	w.restart()
	c := w.create(old, "c")
	w.start(c)
	if path := w.container(c).CgroupPath; !strings.HasSuffix(path, "/"+c) {
		t.Errorf("a container of an old pod is in %s", path)
	}
	config := podConfig("new")
	config.Annotations = map[string]string{"org.systemd.property.ExecStartPre": "'/bin/true'"} // nobody reads it
	id, err := w.mgr.RunPod(w.ctx, config, "")
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Systemd = false
	w.restart()
	c = w.create(id, "c")
	w.start(c)
	if path := w.container(c).CgroupPath; !strings.HasSuffix(path, "/cri-"+c+".scope") {
		t.Errorf("a container of a pod with scopes is in %s", path)
	}
	w.clean()
	for _, id := range []string{old, id} {
		if err := w.mgr.RemovePod(w.ctx, id); err != nil {
			t.Error(err)
		}
	}
	w.clean()
}

func TestSlice(t *testing.T) {
	for root, want := range map[string]string{"/cri-server": "/cri_server.slice", "/cri-server-1a": "/cri_server_1a.slice", "a/b-c/": "/a_b_c.slice"} {
		if got := Slice(root); got != want {
			t.Errorf("%s: %s, want %s", root, got, want)
		}
	}
}
