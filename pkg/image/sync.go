package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// keyLock serialises work on one key. Its zero value is ready.
type keyLock struct {
	mu   sync.Mutex
	held map[string]*keyHolder
}

type keyHolder struct {
	token chan struct{} // holds one token while nobody works
	users int
}

// lock waits for the key or the end of ctx.
func (k *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyHolder{}
	}
	h := k.held[key]
	if h == nil {
		h = &keyHolder{token: make(chan struct{}, 1)}
		h.token <- struct{}{}
		k.held[key] = h
	}
	h.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		if h.users--; h.users == 0 {
			delete(k.held, key)
		}
		k.mu.Unlock()
	}
	select {
	case <-h.token:
		return func() { h.token <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// syncer flushes a filesystem for many callers at once: who comes while a flush runs shares the next one.
type syncer struct {
	run  sync.Mutex // held by who flushes
	mu   sync.Mutex
	next *syncCall
}

type syncCall struct {
	once sync.Once
	err  error
}

// sync returns when everything written before the call to the filesystem of dir is on disk.
func (s *syncer) sync(dir string) error {
	s.mu.Lock()
	if s.next == nil {
		s.next = new(syncCall)
	}
	c := s.next
	s.mu.Unlock()
	s.run.Lock()
	defer s.run.Unlock()
	c.once.Do(func() {
		s.mu.Lock()
		s.next = nil // who comes from now on may have written after syncfs began
		s.mu.Unlock()
		c.err = syncfs(dir)
	})
	return c.err
}

func syncfs(dir string) error {
	d, err := os.Open(dir) //nolint:forbidigo // our own state directory
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("flush %s: %w", dir, err)
	}
	return nil
}

// trashCan removes trees behind the callers' backs: a rename takes them away at once.
type trashCan struct {
	dir     string
	mu      sync.Mutex
	running bool
	again   bool
	wg      sync.WaitGroup
}

// put moves path into the can; kick removes what is in it. A missing path is nil.
func (t *trashCan) put(path string) error {
	// One rename to a name that nobody else takes: a slot made first could be emptied in between.
	err := os.Rename(path, filepath.Join(t.dir, rand.Text()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// kick empties the can in the background.
func (t *trashCan) kick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running {
		t.again = true
		return
	}
	t.running = true
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		for {
			entries, _ := readDir(t.dir)
			for _, e := range entries {
				_ = os.RemoveAll(t.dir + "/" + e.Name()) // what stays is found by the next kick, or Open, or Check
			}
			t.mu.Lock()
			if !t.again {
				t.running = false
				t.mu.Unlock()
				return
			}
			t.again = false
			t.mu.Unlock()
		}
	}()
}

func (t *trashCan) wait() { t.wg.Wait() }
