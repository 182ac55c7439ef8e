package sandbox

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/network"
)

// images and nets are the other two faces.
type images struct{ *machine }

func (i images) Get(ref string) (*image.Image, error) {
	if ref == "" || ref == "missing" {
		return nil, errs.New(errs.NotFound, "image %q: not present. Pull it", ref)
	}
	return &image.Image{ID: "sha256:" + ref, Config: ocispec.ImageConfig{Cmd: []string{"sleep", "inf"}}}, nil
}

func (i images) CreateRootfs(_ context.Context, id, _ string, _, _ uint32) error {
	i.mu.Lock()
	i.rootfses[id] = true
	i.mu.Unlock()
	return i.call("rootfs")
}

func (i images) MountRootfs(_ context.Context, id string, _ *os.File) (*os.File, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.rootfses[id] {
		return nil, errs.New(errs.NotFound, "root filesystem %s", id)
	}
	return os.Open(i.machine.rootfs)
}

func (i images) RemoveRootfs(_ context.Context, id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.rootfses, id)
	return nil
}

func (i images) Rootfses() ([]string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []string
	for id := range i.rootfses {
		out = append(out, id)
	}
	sort.Strings(out)
	return out, nil
}

func (i images) MountImage(_ context.Context, owner, _, _ string, _ *os.File) (*os.File, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.holds[owner] = true
	return os.Open(i.machine.rootfs)
}

func (i images) ReleaseImage(owner string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.holds, owner)
	return nil
}

func (i images) Owners() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []string
	for id := range i.holds {
		out = append(out, id)
	}
	return out
}

func (i images) Check(context.Context, bool) ([]string, error) { return nil, nil }

type nets struct{ *machine }

func (n nets) Attach(_ context.Context, p network.Pod) (network.Result, error) {
	n.mu.Lock()
	n.attached[p.ID] = true // even what fails may leave something
	n.mu.Unlock()
	if err := n.call("attach"); err != nil {
		return network.Result{}, err
	}
	return network.Result{IPs: []string{"10.0.0.2"}}, nil
}

func (n nets) Detach(_ context.Context, p network.Pod) error {
	if err := n.call("detach"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, p.ID)
	return nil
}

func (n nets) GC(_ context.Context, live []network.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	keep := map[string]bool{}
	for _, p := range live {
		keep[p.ID] = true
	}
	for id := range n.attached {
		if !keep[id] {
			delete(n.attached, id)
		}
	}
	return nil
}

func (n nets) Leftovers(_ context.Context, live []network.Pod) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	keep := map[string]bool{}
	for _, p := range live {
		keep[p.ID] = true
	}
	var out []string
	for id := range n.attached {
		if !keep[id] {
			out = append(out, "lease of "+id)
		}
	}
	return out, nil
}

// fakeProcess is what the fake's Exec returns: it prints a line on the streams it was given.
type fakeProcess struct {
	done   chan struct{}
	killed chan struct{}
	once   sync.Once
	code   int32
}

func (c *shimConn) Exec(_ context.Context, r *ExecRequest) (Process, error) {
	p := &fakeProcess{done: make(chan struct{}), killed: make(chan struct{})}
	fd, err := syscall.Dup(int(r.Stdio[1].Fd()))
	if err != nil {
		return nil, err
	}
	out := os.NewFile(uintptr(fd), "stdout")
	go func() {
		switch args := r.Process.Args; args[0] {
		case "print": // and leave the stream open in a child
			fmt.Fprintln(out, strings.Join(args[1:], " "))
			go func() { <-p.killed; out.Close() }()
			close(p.done)
		case "flood":
			buf := make([]byte, 1<<20)
			for range 17 {
				_, _ = out.Write(buf)
			}
			out.Close()
			close(p.done)
		case "hang":
			<-p.killed
			out.Close()
			p.code = 137
			close(p.done)
		}
	}()
	return p, nil
}

func (p *fakeProcess) Pid() int          { return 1 }
func (p *fakeProcess) Console() *os.File { return nil }
func (p *fakeProcess) KillTree(context.Context) error {
	p.once.Do(func() { close(p.killed) })
	return nil
}
func (p *fakeProcess) Resize(Size) error { return nil }
func (p *fakeProcess) Close() error      { return p.KillTree(context.Background()) }

func (p *fakeProcess) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return Exit{Code: p.code, At: time.Now()}, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}
