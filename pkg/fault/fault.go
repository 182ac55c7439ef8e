// Package fault lets a test stop the program at a named place.
//
// The names are those of the steps of the step tables ("RunPodSandbox/network"), of their undo
// ("teardown/network") and a few finer points. A crash sweep enumerates the tables, arms one name at a
// time and restarts what died. With nothing armed, At costs one atomic load.
package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Env is the environment variable that arms one fault in a process: "NAME=kill", "NAME=error" or, for the
// n-th time the place is passed, "NAME@n=kill".
const Env = "CRI_SERVER_FAULT"

type armed struct {
	name string
	left int
	do   func() error
}

var (
	mu      sync.Mutex
	current atomic.Pointer[armed]
)

// ErrInjected is what a place armed with "error" returns.
type ErrInjected struct{ Name string }

func (e *ErrInjected) Error() string { return "injected fault at " + e.Name }

// At marks a place that a test can stop at. It returns nil unless the place is armed, and does not return
// where it is armed to die.
func At(name string) error {
	if current.Load() == nil {
		return nil
	}
	return hit(name)
}

func hit(name string) error {
	mu.Lock()
	a := current.Load()
	if a == nil || a.name != name {
		mu.Unlock()
		return nil
	}
	a.left--
	fire := a.left == 0
	if fire {
		current.Store(nil)
	}
	mu.Unlock()
	if !fire {
		return nil
	}
	return a.do()
}

// Arm makes the n-th passing (1 is the next) of the named place call do, once; what do returns is what At
// returns. It replaces whatever was armed. Tests with fakes panic or return an error from do.
func Arm(name string, n int, do func() error) {
	mu.Lock()
	defer mu.Unlock()
	current.Store(&armed{name, n, do})
}

// Disarm removes what is armed.
func Disarm() {
	mu.Lock()
	defer mu.Unlock()
	current.Store(nil)
}

// FromEnv arms what the environment variable Env names. A process calls it once at start; a malformed
// value is an error, since a sweep that arms nothing proves nothing.
func FromEnv() error {
	v := os.Getenv(Env)
	if v == "" {
		return nil
	}
	place, action, ok := strings.Cut(v, "=")
	name, nth, counted := strings.Cut(place, "@")
	n := 1
	if counted {
		var err error
		if n, err = strconv.Atoi(nth); err != nil || n < 1 {
			return fmt.Errorf("%s=%q: the count after @ is not a positive number", Env, v)
		}
	}
	switch {
	case !ok || name == "":
		return fmt.Errorf("%s=%q: want NAME=kill, NAME=error or NAME@n=kill", Env, v)
	case action == "kill":
		Arm(name, n, func() error {
			p, _ := os.FindProcess(os.Getpid())
			_ = p.Kill()
			select {} // SIGKILL is on its way; nothing after the fault may run
		})
	case action == "error":
		Arm(name, n, func() error { return &ErrInjected{name} })
	default:
		return fmt.Errorf("%s=%q: unknown action %q, want kill or error", Env, v, action)
	}
	return nil
}
