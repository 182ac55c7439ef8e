package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestTornAndUnknownRecords(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	w.start(w.create(pod, "c"))
	w.mgr.Close()
	path := w.mgr.dirs.podRecord(pod)
	if err := os.WriteFile(path, []byte(`{"kind":"pod","version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(w.ctx, w.cfg, images{w.m}, nets{w.m}, w.m); !errs.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "99") {
		t.Fatalf("a record of the future: %v", err)
	}
	if err := os.WriteFile(path, []byte(`{"kind":`), 0o600); err != nil {
		t.Fatal(err)
	}
	w.open()
	if len(w.mgr.Pods())+len(w.mgr.Containers()) != 0 {
		t.Error("a torn pod is listed")
	}
	kept := filepath.Join(w.cfg.Root, "torn", "pod-"+pod+".json")
	for range 2 { // and after one more start
		problems, err := w.mgr.Check(w.ctx)
		if err != nil || len(problems) != 1 || problems[0].Kind != Note || problems[0].Subject != kept || !strings.Contains(problems[0].Detail, "Remove the file") {
			t.Errorf("check: %v, %v; want a note of the torn record alone", problems, err)
		}
		w.restart()
	}
	if err := os.Remove(kept); err != nil {
		t.Error(err)
	}
	w.clean()
}

// TestTornUnderAServer is a disk that loses records while the server that wrote them goes on.
func TestTornUnderAServer(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	c, gone := w.create(pod, "c"), w.create(pod, "gone")
	w.start(c)
	path := w.mgr.dirs.container(pod, c)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.mgr.dirs.container(pod, gone)); err != nil {
		t.Fatal(err)
	}
	says := func(problems []Problem, err error) string {
		if err != nil {
			t.Error(err)
		}
		var out []string
		for _, p := range problems {
			out = append(out, p.Kind+" "+p.Subject+" "+p.Detail)
		}
		return strings.Join(out, "\n")
	}
	if got := says(w.mgr.Check(w.ctx)); !strings.Contains(got, "record "+path+" it is torn on the disk") || !strings.Contains(got, "Remove the pod") || !strings.Contains(got, gone) {
		t.Errorf("check: %s", got)
	}
	w.mgr.Close()
	if got := says(Audit(w.ctx, w.cfg, images{w.m}, nets{w.m}, w.m)); !strings.Contains(got, "next start of the server ends it") {
		t.Errorf("audit without a server: %s", got)
	}
	w.open()
	if got := w.mgr.Containers(); len(got) != 0 || w.m.running(c) {
		t.Errorf("containers of lost records live on: %v", got)
	}
	if got := says(w.mgr.Check(w.ctx)); !strings.HasPrefix(got, Note) || strings.Contains(got, "\n") {
		t.Errorf("check after a start: %s", got)
	}
}

// TestTornRecordsAreKeptUpToANumber: a disk that tears much fills nothing.
func TestTornRecordsAreKeptUpToANumber(t *testing.T) {
	w := newWorld(t)
	for i := range maxTorn + 3 {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.mgr.keepTorn(path, fmt.Sprintf("pod-%02d", i)); err != nil {
			t.Fatal(err)
		}
	}
	kept := w.mgr.tornRecords()
	if len(kept) != maxTorn || filepath.Base(kept[maxTorn-1]) != fmt.Sprintf("pod-%02d.json", maxTorn+2) {
		t.Errorf("kept %q", kept)
	}
}

// TestLostRecord is a pod whose record the disk has lost whole, and the rest not.
func TestLostRecord(t *testing.T) {
	w := newWorld(t)
	pod := w.runPod("a")
	w.start(w.create(pod, "c"))
	w.mgr.Close()
	if err := os.Remove(w.mgr.dirs.podRecord(pod)); err != nil {
		t.Fatal(err)
	}
	w.open()
	w.clean()
}
