package fault

import (
	"errors"
	"testing"
)

func TestArm(t *testing.T) {
	t.Cleanup(Disarm)
	boom := errors.New("boom")
	Arm("a", 2, func() error { return boom })
	if err := At("b"); err != nil {
		t.Fatal(err)
	}
	if err := At("a"); err != nil {
		t.Fatalf("first pass fired: %v", err)
	}
	if err := At("a"); !errors.Is(err, boom) {
		t.Fatalf("second pass: %v, want boom", err)
	}
	if err := At("a"); err != nil {
		t.Fatalf("third pass fired again: %v", err)
	}
}

func TestFromEnv(t *testing.T) {
	t.Cleanup(Disarm)
	t.Setenv(Env, "x@2=error")
	if err := FromEnv(); err != nil {
		t.Fatal(err)
	}
	if err := At("x"); err != nil {
		t.Fatal(err)
	}
	var inj *ErrInjected
	if err := At("x"); !errors.As(err, &inj) || inj.Name != "x" {
		t.Fatalf("got %v", err)
	}
	for _, bad := range []string{"x", "=kill", "x=burn", "x@0=kill", "x@y=kill"} {
		t.Setenv(Env, bad)
		if FromEnv() == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
