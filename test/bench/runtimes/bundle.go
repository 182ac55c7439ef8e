package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/seccomp/profile"
)

// bundle is what the runtimes run, and where they keep their state.
type bundle struct {
	dir    string // with a directory for the state of each runtime
	cgroup string
	host   *cgroup.Host
	spec   *specs.Spec
}

func newBundle(o *options) (b *bundle, err error) {
	b = &bundle{cgroup: fmt.Sprintf("/bench-runtimes-%d", os.Getpid())}
	if b.host, err = cgroup.Probe(); err != nil {
		return nil, err
	}
	if _, err = b.host.Create(b.cgroup, cgroup.CreateOptions{}); err != nil {
		return nil, err
	}
	// In memory, wherever /run is: what a disk's journal does is not the runtimes' doing.
	if b.dir, err = os.MkdirTemp("/run", "bench-runtimes-"); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", b.dir, "tmpfs", 0, "mode=700"); err != nil {
		return b, os.NewSyscallError("mount", err)
	}
	if err := b.rootfs(); err != nil {
		return b, err
	}
	if out, err := exec.Command(o.runtimes[0].file, "spec", "--bundle", b.dir).CombinedOutput(); err != nil {
		return b, fmt.Errorf("%s spec: %w: %s", o.runtimes[0].name, err, out)
	}
	data, err := os.ReadFile(filepath.Join(b.dir, "config.json"))
	if err != nil {
		return b, err
	}
	b.spec = new(specs.Spec)
	if err := json.Unmarshal(data, b.spec); err != nil {
		return b, err
	}
	b.spec.Process.Terminal = false
	return b, b.filter(o.seccomp)
}

// filter gives the containers their seccomp filter.
func (b *bundle) filter(from string) (err error) {
	switch from {
	case "none":
		return nil
	case "default":
		b.spec.Linux.Seccomp, err = profile.Default(b.spec.Process.Capabilities.Bounding)
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, &b.spec.Linux.Seccomp)
}

// rootfs makes a root filesystem of a static busybox.
func (b *bundle) rootfs() error {
	box, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w (Debian: busybox-static)", err)
	}
	data, err := os.ReadFile(box)
	if err != nil {
		return err
	}
	root := filepath.Join(b.dir, "rootfs")
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin/true"), data, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"sleep", "sh"} {
		if err := os.Link(filepath.Join(root, "bin/true"), filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o600)
}

// configure writes the configuration of a container: its command, and its cgroup, in a directory of its own so that many
// can be there at once. It returns the directory.
func (b *bundle) configure(id string, args ...string) (string, error) {
	s := *b.spec
	p, l := *s.Process, *s.Linux
	s.Process, s.Linux = &p, &l
	s.Root = &specs.Root{Path: filepath.Join(b.dir, "rootfs"), Readonly: true}
	p.Args = args
	l.CgroupsPath = b.cgroup + "/" + id
	data, err := json.MarshalIndent(&s, "", "\t")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.dir, "bundles", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

// remove takes everything away, whatever the runtimes have left.
func (b *bundle) remove() error {
	g, err := b.host.At(b.cgroup)
	if err == nil {
		err = g.Kill(context.Background())
	}
	if err == nil {
		err = g.Delete(context.Background())
	}
	b.host.Close()
	_ = unix.Unmount(b.dir, unix.MNT_DETACH)
	return errors.Join(err, os.RemoveAll(b.dir))
}
