package network

import (
	"encoding/json"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/go-cmp/cmp"

	"github.com/cri-server/cri-server/pkg/errs"
)

// The words on the wire, as containerd and CRI-O have them.
func TestRuntimeConf(t *testing.T) {
	rt, err := runtimeConf(&Pod{
		ID: "id", Name: "name", Namespace: "space", UID: "uid",
		Ports:        []PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "TCP"}, {ContainerPort: 1, Protocol: "tcp"}, {HostIP: "::1", HostPort: 53, ContainerPort: 53, Protocol: "udp"}},
		Annotations:  map[string]string{"kubernetes.io/ingress-bandwidth": "1M", "kubernetes.io/egress-bandwidth": "10Mi", "x": "y"},
		DNS:          DNS{Servers: []string{"1.1.1.1"}, Searches: []string{"a.b"}},
		CgroupParent: "/kubepods/pod1",
	}, "/run/netns/x")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(rt.CapabilityArgs)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"bandwidth":{"ingressRate":1000000,"ingressBurst":4294967295,"egressRate":10485760,"egressBurst":4294967295},` +
		`"cgroupPath":"/kubepods/pod1","dns":{"servers":["1.1.1.1"],"searches":["a.b"]},` +
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/egress-bandwidth":"10Mi","kubernetes.io/ingress-bandwidth":"1M","x":"y"},` +
		`"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":""},{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"::1"}]}`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
	args := [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "space"}, {"K8S_POD_NAME", "name"}, {"K8S_POD_INFRA_CONTAINER_ID", "id"}, {"K8S_POD_UID", "uid"}}
	if d := cmp.Diff(args, rt.Args); d != "" || rt.NetNS != "/run/netns/x" || rt.IfName != "eth0" || rt.ContainerID != "id" {
		t.Error(d, rt)
	}
	if _, err := runtimeConf(&Pod{ID: "id", Name: "a;CNI_PATH=/x"}, ""); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
}

func TestRate(t *testing.T) {
	for text, want := range map[string]uint64{
		"1k": 1000, "1000": 1000, "1.5M": 1500000, "1Ki": 1024, "1P": 1e15, "1e6": 1e6, "1000000m": 1000, "1E6": 1e6, "0.5G": 5e8,
		"999": 0, "1.1P": 0, "": 0, "-1M": 0, "0x10000": 0, "Inf": 0, "NaN": 0, "1 M": 0, "1MM": 0, "1_000_000": 0, "0x1p10k": 0, "M": 0, "1e400": 0,
	} {
		got, err := rate("a", text)
		if (err != nil) != (want == 0) || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

// What a plugin may print as its result: addresses come out, or an error, and never a panic.
func FuzzResult(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.0.0","interfaces":[{"name":"br"},{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":1,"address":"10.0.0.2/24"},{"interface":0,"address":"10.0.0.9/24"}]}`,
		`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"},{"address":"fd00::2/64"}]}`,
		`{"cniVersion":"1.0.0","ips":[{"interface":5,"address":"10.0.0.2/24"}]}`,
		`{"cniVersion":"1.0.0","interfaces":[null],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}`,
		`{"cniVersion":"1.0.0","ips":[null]}`, `{"cniVersion":"1.0.0"}`, `null`, `[]`, `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`,
		`{"cniVersion":"0.3.1","ips":[{"version":"4","interface":-1,"address":"10.0.0.2/24"}]}`, `{"cniVersion":"1.1.0","ips":[{"address":"::/0"}],"routes":[{"dst":"0.0.0.0/0"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := create.CreateFromBytes(data)
		if err != nil {
			return
		}
		res, err := resultOf(got)
		if err == nil && len(res.IPs) == 0 {
			t.Error("no error and no address")
		}
	})
}

func TestResultTakesThePodsAddresses(t *testing.T) {
	got, err := create.CreateFromBytes([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"},{"name":"eth0","sandbox":"/x"},{"name":"net1","sandbox":"/x"}],
		"ips":[{"interface":2,"address":"10.9.0.2/24"},{"interface":1,"address":"fd00::2/64"},{"interface":1,"address":"10.0.0.2/24"},{"interface":0,"address":"10.0.0.1/24"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	res, err := resultOf(got)
	if d := cmp.Diff([]string{"fd00::2", "10.0.0.2"}, res.IPs); err != nil || d != "" {
		t.Error(err, d)
	}
}
