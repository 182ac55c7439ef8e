package sandbox

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFullDiskEndsWhatIsThere(t *testing.T) {
	w := newWorld(t)
	pod, err := w.mgr.RunPod(w.ctx, podConfig("a"), "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.mgr.CreateContainer(w.ctx, pod, containerConfig("c"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.mgr.StartContainer(w.ctx, c); err != nil {
		t.Fatal(err)
	}
	full := true
	w.mgr.write = func(ch change) error { // of records alone: what goes needs no space
		if _, err := os.Lstat(w.mgr.dirs.ballast()); full && err == nil && (ch.pod != nil || ch.container != nil) {
			return fmt.Errorf("write record: %w", unix.ENOSPC)
		}
		return w.mgr.writeRecord(ch)
	}
	if _, err := w.mgr.RunPod(w.ctx, podConfig("b"), ""); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a new pod on a full disk: %v", err)
	}
	w.clean() // of what the failed pod made before its record
	if err := w.mgr.RemovePod(w.ctx, pod); err != nil {
		t.Errorf("remove on a full disk: %v", err)
	}
	w.clean()
	full = false
	if st, err := os.Lstat(w.mgr.dirs.ballast()); err != nil || st.Size() != ballastSize {
		t.Errorf("the ballast was not taken again: %v", err)
	}
	if _, err := w.mgr.RunPod(w.ctx, podConfig("b"), ""); err != nil {
		t.Error(err)
	}
}
