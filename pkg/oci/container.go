package oci

import (
	"context"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// translation is one run of Container: the input, the spec as far as it is made, and what later steps need
// of earlier ones.
type translation struct {
	*ContainerInput
	sc   *cri.LinuxContainerSecurityContext // never nil
	spec *specs.Spec
	out  *ContainerOutput
	user user
	pod  podFacts
}

// Container translates one container. Each step owns some fields of the config and of the spec; the order
// matters only where a step says so.
func Container(ctx context.Context, in *ContainerInput) (*ContainerOutput, error) {
	t := newTranslation(in)
	for _, step := range []func() error{
		t.checkConfig,
		t.namespaces,
		t.identity, // reads the account files
		t.process,
		t.capabilities,
		t.seLinux, // before mounts, which are labelled
		t.mounts,
		t.devices,
		t.resources,
		t.confinement, // seccomp rules depend on the capabilities
		t.paths,
		t.stopSignal,
		t.cdi, // last: edits the finished spec
	} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := step(); err != nil {
			return nil, err
		}
	}
	return t.out, nil
}

func newTranslation(in *ContainerInput) *translation {
	in = in.withDefaults()
	spec := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Cwd: "/"},
		Root:    &specs.Root{},
		Linux:   &specs.Linux{CgroupsPath: in.CgroupsPath, Resources: &specs.LinuxResources{}},
	}
	sc := in.Config.GetLinux().GetSecurityContext()
	if sc == nil {
		sc = &cri.LinuxContainerSecurityContext{}
	}
	return &translation{ContainerInput: in, sc: sc, spec: spec, out: &ContainerOutput{Spec: spec}, pod: factsOf(in.Pod)}
}

// withDefaults fills in what a caller left nil, in a copy.
func (in *ContainerInput) withDefaults() *ContainerInput {
	c := *in
	if c.Image == nil {
		c.Image = &ocispec.ImageConfig{}
	}
	if c.Defaults == nil {
		c.Defaults = NewDefaults()
	}
	if c.Host == nil {
		c.Host = ProbeHost()
	}
	return &c
}

// checkConfig refuses what no step would look at.
func (t *translation) checkConfig() error {
	c := t.Config
	if c == nil {
		return errs.New(errs.Invalid, "config: missing")
	}
	if c.GetMetadata().GetName() == "" {
		return errs.New(errs.Invalid, "config.metadata.name: empty")
	}
	if t.sc.GetPrivileged() && !t.pod.privileged {
		return errs.New(errs.Invalid, "security_context.privileged: true in a pod sandbox that was not made for privileged containers. Set privileged in the sandbox's security context too")
	}
	return checkLogPath("log_path", c.GetLogPath())
}

// checkLogPath refuses log paths that could leave the pod's log directory.
func checkLogPath(field, path string) error {
	if path == "" {
		return nil
	}
	if err := checkText(field, path); err != nil {
		return err
	}
	for _, part := range strings.Split(path, "/") {
		if part == ".." {
			return errs.New(errs.Invalid, "%s: %q climbs out of the log directory", field, path)
		}
	}
	return nil
}

// checkText refuses strings that cannot be handed to the kernel whole.
func checkText(field, value string) error {
	if strings.IndexByte(value, 0) >= 0 {
		return errs.New(errs.Invalid, "%s: %q contains a NUL byte", field, value)
	}
	if len(value) > maxText {
		return errs.New(errs.Invalid, "%s: %d bytes are more than the %d the kernel takes in one string", field, len(value), maxText)
	}
	return nil
}

// maxText is MAX_ARG_STRLEN of the kernel, 32 pages of 4 KiB.
const maxText = 128 << 10

func indexed(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }
