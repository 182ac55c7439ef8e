// Command kubelet drives a real kubelet, standalone, on cri-server: pods come from manifest files, and what
// the kubelet says of them over HTTP is held against what it must say. It runs inside test/kubelet/node
// with the kubelet on PATH; test/kubelet/run puts all of it together.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const patience = 90 * time.Second

type node struct {
	ctx       context.Context
	dir       string // all state
	socket    string
	manifests string
	kubelet   *exec.Cmd
}

func main() {
	n := &node{dir: os.Getenv("NODE_DIR")}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	n.ctx = ctx
	err := n.run()
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		os.Exit(1)
	}
	fmt.Println("PASS")
}

func (n *node) run() (err error) {
	if err := n.up(); err != nil {
		return err
	}
	defer func() {
		if derr := n.down(); err == nil {
			err = derr
		}
	}()
	if err := n.startKubelet(); err != nil {
		return err
	}
	for _, c := range []struct {
		name string
		f    func() error
	}{
		{"the pod becomes ready", n.ready}, {"logs through the kubelet", n.logs}, {"exec through the kubelet", n.exec},
		{"host port", n.hostPort}, {"the crasher restarts with back-off", n.crasher}, {"stats summary", n.summary},
		{"cadvisor metrics", n.metrics}, {"a failed readiness probe acts", n.readiness}, {"a failed liveness probe acts", n.liveness},
		{"the server is killed and comes back", n.killServer}, {"pods go with their files", n.gone},
	} {
		start := time.Now()
		if err := c.f(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Printf("ok %6.1fs  %s\n", time.Since(start).Seconds(), c.name)
	}
	return nil
}

// up starts the server, or starts it again on what it left behind.
func (n *node) up() error {
	cmd := exec.CommandContext(n.ctx, "hack/up", filepath.Join(n.dir, "server"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	n.socket = strings.TrimSpace(string(out))
	if err != nil {
		return fmt.Errorf("hack/up: %w", err)
	}
	return nil
}

func (n *node) down() error {
	if n.kubelet != nil {
		_ = n.kubelet.Process.Signal(syscall.SIGTERM)
		_ = n.kubelet.Wait()
	}
	out, err := exec.Command("hack/down", filepath.Join(n.dir, "server")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("hack/down: %w: %s", err, out)
	}
	return nil
}

func (n *node) startKubelet() error {
	n.manifests = filepath.Join(n.dir, "manifests")
	if err := os.MkdirAll(n.manifests, 0o755); err != nil {
		return err
	}
	for _, pod := range []string{"basic", "logger"} {
		if err := n.copyManifest(pod); err != nil {
			return err
		}
	}
	cfg, err := os.ReadFile("test/kubelet/kubelet.yaml")
	if err != nil {
		return err
	}
	text := strings.NewReplacer("@SOCKET@", n.socket, "@MANIFESTS@", n.manifests).Replace(string(cfg))
	path := filepath.Join(n.dir, "kubelet.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(n.dir, "kubelet.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	n.kubelet = exec.Command("kubelet", "--config="+path, "--node-ip=192.168.77.2", "--hostname-override=node", "--root-dir=/var/lib/kubelet")
	n.kubelet.Stdout, n.kubelet.Stderr = log, log
	return n.kubelet.Start()
}

func (n *node) copyManifest(pod string) error {
	b, err := os.ReadFile("test/kubelet/" + pod + ".yaml")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.manifests, pod+".yaml"), b, 0o644)
}

// eventually polls f, since a kubelet has no way to tell when it has seen something.
func (n *node) eventually(f func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s: %w", patience, err)
		}
		select {
		case <-n.ctx.Done():
			return errors.Join(n.ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (n *node) get(path string) (string, error) {
	return n.do(http.MethodGet, "http://127.0.0.1:10255"+path)
}

func (n *node) do(method, url string) (string, error) {
	req, err := http.NewRequestWithContext(n.ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	r, err := insecure.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.300s", url, r.Status, b)
	}
	return string(b), err
}

type pod struct {
	Metadata struct{ Name string }
	Status   struct {
		Conditions            []struct{ Type, Status string }
		ContainerStatuses     []container
		InitContainerStatuses []container
	}
}

type container struct {
	Name, ContainerID string
	Ready             bool
	RestartCount      int
	State, LastState  struct {
		Running    *struct{}
		Waiting    *struct{ Reason string }
		Terminated *struct {
			ExitCode        int
			Message, Reason string
		}
	}
}

// pod returns what the kubelet says of a static pod.
func (n *node) pod(name string) (*pod, error) {
	text, err := n.get("/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []pod }
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	for i := range list.Items {
		if list.Items[i].Metadata.Name == name+"-node" {
			return &list.Items[i], nil
		}
	}
	return nil, fmt.Errorf("the kubelet has no pod %s", name)
}

func (p *pod) container(name string) container {
	for _, c := range append(p.Status.ContainerStatuses, p.Status.InitContainerStatuses...) {
		if c.Name == name {
			return c
		}
	}
	return container{}
}
