package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	goarch   = runtime.GOARCH
	hostPort = 18080
)

type step struct {
	name string
	took time.Duration
}

// demo is one run: what it made so far, and how long each step took.
type demo struct {
	dir   string
	steps []step

	rt            cri.RuntimeServiceClient
	img           cri.ImageServiceClient
	config        *cri.PodSandboxConfig
	image, pod    string
	podIP, hostIP string
	web           string
}

func (d *demo) step(name string, f func() error) error {
	start := time.Now()
	err := f()
	d.steps = append(d.steps, step{name, time.Since(start)})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (d *demo) report(w io.Writer) {
	var total time.Duration
	fmt.Fprintln(w, "\nwhere the time went:")
	for _, s := range d.steps {
		total += s.took
		fmt.Fprintf(w, "  %8.1f ms  %s\n", float64(s.took.Microseconds())/1000, s.name)
	}
	fmt.Fprintf(w, "  %8.1f ms  in all\n", float64(total.Microseconds())/1000)
}

func (d *demo) showServerLog() {
	logs, _ := filepath.Glob(filepath.Join(d.dir, "*.log"))
	for _, l := range logs {
		if b, err := os.ReadFile(l); err == nil {
			fmt.Fprintf(os.Stderr, "--- %s\n%s", filepath.Base(l), b[max(0, len(b)-8000):])
		}
	}
}

func (d *demo) run(ctx context.Context, app string) error {
	var registry string
	var stopRegistry func()
	if err := d.step("serve an image on loopback", func() (err error) {
		registry, stopRegistry, err = serveImage(app)
		return err
	}); err != nil {
		return err
	}
	defer stopRegistry()
	d.image = registry + "/demo/app:1"
	for _, s := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"start cri-server", d.up}, {"pull the image", d.pull}, {"run the pod sandbox", d.runPod},
		{"start the web server", d.startWeb}, {"read the host port from the host", d.readHostPort},
		{"run the reader: pod address and host port", d.runReader}, {"show the logs", d.showLogs},
		{"exec in the web server", d.exec}, {"stop and remove the pod", d.stopPod},
		{"remove the image", d.removeImage}, {"stop cri-server and audit", d.down},
	} {
		if err := d.step(s.name, func() error { return s.f(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) up(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "hack/up", d.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("hack/up: %w", err)
	}
	conn, err := grpc.NewClient("unix://"+strings.TrimSpace(string(out)), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	d.rt, d.img = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	v, err := d.rt.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return err
	}
	fmt.Println(v.RuntimeName, v.RuntimeVersion, "speaks CRI", v.RuntimeApiVersion)
	return nil
}

func (d *demo) pull(ctx context.Context) error {
	r, err := d.img.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: d.image}})
	if err == nil {
		fmt.Println("pulled", r.ImageRef)
	}
	return err
}

func (d *demo) runPod(ctx context.Context) error {
	logs := filepath.Join(filepath.Dir(d.dir), "logs")
	d.config = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "demo", Namespace: "default", Uid: "demo-1"},
		Hostname:     "demo",
		LogDirectory: logs,
		PortMappings: []*cri.PortMapping{{ContainerPort: 8080, HostPort: hostPort}},
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}},
	}
	r, err := d.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: d.config})
	if err != nil {
		return err
	}
	d.pod = r.PodSandboxId
	st, err := d.rt.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: d.pod})
	if err != nil {
		return err
	}
	d.podIP = st.Status.GetNetwork().GetIp()
	if d.hostIP, err = hostAddress(d.podIP); err != nil {
		return err
	}
	fmt.Printf("pod %.12s has address %s, its host %s\n", d.pod, d.podIP, d.hostIP)
	return nil
}

// hostAddress returns the address of this host in the network of the pod.
func hostAddress(pod string) (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.Contains(net.ParseIP(pod)) {
			return n.IP.String(), nil
		}
	}
	return "", fmt.Errorf("no interface of this host is in the network of %q", pod)
}

func (d *demo) container(ctx context.Context, name string, args ...string) (string, error) {
	c, err := d.rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: d.pod, SandboxConfig: d.config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    &cri.ImageSpec{Image: d.image},
		Args:     args,
		LogPath:  name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 512},
			SecurityContext: &cri.LinuxContainerSecurityContext{Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}},
		},
	}})
	if err != nil {
		return "", err
	}
	_, err = d.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId})
	return c.ContainerId, err
}

func (d *demo) startWeb(ctx context.Context) (err error) {
	if d.web, err = d.container(ctx, "web", "web", ":8080"); err != nil {
		return err
	}
	return d.waitForLog(ctx, "web", "listening on")
}

// waitForLog waits until a container's log has the text.
func (d *demo) waitForLog(ctx context.Context, name, text string) error {
	for {
		if strings.Contains(d.log(name), text) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the log of %s never had %q: %w", name, text, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (d *demo) log(name string) string {
	b, _ := os.ReadFile(filepath.Join(d.config.LogDirectory, name+".log"))
	return string(b)
}

func (d *demo) readHostPort(context.Context) error {
	r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", hostPort))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil && !strings.Contains(string(b), "hello from the pod") {
		err = fmt.Errorf("the web server said %q", b)
	}
	return err
}

func (d *demo) runReader(ctx context.Context) error {
	id, err := d.container(ctx, "reader", "read", fmt.Sprintf("http://%s:8080/pod-address", d.podIP), fmt.Sprintf("http://%s:%d/host-port", d.hostIP, hostPort))
	if err != nil {
		return err
	}
	for {
		s, err := d.rt.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return err
		}
		if s.Status.State == cri.ContainerState_CONTAINER_EXITED {
			if s.Status.ExitCode != 0 {
				return fmt.Errorf("the reader ended with %d (%s): %s", s.Status.ExitCode, s.Status.Reason, d.log("reader"))
			}
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	if n := strings.Count(d.log("reader"), "hello from the pod"); n != 2 {
		return fmt.Errorf("the reader got %d answers, want 2: %s", n, d.log("reader"))
	}
	return nil
}

func (d *demo) showLogs(context.Context) error {
	for _, name := range []string{"web", "reader"} {
		text := d.log(name)
		if text == "" {
			return errors.New("the log of " + name + " is empty")
		}
		for line := range strings.Lines(text) {
			fmt.Printf("  %s | %s", name, line)
		}
	}
	return nil
}

func (d *demo) exec(ctx context.Context) error {
	r, err := d.rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: d.web, Cmd: []string{"/bin/app", "whoami"}, Timeout: 10})
	if err != nil {
		return err
	}
	fmt.Printf("  exec | %s", r.Stdout)
	if r.ExitCode != 0 || !strings.Contains(string(r.Stdout), "uid 1000") || !strings.Contains(string(r.Stdout), "host demo") {
		return fmt.Errorf("exit code %d, output %q %q", r.ExitCode, r.Stdout, r.Stderr)
	}
	return nil
}

func (d *demo) stopPod(ctx context.Context) error {
	if _, err := d.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: d.pod}); err != nil {
		return err
	}
	_, err := d.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: d.pod})
	return err
}

func (d *demo) removeImage(ctx context.Context) error {
	_, err := d.img.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: d.image}})
	return err
}

func (d *demo) down(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "hack/down", d.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("hack/down: %w: %s", err, out)
	}
	return nil
}
