package errs

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestKindOf(t *testing.T) {
	cause := errors.New("cause")
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{nil, Unknown},
		{cause, Unknown},
		{New(NotFound, "pod %q", "a"), NotFound},
		{fmt.Errorf("outer: %w", New(Conflict, "inner")), Conflict},
		{With(Invalid, New(NotFound, "inner")), Invalid},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), Timeout},
		{fmt.Errorf("x: %w", context.Canceled), Canceled},
		{With(Unavailable, context.Canceled), Unavailable},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
	if With(Invalid, nil) != nil {
		t.Error("With(Invalid, nil) is not nil")
	}
	if !errors.Is(New(Invalid, "a: %w", cause), cause) {
		t.Error("New does not wrap its cause")
	}
	if Is(nil, Unknown) {
		t.Error("Is(nil, Unknown) is true")
	}
	if Kind(200).String() != "kind(200)" || Exhausted.String() != "exhausted" {
		t.Error("Kind.String")
	}
}
