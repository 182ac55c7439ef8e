package sandbox

import (
	"testing"
	"time"

	"github.com/cri-server/cri-server/pkg/errs"
)

func running(t *testing.T) (*world, string) {
	t.Helper()
	w := newWorld(t)
	id := w.create(w.runPod("a"), "c")
	w.start(id)
	return w, id
}

func TestExecSyncDoesNotWaitForChildren(t *testing.T) {
	w, id := running(t)
	out, _, code, err := w.mgr.ExecSync(w.ctx, id, []string{"print", "a", "b"}, 0)
	if err != nil || code != 0 || string(out) != "a b\n" {
		t.Fatalf("%q, %d, %v", out, code, err)
	}
}

func TestExecSyncIsBounded(t *testing.T) {
	w, id := running(t)
	out, _, _, err := w.mgr.ExecSync(w.ctx, id, []string{"flood"}, 0)
	if err != nil || len(out) != execSyncLimit {
		t.Fatalf("%d bytes, %v", len(out), err)
	}
}

func TestExecSyncTimesOut(t *testing.T) {
	w, id := running(t)
	if _, _, _, err := w.mgr.ExecSync(w.ctx, id, []string{"hang"}, time.Millisecond); !errs.Is(err, errs.Timeout) {
		t.Fatal(err)
	}
}

func TestExecNeedsACommand(t *testing.T) {
	w, id := running(t)
	if _, _, _, err := w.mgr.ExecSync(w.ctx, id, nil, 0); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}
