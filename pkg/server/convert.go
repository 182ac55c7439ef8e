package server

import (
	"encoding/json"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/oci"
	"github.com/cri-server/cri-server/pkg/sandbox"
)

func now() int64 { return time.Now().UnixNano() }

// nanos converts a time of a record; the zero time is 0, not the year 1754.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func podState(p *sandbox.Pod) cri.PodSandboxState {
	if p.Ready {
		return cri.PodSandboxState_SANDBOX_READY
	}
	return cri.PodSandboxState_SANDBOX_NOTREADY
}

func podItem(p *sandbox.Pod) *cri.PodSandbox {
	return &cri.PodSandbox{
		Id: p.ID, Metadata: p.Config.GetMetadata(), State: podState(p), CreatedAt: nanos(p.CreatedAt),
		Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler,
	}
}

func podStatus(p *sandbox.Pod) *cri.PodSandboxStatus {
	st := &cri.PodSandboxStatus{
		Id: p.ID, Metadata: p.Config.GetMetadata(), State: podState(p), CreatedAt: nanos(p.CreatedAt),
		Network: &cri.PodSandboxNetworkStatus{},
		Linux:   &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
		Labels:  p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler,
	}
	if st.Linux.Namespaces.Options == nil {
		st.Linux.Namespaces.Options = &cri.NamespaceOption{}
	}
	for i, ip := range p.Network.IPs {
		if i == 0 {
			st.Network.Ip = ip
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &cri.PodIP{Ip: ip})
	}
	return st
}

// podInfo is the verbose part of a pod's status. Its runtimeSpec is where tools look for the network namespace.
func podInfo(p *sandbox.Pod) map[string]any {
	spec := specs.Spec{Version: specs.Version, Hostname: p.Config.GetHostname(), Linux: &specs.Linux{
		CgroupsPath: p.CgroupPath, Namespaces: p.Namespaces(), Sysctl: p.Config.GetLinux().GetSysctls(),
	}}
	return map[string]any{"info": struct {
		Pid         int                   `json:"pid"`
		ShimPid     int                   `json:"shimPid"`
		Message     string                `json:"message,omitempty"`
		CgroupPath  string                `json:"cgroupPath,omitempty"`
		IPs         []string              `json:"ips,omitempty"`
		Config      *cri.PodSandboxConfig `json:"config"`
		RuntimeSpec specs.Spec            `json:"runtimeSpec"`
	}{p.HolderPid, p.ShimPid, p.Message, p.CgroupPath, p.Network.IPs, p.Config, spec}}
}

func containerState(c *sandbox.Container) cri.ContainerState {
	switch c.State() {
	case sandbox.Created:
		return cri.ContainerState_CONTAINER_CREATED
	case sandbox.Running:
		return cri.ContainerState_CONTAINER_RUNNING
	case sandbox.Exited:
		return cri.ContainerState_CONTAINER_EXITED
	default:
		return cri.ContainerState_CONTAINER_UNKNOWN
	}
}

// stateName is the state as a person reads it: "created", "running", "exited".
func stateName(c *sandbox.Container) string {
	return strings.ToLower(strings.TrimPrefix(containerState(c).String(), "CONTAINER_"))
}

// imageSpec is the image a container was asked for, under the name the user wrote.
func imageSpec(c *sandbox.Container) *cri.ImageSpec {
	spec := c.Config.GetImage()
	if name := spec.GetUserSpecifiedImage(); name != "" && name != spec.GetImage() {
		spec = proto.CloneOf(spec)
		spec.Image = name
	}
	return spec
}

func containerItem(c *sandbox.Container) *cri.Container {
	return &cri.Container{
		Id: c.ID, PodSandboxId: c.PodID, Metadata: c.Config.GetMetadata(), Image: imageSpec(c), ImageRef: c.ImageRef,
		State: containerState(c), CreatedAt: nanos(c.CreatedAt),
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(), ImageId: c.ImageID,
	}
}

// containerStatus converts a container. Where it was created by an image id and nobody wrote a name, the
// first tag of the image stands in for it.
func (s *Server) containerStatus(c *sandbox.Container) *cri.ContainerStatus {
	spec := imageSpec(c)
	if spec.GetUserSpecifiedImage() == "" && spec.GetImage() == c.ImageID {
		if img, err := s.cfg.Images.Get(c.ImageID); err == nil && len(img.RepoTags) > 0 {
			spec = proto.CloneOf(spec)
			spec.Image = img.RepoTags[0]
		}
	}
	return &cri.ContainerStatus{
		Id: c.ID, Metadata: c.Config.GetMetadata(), State: containerState(c),
		CreatedAt: nanos(c.CreatedAt), StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt),
		ExitCode: c.ExitCode, Reason: c.Reason, Message: strings.ToValidUTF8(c.Message, "\uFFFD"),
		Image: spec, ImageRef: c.ImageRef, ImageId: c.ImageID,
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		Mounts: c.Mounts, LogPath: c.LogPath, User: c.User, StopSignal: oci.SignalEnum(c.StopSignal),
		Resources: &cri.ContainerResources{Linux: c.Resources},
	}
}

// containerInfo is the verbose part of a container's status.
func (s *Server) containerInfo(c *sandbox.Container) map[string]any {
	info := struct {
		SandboxID   string               `json:"sandboxID"`
		Pid         int                  `json:"pid"`
		CgroupPath  string               `json:"cgroupPath,omitempty"`
		Config      *cri.ContainerConfig `json:"config"`
		RuntimeSpec json.RawMessage      `json:"runtimeSpec,omitempty"`
	}{c.PodID, c.Pid, c.CgroupPath, c.Config, nil}
	if s.cfg.Spec != nil {
		if spec, err := s.cfg.Spec(c); err == nil && json.Valid(spec) {
			info.RuntimeSpec = spec
		}
	}
	return map[string]any{"info": info}
}
