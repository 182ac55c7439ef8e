package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// apiVersion is the version of the CRI that is spoken, v1, as the semantic version that the CRI asks for.
const apiVersion = "1.0.0"

// Version names the runtime.
func (s *Server) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{
		Version: "0.1.0", RuntimeName: Name, RuntimeVersion: s.cfg.Version, RuntimeApiVersion: apiVersion,
	}, nil
}

// Status reports the conditions a kubelet makes the node's of, and what the runtime can do.
func (s *Server) Status(ctx context.Context, req *cri.StatusRequest) (*cri.StatusResponse, error) {
	net := s.cfg.Networks.Status(ctx)
	resp := &cri.StatusResponse{
		Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
			{Type: cri.RuntimeReady, Status: true},
			{Type: cri.NetworkReady, Status: net.Ready, Reason: net.Reason, Message: net.Message},
		}},
		RuntimeHandlers: s.handlers(),
		Features: &cri.RuntimeFeatures{
			SupplementalGroupsPolicy:  s.cfg.Features.SupplementalGroupsPolicy,
			UserNamespacesHostNetwork: s.cfg.Features.UserNamespacesHostNet,
			MountOptions:              s.cfg.Features.MountOptions,
		},
	}
	if !req.GetVerbose() || s.cfg.Info == nil {
		return resp, nil
	}
	var err error
	resp.Info, err = encodeInfo(s.cfg.Info())
	return resp, err
}

func (s *Server) handlers() []*cri.RuntimeHandler {
	out := make([]*cri.RuntimeHandler, 0, 1+len(s.cfg.Handlers))
	for _, name := range append([]string{""}, s.cfg.Handlers...) {
		out = append(out, &cri.RuntimeHandler{Name: name, Features: &cri.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: s.cfg.Features.RecursiveReadOnlyMounts,
			UserNamespaces:          s.cfg.Features.UserNamespaces,
		}})
	}
	return out
}

// checkHandler refuses runtime handlers that Status does not list.
func (s *Server) checkHandler(name string) error {
	if name == "" || slices.Contains(s.cfg.Handlers, name) {
		return nil
	}
	return errs.New(errs.Invalid, "runtime_handler (%q): no such handler is configured. Add it to runtime_handlers in the configuration, or use another.", name)
}

// checkImageSpec refuses an image spec that names nothing, or a runtime handler that Status does not list. field is where
// the request has it.
func (s *Server) checkImageSpec(field string, spec *cri.ImageSpec) error {
	if err := required(field+".image", spec.GetImage()); err != nil {
		return err
	}
	if err := s.checkHandler(spec.GetRuntimeHandler()); err != nil {
		return errs.New(errs.Invalid, "%s.%w", field, err)
	}
	return nil
}

// RuntimeConfig tells a kubelet which cgroup driver to use. It never changes while the server runs.
func (s *Server) RuntimeConfig(context.Context, *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	driver := cri.CgroupDriver_CGROUPFS
	if s.cfg.Systemd {
		driver = cri.CgroupDriver_SYSTEMD
	}
	return &cri.RuntimeConfigResponse{Linux: &cri.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the node's pod ranges. Addresses come from the CNI configuration, so that the
// ranges are only checked.
func (s *Server) UpdateRuntimeConfig(_ context.Context, req *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	for cidr := range strings.SplitSeq(req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(), ",") {
		if cidr = strings.TrimSpace(cidr); cidr == "" {
			continue
		}
		if _, err := netip.ParsePrefix(cidr); err != nil {
			return nil, errs.New(errs.Invalid, "runtime_config.network_config.pod_cidr (%q): not an address range: %w", cidr, err)
		}
	}
	return &cri.UpdateRuntimeConfigResponse{}, nil
}

// encodeInfo turns the values of a verbose answer into the JSON texts that the CRI asks for.
func encodeInfo(values map[string]any) (map[string]string, error) {
	out := make(map[string]string, len(values))
	for k, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode info %s: %w", k, err)
		}
		out[k] = strings.ToValidUTF8(string(b), "\uFFFD")
	}
	return out, nil
}
