package sys

import (
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnThreadIsNeverTheMainThread(t *testing.T) {
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := OnThread(func() error {
				if unix.Gettid() == unix.Getpid() {
					t.Error("on the main thread")
				}
				return boom
			}); !errors.Is(err, boom) {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
}
