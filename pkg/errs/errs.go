// Package errs names the ways a request can fail.
//
// A kind is attached once, where it is known, with New; everything between there and the gRPC edge wraps
// with fmt.Errorf("…: %w", err). pkg/server maps kinds to gRPC codes in one interceptor, and pkg/shim
// carries a kind across its wire. The package imports only the standard library, since the shim links it.
package errs

import (
	"context"
	"errors"
	"fmt"
)

// Kind is the way a request failed. The zero Kind is Unknown. The numbers travel on the shim wire, so they
// are never reused for another meaning.
type Kind uint8

// The kinds, with the gRPC code each becomes.
const (
	Unknown     Kind = 0 // Unknown: a failure nobody classified
	NotFound    Kind = 1 // NotFound: the named object does not exist
	Exists      Kind = 2 // AlreadyExists: the name is taken
	Invalid     Kind = 3 // InvalidArgument: a field is malformed or contradicts another
	Conflict    Kind = 4 // FailedPrecondition: the object is in a state that forbids the call
	Unavailable Kind = 5 // Unavailable: a peer we need is away; the call may be retried
	Unsupported Kind = 6 // Unimplemented: this build or kernel cannot do it
	Timeout     Kind = 7 // DeadlineExceeded: a time limit ran out
	Canceled    Kind = 8 // Canceled: the caller went away
	Exhausted   Kind = 9 // ResourceExhausted: a limit of ours or the kernel's was hit
)

var names = [...]string{"unknown", "not found", "already exists", "invalid", "conflict", "unavailable", "unsupported", "timeout", "canceled", "exhausted"}

// String names the kind for logs and metric labels.
func (k Kind) String() string {
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

type kinded struct {
	kind Kind
	err  error
}

func (e *kinded) Error() string { return e.err.Error() }
func (e *kinded) Unwrap() error { return e.err }

// New returns an error of the given kind. The format is fmt.Errorf's, %w included, and reads
// "what (subject): cause. next step."
func New(kind Kind, format string, args ...any) error {
	return &kinded{kind, fmt.Errorf(format, args...)}
}

// With gives err a kind, or another one: the outermost kind of a chain wins. With(k, nil) is nil.
func With(kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &kinded{kind, err}
}

// KindOf returns the outermost kind in err's chain. Errors without one are Timeout or Canceled when they
// wrap the context errors, and Unknown otherwise; KindOf(nil) is Unknown.
func KindOf(err error) Kind {
	var k *kinded
	switch {
	case errors.As(err, &k):
		return k.kind
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Canceled
	}
	return Unknown
}

// Is reports whether err is of the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
