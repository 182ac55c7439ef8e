// Package profile holds the default seccomp profile: the data of github.com/moby/profiles, resolved for
// what a container may do. It stands apart from the compiler since the data's package decodes JSON, which
// cri-runtime has no use for.
package profile

import (
	"fmt"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Default returns the profile for a container with the given bounding capabilities ("CAP_SYS_ADMIN" …) on
// this kernel and architecture. The result is the caller's own.
func Default(bounding []string) (*specs.LinuxSeccomp, error) {
	p, err := seccomp.GetDefaultProfile(spec(bounding))
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	return p, nil
}

// Load reads a profile of a file: an OCI seccomp section, or the superset of it that Docker defined, with
// archMap and rules that depend on capabilities, architecture and kernel.
func Load(body []byte, bounding []string) (*specs.LinuxSeccomp, error) {
	p, err := seccomp.LoadProfile(string(body), spec(bounding))
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return p, nil
}

func spec(bounding []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: bounding}}}
}
