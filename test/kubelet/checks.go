package main

import (
	"bufio"
	"compress/gzip"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cri-server/cri-server/internal/peer"
)

// insecure talks to the kubelet of this private node, whose certificate it signed itself.
var insecure = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

func (n *node) ready() error {
	return n.eventually(func() error {
		p, err := n.pod("basic")
		if err != nil {
			return err
		}
		web, logger := p.container("web"), p.container("side")
		if !web.Ready || !logger.Ready {
			return fmt.Errorf("web %+v, side %+v", web, logger)
		}
		l, err := n.pod("logger")
		if err != nil || !l.container("logger").Ready {
			return fmt.Errorf("logger is not ready: %w", errors.Join(err))
		}
		return nil
	})
}

func (n *node) logs() error {
	text, err := n.do(http.MethodGet, "https://127.0.0.1:10250/containerLogs/default/basic-node/web")
	if err == nil && (!strings.Contains(text, "from-init") || !strings.Contains(text, "err-line")) {
		err = fmt.Errorf("the log is %q", text)
	}
	return err
}

func (n *node) run1(cmd string) (string, error) {
	return n.do(http.MethodPost, "https://127.0.0.1:10250/run/default/basic-node/web?cmd="+url.QueryEscape(cmd))
}

func (n *node) exec() error {
	text, err := n.run1("cat /data/x")
	if err == nil && text != "from-init\n" {
		err = fmt.Errorf("exec said %q", text)
	}
	return err
}

func (n *node) hostPort() error {
	for _, host := range []string{"127.0.0.1", "192.168.77.2"} {
		text, err := n.do(http.MethodGet, "http://"+host+":18000/index.html")
		if err != nil {
			return err
		}
		if text != "hello\n" {
			return fmt.Errorf("%s: %q", host, text)
		}
	}
	return nil
}

func (n *node) crasher() error {
	return n.eventually(func() error {
		p, err := n.pod("basic")
		if err != nil {
			return err
		}
		c := p.container("crasher")
		last := c.LastState.Terminated
		if c.RestartCount < 2 || last == nil {
			return fmt.Errorf("crasher: %d restarts, state %+v", c.RestartCount, c.State)
		}
		// Its status says CrashLoopBackOff only if something else makes the kubelet look while it waits.
		log, err := os.ReadFile(filepath.Join(n.dir, "kubelet.log"))
		if err != nil {
			return err
		}
		for _, wait := range []string{"10s", "20s"} {
			if !strings.Contains(string(log), "back-off "+wait+" restarting failed container=crasher") {
				return fmt.Errorf("the kubelet's log has no back-off of %s", wait)
			}
		}
		if last.ExitCode != 3 || strings.TrimSpace(last.Message) != "bye" || last.Reason != "Error" {
			return fmt.Errorf("crasher ended with %+v", *last)
		}
		return nil
	})
}

func (n *node) summary() error {
	return n.eventually(func() error {
		text, err := n.get("/stats/summary")
		if err != nil {
			return err
		}
		_, basic, ok := strings.Cut(text, `"name": "basic-node"`)
		if !ok {
			return errors.New("the summary has no pod basic-node")
		}
		for _, want := range []string{`"rxBytes"`, `"workingSetBytes"`, `"usageNanoCores"`, `"name": "web"`, `"rootfs"`} {
			if !strings.Contains(basic, want) {
				return fmt.Errorf("the summary of the pod has no %s", want)
			}
		}
		return nil
	})
}

func (n *node) metrics() error {
	return n.eventually(func() error {
		text, err := n.get("/metrics/cadvisor")
		if err != nil {
			return err
		}
		for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_network_receive_bytes_total"} {
			found := false
			for line := range strings.Lines(text) {
				found = found || (strings.HasPrefix(line, name+"{") && strings.Contains(line, `pod="basic-node"`) &&
					(strings.Contains(name, "network") || strings.Contains(line, `container="web"`)))
			}
			if !found {
				return fmt.Errorf("no series %s of pod basic-node", name)
			}
		}
		return nil
	})
}

func (n *node) readiness() error {
	if _, err := n.run1("rm /tmp/ready"); err != nil {
		return err
	}
	if err := n.eventually(func() error { return n.webReady(false) }); err != nil {
		return err
	}
	if _, err := n.run1("touch /tmp/ready"); err != nil {
		return err
	}
	return n.eventually(func() error { return n.webReady(true) })
}

