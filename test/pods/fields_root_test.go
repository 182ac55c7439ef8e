//go:build root

package pods

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostileValues are what a field of a kind is set to.
func hostileValues(f protoreflect.FieldDescriptor) []protoreflect.Value {
	var out []protoreflect.Value
	add := func(v any) { out = append(out, protoreflect.ValueOf(v)) }
	switch f.Kind() {
	case protoreflect.StringKind:
		for _, s := range []string{"", " ", "a\x00b", "a\nb", "../../../etc", "/", ".", "..", "-1", "4294967296", "/proc/self/exe", "/dev/zero", "/no/such/thing",
			"localhost/", "é\u202e", strings.Repeat("a", 300), strings.Repeat("a/", 2100), strings.Repeat("b", 1<<20), "%s%n", `"`, ",", ":", "=", "~"} {
			add(s)
		}
	case protoreflect.BytesKind:
		for _, s := range []string{"", "\x00", "\xff\xfe", strings.Repeat("c", 1<<20)} {
			add([]byte(s))
		}
	case protoreflect.BoolKind:
		add(true)
		add(false)
	case protoreflect.Int32Kind:
		for _, n := range []int32{-1, 0, 1, 65536, math.MaxInt32, math.MinInt32} {
			add(n)
		}
	case protoreflect.Uint32Kind:
		for _, n := range []uint32{0, 1, math.MaxUint32} {
			add(n)
		}
	case protoreflect.Int64Kind:
		for _, n := range []int64{-1, -2, 0, 1, 7, 1 << 32, math.MaxInt64, math.MinInt64} {
			add(n)
		}
	case protoreflect.Uint64Kind:
		for _, n := range []uint64{0, 1, math.MaxUint64} {
			add(n)
		}
	case protoreflect.EnumKind:
		for _, n := range []int32{-1, 0, 1, 2, 3, 4, 99} {
			add(protoreflect.EnumNumber(n))
		}
	}
	return out
}

// mutation is one hostile message: which field it is about, and what makes it of a good one.
type mutation struct {
	path  string
	apply func(m protoreflect.Message)
}

// mutations walks a message type and sets each field, one at a time, to each hostile value.
func mutations(d protoreflect.MessageDescriptor, prefix string, depth int, to func(protoreflect.Message) protoreflect.Message) []mutation {
	var out []mutation
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		path := prefix + string(f.Name())
		if slices.Contains([]string{"windows", "labels", "annotations"}, string(f.Name())) {
			continue // refused whole, or anything goes
		}
		add := func(what string, apply func(m protoreflect.Message)) {
			out = append(out, mutation{path + " " + what, func(m protoreflect.Message) { apply(to(m)) }})
		}
		add("absent", func(m protoreflect.Message) { m.Clear(f) })
		switch {
		case f.IsMap():
			for _, k := range hostileValues(f.MapKey()) {
				add(fmt.Sprintf("key %.40q", k.String()), func(m protoreflect.Message) { m.Mutable(f).Map().Set(k.MapKey(), protoreflect.ValueOf("1")) })
			}
			for _, v := range hostileValues(f.MapValue()) {
				add(fmt.Sprintf("value %.40q", v.String()), func(m protoreflect.Message) {
					m.Mutable(f).Map().Set(protoreflect.ValueOf("memory.high").MapKey(), v)
				})
			}
		case f.IsList() && f.Message() != nil:
			add("empty element", func(m protoreflect.Message) { l := m.Mutable(f).List(); l.Append(l.NewElement()) })
			if depth > 0 {
				out = append(out, mutations(f.Message(), path+"[].", depth-1, func(m protoreflect.Message) protoreflect.Message {
					l := to(m).Mutable(f).List()
					if l.Len() == 0 {
						l.Append(l.NewElement())
					}
					return l.Get(0).Message()
				})...)
			}
		case f.IsList():
			for _, v := range hostileValues(f) {
				add(fmt.Sprintf("element %.40q", fmt.Sprint(v.Interface())), func(m protoreflect.Message) { m.Mutable(f).List().Append(v) })
			}
		case f.Message() != nil:
			add("empty", func(m protoreflect.Message) { m.Set(f, protoreflect.ValueOf(m.NewField(f).Message())) })
			if depth > 0 {
				out = append(out, mutations(f.Message(), path+".", depth-1, func(m protoreflect.Message) protoreflect.Message {
					return to(m).Mutable(f).Message()
				})...)
			}
		default:
			for _, v := range hostileValues(f) {
				add(fmt.Sprintf("%.40q", fmt.Sprint(v.Interface())), func(m protoreflect.Message) { m.Set(f, v) })
			}
		}
	}
	return out
}

// judge holds an answer to the codes that are for the caller's mistakes, and to a text that fits into a header.
func judge(t testing.TB, call, path string, err error) {
	t.Helper()
	switch code := status.Code(err); code {
	case codes.OK:
		return
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists, codes.ResourceExhausted, codes.Unimplemented:
	default:
		t.Errorf("%s with %s: %s: %.300v", call, path, code, err)
		return
	}
	if len(err.Error()) > 5000 {
		t.Errorf("%s with %s: a text of %d bytes", call, path, len(err.Error()))
	}
}

