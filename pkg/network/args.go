package network

import (
	"math"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/cri-server/cri-server/pkg/errs"
)

// The keys of capabilities that containerd and CRI-O pass, and the annotations of pods that ask for a rate.
const (
	capPorts       = "portMappings"
	capBandwidth   = "bandwidth"
	capDNS         = "dns"
	capCgroup      = "cgroupPath"
	capAnnotations = "io.kubernetes.cri.pod-annotations"

	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

func cniArgs(pod *Pod) [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", pod.Namespace},
		{"K8S_POD_NAME", pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
		{"K8S_POD_UID", pod.UID},
	}
}

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"` // bits per second
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

type dns struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// runtimeConf is what one pod tells the plugins. libcni passes a capability only to the plugins that
// announce it.
func runtimeConf(pod *Pod, netnsPath string) (*libcni.RuntimeConf, error) {
	for _, kv := range cniArgs(pod) {
		if strings.ContainsAny(kv[1], ";=") {
			return nil, errs.New(errs.Invalid, "attach pod %s: %s %q has a \";\" or \"=\", which CNI_ARGS cannot carry", pod.ID, kv[0], kv[1])
		}
	}
	rt := &libcni.RuntimeConf{ContainerID: pod.ID, NetNS: netnsPath, IfName: IfName, Args: cniArgs(pod), CapabilityArgs: map[string]any{}}
	var ports []portMapping
	for _, p := range pod.Ports {
		if p.HostPort <= 0 {
			continue
		}
		ports = append(ports, portMapping{p.HostPort, p.ContainerPort, strings.ToLower(p.Protocol), p.HostIP})
	}
	if ports != nil {
		rt.CapabilityArgs[capPorts] = ports
	}
	bw, err := bandwidthOf(pod.Annotations)
	if err != nil {
		return nil, err
	}
	if bw != nil {
		rt.CapabilityArgs[capBandwidth] = bw
	}
	if d := pod.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		rt.CapabilityArgs[capDNS] = dns(d)
	}
	if pod.CgroupParent != "" {
		rt.CapabilityArgs[capCgroup] = pod.CgroupParent
	}
	if len(pod.Annotations) > 0 {
		rt.CapabilityArgs[capAnnotations] = pod.Annotations
	}
	return rt, nil
}

func bandwidthOf(annotations map[string]string) (*bandwidth, error) {
	in, okIn := annotations[ingressAnnotation]
	out, okOut := annotations[egressAnnotation]
	if !okIn && !okOut {
		return nil, nil
	}
	bw := &bandwidth{}
	var err error
	if okIn {
		if bw.IngressRate, err = rate(ingressAnnotation, in); err != nil {
			return nil, err
		}
		bw.IngressBurst = math.MaxUint32
	}
	if okOut {
		if bw.EgressRate, err = rate(egressAnnotation, out); err != nil {
			return nil, err
		}
		bw.EgressBurst = math.MaxUint32
	}
	return bw, nil
}

var suffixes = []struct {
	text   string
	factor float64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50},
	{"m", 1e-3}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15}, {"", 1},
}

// rate reads a Kubernetes quantity of bits per second. As the kubelet has it, rates lie between 1k and 1P.
func rate(name, text string) (uint64, error) {
	bad := errs.New(errs.Invalid, "annotation %s: %q is not a rate between 1k and 1P bits per second", name, text)
	for _, s := range suffixes {
		number, ok := strings.CutSuffix(text, s.text)
		if !ok {
			continue
		}
		if strings.ContainsAny(number, "xXpP_nN") { // what ParseFloat reads beyond decimal numbers
			return 0, bad
		}
		v, err := strconv.ParseFloat(number, 64)
		if v *= s.factor; err != nil || !(v >= 1e3 && v <= 1e15) {
			return 0, bad
		}
		return uint64(math.Ceil(v)), nil
	}
	return 0, bad
}