func (n *node) webReady(want bool) error {
	p, err := n.pod("basic")
	if err == nil && p.container("web").Ready != want {
		err = fmt.Errorf("web ready: %v, want %v", !want, want)
	}
	return err
}

func (n *node) liveness() error {
	if _, err := n.run1("rm /tmp/alive"); err != nil {
		return err
	}
	return n.eventually(func() error {
		p, err := n.pod("basic")
		if err == nil && (p.container("web").RestartCount < 1 || !p.container("web").Ready) {
			err = fmt.Errorf("web: %+v", p.container("web"))
		}
		return err
	})
}

// killServer kills cri-server, starts it again, and holds that no container noticed and no line was lost.
func (n *node) killServer() error {
	for range 3 {
		before, err := n.identity()
		if err != nil {
			return err
		}
		pid, err := peer.Pid(n.socket)
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		time.Sleep(time.Second) // the time that nobody serves is what is tested
		if err := n.up(); err != nil {
			return err
		}
		time.Sleep(3 * time.Second) // a kubelet that lists containers wrongly now restarts them now
		after, err := n.identity()
		if err != nil {
			return err
		}
		if !slices.Equal(before, after) {
			return fmt.Errorf("containers before %v and after %v", before, after)
		}
	}
	return n.noLineLost()
}

// identity returns container ID and restart count of what must not notice a restart of the server.
func (n *node) identity() ([]string, error) {
	var ids []string
	for pod, names := range map[string][]string{"basic": {"web", "side"}, "logger": {"logger"}} {
		var c []string
		err := n.eventually(func() error {
			p, err := n.pod(pod)
			if err != nil {
				return err
			}
			c = nil
			for _, name := range names {
				s := p.container(name)
				if s.State.Running == nil {
					return fmt.Errorf("%s is not running: %+v", name, s.State)
				}
				c = append(c, fmt.Sprintf("%s %s %d", name, s.ContainerID, s.RestartCount))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, c...)
	}
	slices.Sort(ids)
	return ids, nil
}

func (n *node) noLineLost() error {
	logs, err := filepath.Glob("/var/log/pods/default_logger-node_*/logger/*.log*")
	if err != nil || len(logs) == 0 {
		return fmt.Errorf("no logs of the logger: %w", errors.Join(err))
	}
	// Rotated files carry their time in the name ("0.log.20261120-183653", later compressed to ".gz"); the
	// current one is the last.
	slices.SortFunc(logs, func(a, b string) int {
		if x, y := strings.HasSuffix(a, ".log"), strings.HasSuffix(b, ".log"); x != y {
			return map[bool]int{true: 1, false: -1}[x]
		}
		return strings.Compare(a, b)
	})
	next := 0
	for _, path := range logs {
		if next, err = readLog(path, next); err != nil {
			return err
		}
	}
	if next < 50000 {
		return fmt.Errorf("only %d lines: the logger is too slow to prove anything", next)
	}
	fmt.Printf("   %d lines, none lost\n", next)
	return nil
}

// readLog checks that a log goes on with the line next, and returns the one after its last.
func readLog(path string, next int) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
	}
	s := bufio.NewScanner(r)
	for ; s.Scan(); next++ {
		if line := s.Text(); !strings.HasSuffix(line, fmt.Sprintf("stdout F line %d", next)) {
			return 0, fmt.Errorf("%s: %.100q where line %d was due", path, line, next)
		}
	}
	return next, s.Err()
}

func (n *node) gone() error {
	for _, pod := range []string{"basic", "logger"} {
		if err := os.Remove(filepath.Join(n.manifests, pod+".yaml")); err != nil {
			return err
		}
	}
	return n.eventually(func() error {
		for _, pod := range []string{"basic", "logger"} {
			if _, err := n.pod(pod); err == nil {
				return fmt.Errorf("pod %s is still there", pod)
			}
		}
		out, err := exec.CommandContext(n.ctx, "bin/cri-server", "--socket", n.socket, "ps", "-q").CombinedOutput()
		if err == nil && len(out) > 0 {
			err = fmt.Errorf("containers that still run: %s", out)
		}
		return err
	})
}