// eachOf runs do for every mutation of a message type, a few at a time. lane tells those of a moment apart.
func eachOf(d protoreflect.MessageDescriptor, do func(m mutation, lane int)) {
	todo := make(chan mutation)
	var wg sync.WaitGroup
	for lane := range 4 {
		wg.Go(func() {
			for m := range todo {
				do(m, lane)
			}
		})
	}
	for _, m := range mutations(d, "config.", 4, func(m protoreflect.Message) protoreflect.Message { return m }) {
		todo <- m
	}
	close(todo)
	wg.Wait()
}

// TestEveryField sends each message of the CRI with each of its fields, in turn, set to each of a list of hostile values.
// What is taken is started, too, and removed.
func TestEveryField(t *testing.T) {
	n := newNode(t)
	server := n.pid()
	eachOf((&cri.PodSandboxConfig{}).ProtoReflect().Descriptor(), func(m mutation, lane int) {
		config := n.podConfig(fmt.Sprint("field", lane), func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{HostPort: int32(39870 + lane), ContainerPort: 80}}
			c.DnsConfig = &cri.DNSConfig{Servers: []string{"10.0.0.1"}, Searches: []string{"example.org"}}
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 7}
		})
		m.apply(config.ProtoReflect())
		id, err := n.tryPod(config)
		judge(t, "RunPodSandbox", m.path, err)
		if err == nil {
			n.removePod(id)
		}
	})
	n.check()
	podConfig := n.podConfig("pod")
	pod := n.pod(podConfig)
	eachOf((&cri.ContainerConfig{}).ProtoReflect().Descriptor(), func(m mutation, lane int) {
		config := containerConfig(podConfig, fmt.Sprint("field", lane), "true", func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: "/etc", ContainerPath: "/x", Readonly: true}}
			c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("b")}}
			c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 100}
		})
		config = proto.Clone(config).(*cri.ContainerConfig) // it shares parts with the pod's
		m.apply(config.ProtoReflect())
		id, err := n.tryCreate(pod, config, podConfig)
		judge(t, "CreateContainer", m.path, err)
		if err != nil {
			return
		}
		judge(t, "StartContainer", m.path, n.tryStart(id))
		n.remove(id)
	})
	n.check()
	f := newCallFixtures(n, pod, podConfig)
	before := f.all()
	n.everyCall(f)
	if after := f.all(); after != before {
		t.Errorf("calls that were refused changed something (-before +after):\n%s", cmp.Diff(before, after))
	}
	n.check()
	if n.pid() != server || gone(server, 0) {
		t.Error("the server died")
	}
	n.removeAll()
}

// newCallFixtures are a pod and containers that calls name.
func newCallFixtures(n *node, pod string, config *cri.PodSandboxConfig) *fixtures {
	f := &fixtures{node: n, config: config, ready: pod, gone: strings.Repeat("0", 64)}
	f.running = n.run(pod, config, "running", "exec sleep 1000")
	f.created = n.create(pod, containerConfig(config, "created", "true"), config)
	return f
}

// everyCall makes each call that has one answer with hostile fields: on a running container and a ready pod where it
// only asks or changes limits, on absent ones where it ends something.
func (n *node) everyCall(f *fixtures) {
	for _, service := range []protoreflect.ServiceDescriptor{
		cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services().ByName("RuntimeService"), cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services().ByName("ImageService"),
	} {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			if method.IsStreamingServer() || slices.Contains([]string{"RunPodSandbox", "CreateContainer"}, string(method.Name())) {
				continue
			}
			for _, m := range mutations(method.Input(), "", 4, func(m protoreflect.Message) protoreflect.Message { return m }) {
				if method.Name() == "PullImage" && !strings.HasPrefix(m.path, "auth") && !strings.HasPrefix(m.path, "sandbox_config") {
					continue // where an image would come from is not this node's to ask
				}
				n.call(f, service, method, m)
			}
		}
	}
}

func (n *node) call(f *fixtures, service protoreflect.ServiceDescriptor, method protoreflect.MethodDescriptor, m mutation) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	if err != nil {
		n.t.Fatal(err)
	}
	answer, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		n.t.Fatal(err)
	}
	req := kind.New()
	container, pod, image := f.running, f.ready, busybox
	if name := string(method.Name()); strings.HasPrefix(name, "Stop") || strings.HasPrefix(name, "Remove") {
		container, pod, image = f.gone, f.gone, "registry.test/none:1"
	}
	for field, value := range map[protoreflect.Name]any{
		"container_id": container, "pod_sandbox_id": pod, "stdout": true, "timeout": int64(5),
	} {
		if d := req.Descriptor().Fields().ByName(field); d != nil {
			req.Set(d, protoreflect.ValueOf(value))
		}
	}
	if d := req.Descriptor().Fields().ByName("cmd"); d != nil {
		req.Mutable(d).List().Append(protoreflect.ValueOf("true"))
	}
	if d := req.Descriptor().Fields().ByName("image"); d != nil {
		req.Set(d, protoreflect.ValueOf((&cri.ImageSpec{Image: image}).ProtoReflect()))
	}
	m.apply(req)
	ctx, cancel := context.WithTimeout(n.ctx, long)
	defer cancel()
	path := fmt.Sprintf("/%s/%s", service.FullName(), method.Name())
	judge(n.t, string(method.Name()), m.path, n.conn.Invoke(ctx, path, req.Interface(), answer.New().Interface()))
}
