//go:build root

package runtime_test

import (
	"context"
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

// benchSpec joins a pod, as a container of a kubelet's does.
func benchSpec(b *testing.B) runtime.Options {
	root := testroot.Rootfs(b, b.TempDir())
	s := spec(root, "")
	s.Process.Args = []string{"/bin/true"}
	s.Hostname = ""
	p, err := runtime.PrepareHolder(context.Background(), runtime.HolderOptions{ID: "pod", Namespaces: podTypes, Clamp: true})
	if err != nil {
		b.Fatal(err)
	}
	holder, err := launch.Start(&p.Request, p.Files, [3]*os.File{})
	p.Close()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { holder.Kill(9); holder.Wait(); holder.Close() })
	return joined(s, holder.Pidfd, podTypes...)
}

func once(b *testing.B, p *runtime.Prepared, err error) {
	if err != nil {
		b.Fatal(err)
	}
	proc, err := launch.Start(&p.Request, p.Files, [3]*os.File{})
	if err != nil {
		b.Fatal(p.Explain(err))
	}
	p.Close()
	proc.Wait()
	proc.Close()
}

func BenchmarkPrepare(b *testing.B) {
	testroot.NeedRoot(b)
	o := benchSpec(b)
	b.ReportAllocs()
	for b.Loop() {
		p, err := runtime.Prepare(context.Background(), o)
		if err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}

func BenchmarkLife(b *testing.B) {
	testroot.NeedRoot(b)
	o := benchSpec(b)
	for b.Loop() {
		p, err := runtime.Prepare(context.Background(), o)
		once(b, p, err)
	}
}

func BenchmarkLifeCgroup(b *testing.B) {
	testroot.NeedRoot(b)
	o := benchSpec(b)
	host, err := cgroup.Probe()
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	g, err := host.Create(testroot.Cgroup(b)+"/bench", cgroup.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer g.Delete(context.Background())
	o.Cgroup = g
	o.Spec.Linux.Namespaces = append(o.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	for b.Loop() {
		p, err := runtime.Prepare(context.Background(), o)
		once(b, p, err)
	}
}

func BenchmarkExec(b *testing.B) {
	testroot.NeedRoot(b)
	root := testroot.Rootfs(b, b.TempDir())
	s := sleeper(root)
	p, err := runtime.Prepare(context.Background(), runtime.Options{ID: "test", Spec: s, Clamp: true})
	if err != nil {
		b.Fatal(err)
	}
	c, err := launch.Start(&p.Request, p.Files, [3]*os.File{})
	if err != nil {
		b.Fatal(err)
	}
	p.Close()
	defer func() { c.Kill(9); c.Wait(); c.Close() }()
	proc := *s.Process
	proc.Args = []string{"/bin/true"}
	for b.Loop() {
		p, err := runtime.PrepareExec(context.Background(), runtime.ExecOptions{ID: "test", Spec: s, Process: &proc, Pid: c.Pid, Pidfd: c.Pidfd, Clamp: true})
		once(b, p, err)
	}
}

func BenchmarkForkExec(b *testing.B) {
	bb := testroot.Busybox(b)
	for b.Loop() {
		p, err := os.StartProcess(bb, []string{"true"}, &os.ProcAttr{})
		if err != nil {
			b.Fatal(err)
		}
		p.Wait()
	}
}
