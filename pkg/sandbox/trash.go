package sandbox

import (
	"os"
	"path/filepath"
	"sync"
)

// trashman frees what discard moved away, in the background, since removing a tree is slow on some filesystems.
type trashman struct {
	mu   sync.Mutex
	busy sync.WaitGroup
	next chan struct{} // one removal at a time
}

func newTrashman() *trashman { return &trashman{next: make(chan struct{}, 1)} }

func (t *trashman) add(slot string) {
	t.mu.Lock()
	t.busy.Add(1)
	t.mu.Unlock()
	go func() {
		defer t.busy.Done()
		t.next <- struct{}{}
		defer func() { <-t.next }()
		_ = os.RemoveAll(slot) // what stays is swept at the next start and found by Check
	}()
}

// sweep adds what an earlier process left in the trash directory dir.
func (t *trashman) sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		t.add(filepath.Join(dir, e.Name()))
	}
}

// wait returns when everything added so far is gone.
func (t *trashman) wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy.Wait()
}
