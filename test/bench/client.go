package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/internal/peer"
)

// target is one CRI server under measurement.
type target struct {
	name string
	pid  int // of the daemon
	conn *grpc.ClientConn
	rt   cri.RuntimeServiceClient
	img  cri.ImageServiceClient
	o    *options
	seq  atomic.Int64
}

// calls are the measured calls in the order of a cycle; the last is the whole start of a pod with a container.
var calls = []string{"RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "ListContainers", "StopPodSandbox", "RemovePodSandbox", "start pod+container", "stop+remove"}

type timings map[string]time.Duration

func dial(ctx context.Context, endpoint string, o *options) (*target, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	t := &target{conn: conn, rt: cri.NewRuntimeServiceClient(conn), img: cri.NewImageServiceClient(conn), o: o}
	v, err := t.rt.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", endpoint, err)
	}
	t.name = v.RuntimeName + " " + v.RuntimeVersion
	if t.pid, err = peer.Pid(path); err != nil {
		return nil, err
	}
	if _, err := t.img.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: o.image}}); err != nil {
		return nil, fmt.Errorf("%s: pull %s: %w", t.name, o.image, err)
	}
	return t, nil
}

func (t *target) podConfig() *cri.PodSandboxConfig {
	id := fmt.Sprintf("bench-%d-%d", os.Getpid(), t.seq.Add(1))
	c := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: id, Uid: id, Namespace: "bench"},
		Hostname: id,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    t.o.cgroup,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
	if t.o.hostNet {
		c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
		c.Hostname = ""
	}
	return c
}

func (t *target) containerConfig() *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"},
		Image:    &cri.ImageSpec{Image: t.o.image},
		Command:  t.o.command,
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 256 << 20},
			SecurityContext: &cri.LinuxContainerSecurityContext{Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}
}

// start runs a pod with one container and returns their IDs and how long each call took.
func (t *target) start(ctx context.Context, tm timings) (pod, ctr string, err error) {
	pc := t.podConfig()
	cc := t.containerConfig()
	err = tm.measure("start pod+container", func() error {
		if err := tm.measure("RunPodSandbox", func() error {
			r, err := t.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pc})
			pod = r.GetPodSandboxId()
			return err
		}); err != nil {
			return err
		}
		if err := tm.measure("CreateContainer", func() error {
			r, err := t.rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: cc, SandboxConfig: pc})
			ctr = r.GetContainerId()
			return err
		}); err != nil {
			return err
		}
		return tm.measure("StartContainer", func() error {
			_, err := t.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: ctr})
			return err
		})
	})
	return pod, ctr, err
}

func (t *target) stop(ctx context.Context, pod string, tm timings) error {
	return tm.measure("stop+remove", func() error {
		if err := tm.measure("StopPodSandbox", func() error {
			_, err := t.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		}); err != nil {
			return err
		}
		return tm.measure("RemovePodSandbox", func() error {
			_, err := t.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		})
	})
}

// cycle is the whole life of a pod.
func (t *target) cycle(ctx context.Context) (timings, error) {
	tm := timings{}
	pod, ctr, err := t.start(ctx, tm)
	if err == nil {
		err = tm.measure("ExecSync", func() error {
			r, err := t.rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"true"}, Timeout: 10})
			if err == nil && r.ExitCode != 0 {
				err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
			}
			return err
		})
	}
	if err == nil {
		err = tm.measure("ListContainers", func() error {
			_, err := t.rt.ListContainers(ctx, &cri.ListContainersRequest{})
			return err
		})
	}
	if pod != "" {
		if serr := t.stop(context.WithoutCancel(ctx), pod, tm); err == nil {
			err = serr
		}
	}
	return tm, err
}

func (tm timings) measure(call string, f func() error) error {
	start := time.Now()
	err := f()
	tm[call] = time.Since(start)
	if err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	return nil
}
