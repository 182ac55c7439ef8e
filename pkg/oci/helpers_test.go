package oci

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

func mkfifo(path string) error { return unix.Mkfifo(path, 0o644) }

// usernsInput is input in a pod with a user namespace of 65536 IDs.
func usernsInput(t testing.TB) *ContainerInput {
	t.Helper()
	in := input(t)
	mapping := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
	in.podSecurity().NamespaceOptions.UsernsOptions = &cri.UserNamespace{Uids: mapping, Gids: mapping}
	in.Namespaces[specs.UserNamespace] = "/proc/7/ns/user"
	return in
}

// refusal is a change that makes an input wrong, and what the error must say.
type refusal struct {
	change func(*ContainerInput)
	kind   errs.Kind
	texts  []string
}

func checkRefusals(t *testing.T, cases map[string]refusal) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			c.change(in)
			_, err := Container(t.Context(), in)
			wantError(t, err, c.kind, c.texts...)
		})
	}
}

func hasMount(spec *specs.Spec, dest string) *specs.Mount {
	for i := range spec.Mounts {
		if spec.Mounts[i].Destination == dest {
			return &spec.Mounts[i]
		}
	}
	return nil
}
