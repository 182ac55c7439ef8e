//go:build root

package pods

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// on is a call on the object of an id.
type on func(f *fixtures, id string) error

// calls are those that name one object. What they do not find is an error or, where the call makes an object go, is not.
var podCalls, podEnds, containerCalls, containerEnds = map[string]on{
	"PodSandboxStatus": func(f *fixtures, id string) error {
		_, err := f.rt.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
		return err
	},
	"PodSandboxStats": func(f *fixtures, id string) error {
		_, err := f.rt.PodSandboxStats(f.ctx, &cri.PodSandboxStatsRequest{PodSandboxId: id})
		return err
	},
	"PortForward": func(f *fixtures, id string) error {
		_, err := f.rt.PortForward(f.ctx, &cri.PortForwardRequest{PodSandboxId: id, Port: []int32{80}})
		return err
	},
	"UpdatePodSandboxResources": func(f *fixtures, id string) error {
		_, err := f.rt.UpdatePodSandboxResources(f.ctx, &cri.UpdatePodSandboxResourcesRequest{PodSandboxId: id})
		return err
	},
}, map[string]on{
	"StopPodSandbox": func(f *fixtures, id string) error {
		_, err := f.rt.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		return err
	},
	"RemovePodSandbox": func(f *fixtures, id string) error {
		_, err := f.rt.RemovePodSandbox(f.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	},
}, map[string]on{
	"StartContainer": func(f *fixtures, id string) error { return f.tryStart(id) },
	"ContainerStatus": func(f *fixtures, id string) error {
		_, err := f.rt.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: id})
		return err
	},
	"ContainerStats": func(f *fixtures, id string) error {
		_, err := f.rt.ContainerStats(f.ctx, &cri.ContainerStatsRequest{ContainerId: id})
		return err
	},
	"UpdateContainerResources": func(f *fixtures, id string) error {
		return f.update(id, &cri.LinuxContainerResources{CpuShares: 100})
	},
	"ReopenContainerLog": func(f *fixtures, id string) error {
		_, err := f.rt.ReopenContainerLog(f.ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
		return err
	},
	"ExecSync": func(f *fixtures, id string) error { return f.execSync(id, 1, "true") },
	"Exec": func(f *fixtures, id string) error {
		_, err := f.rt.Exec(f.ctx, &cri.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
		return err
	},
	"Attach": func(f *fixtures, id string) error {
		_, err := f.rt.Attach(f.ctx, &cri.AttachRequest{ContainerId: id, Stdout: true})
		return err
	},
}, map[string]on{
	"StopContainer": func(f *fixtures, id string) error {
		_, err := f.rt.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: id})
		return err
	},
	"RemoveContainer": func(f *fixtures, id string) error {
		_, err := f.rt.RemoveContainer(f.ctx, &cri.RemoveContainerRequest{ContainerId: id})
		return err
	},
}

func (f *fixtures) update(id string, r *cri.LinuxContainerResources) error {
	_, err := f.rt.UpdateContainerResources(f.ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

func (f *fixtures) execSync(id string, timeout int64, cmd ...string) error {
	_, err := f.rt.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: timeout})
	return err
}

// badCalls are calls on objects that are not there, or not in the state for it, or with fields that contradict.
func badCalls() []bad {
	const invalid, absent, state, fine = codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OK
	var out []bad
	each := func(calls map[string]on, what string, code codes.Code, words string, id func(f *fixtures) string) {
		for name, call := range calls {
			out = append(out, bad{name + "/" + what, func(f *fixtures) error { return call(f, id(f)) }, code, words})
		}
	}
	none, gone := func(*fixtures) string { return "" }, func(f *fixtures) string { return f.gone }
	climbs := func(f *fixtures) string { return "../../" + f.running }
	for calls, field := range map[*map[string]on]string{&podCalls: "pod_sandbox_id", &podEnds: "pod_sandbox_id", &containerCalls: "container_id", &containerEnds: "container_id"} {
		each(*calls, "no id", invalid, field, none)
	}
	each(podCalls, "absent", absent, "000000", gone)
	each(containerCalls, "absent", absent, "000000", gone)
	each(containerCalls, "path", absent, "", climbs)
	each(podEnds, "absent", fine, "", gone)
	each(containerEnds, "absent", fine, "", gone)
	each(podEnds, "path", fine, "", climbs)
	each(containerEnds, "path", fine, "", climbs)
	exited := func(f *fixtures) string { return f.exited }
	created := func(f *fixtures) string { return f.created }
	for _, name := range []string{"StartContainer", "UpdateContainerResources", "ReopenContainerLog", "ExecSync", "Exec", "Attach"} {
		each(map[string]on{name: containerCalls[name]}, "exited", state, "exited", exited)
	}
	for _, name := range []string{"ReopenContainerLog", "ExecSync", "Exec", "Attach"} {
		each(map[string]on{name: containerCalls[name]}, "created", state, "created", created)
	}
	each(map[string]on{"StartContainer": containerCalls["StartContainer"]}, "running", state, "running", func(f *fixtures) string { return f.running })
	each(map[string]on{"PortForward": podCalls["PortForward"]}, "stopped", state, "ready", func(f *fixtures) string { return f.stopped })
	call := func(name string, code codes.Code, words string, do func(f *fixtures) error) {
		out = append(out, bad{name, do, code, words})
	}
	exec := func(name, words string, req *cri.ExecRequest) {
		call("Exec/"+name, invalid, words, func(f *fixtures) error { req.ContainerId = f.running; _, err := f.rt.Exec(f.ctx, req); return err })
	}
	exec("no command", "cmd", &cri.ExecRequest{Stdout: true})
	exec("no stream", "stdout", &cri.ExecRequest{Cmd: []string{"true"}})
	exec("terminal with stderr", "stderr", &cri.ExecRequest{Cmd: []string{"true"}, Tty: true, Stdout: true, Stderr: true})
	attach := func(name, words string, id func(*fixtures) string, req *cri.AttachRequest) {
		call("Attach/"+name, invalid, words, func(f *fixtures) error { req.ContainerId = id(f); _, err := f.rt.Attach(f.ctx, req); return err })
	}
	attach("no stream", "stdout", func(f *fixtures) string { return f.running }, &cri.AttachRequest{})
	attach("terminal where is none", "tty", func(f *fixtures) string { return f.running }, &cri.AttachRequest{Stdout: true, Tty: true})
	attach("no terminal where is one", "tty", func(f *fixtures) string { return f.terminal }, &cri.AttachRequest{Stdout: true})
	call("ExecSync/no command", invalid, "cmd", func(f *fixtures) error { return f.execSync(f.running, 1) })
	call("ExecSync/timeout negative", invalid, "timeout -1", func(f *fixtures) error { return f.execSync(f.running, -1, "true") })
	call("ExecSync/timeout", codes.DeadlineExceeded, "1s", func(f *fixtures) error { return f.execSync(f.running, 1, "sleep", "1000") })
	call("ExecSync/absent command", absent, "/no/such/command", func(f *fixtures) error { return f.execSync(f.running, 1, "/no/such/command") })
	call("ExecSync/command with NUL", invalid, "cmd", func(f *fixtures) error { return f.execSync(f.running, 1, "a\x00b") })
	call("PortForward/port", invalid, "port 65536", func(f *fixtures) error {
		_, err := f.rt.PortForward(f.ctx, &cri.PortForwardRequest{PodSandboxId: f.ready, Port: []int32{80, 65536}})
		return err
	})
	call("StopContainer/timeout negative", invalid, "timeout -1", func(f *fixtures) error {
		_, err := f.rt.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: f.running, Timeout: -1})
		return err
	})
	update := func(name, words string, r *cri.LinuxContainerResources) {
		call("UpdateContainerResources/"+name, invalid, words, func(f *fixtures) error { return f.update(f.running, r) })
	}
	update("cpuset", "cpuset 4000", &cri.LinuxContainerResources{CpusetCpus: "4000", CpuShares: 700})
	for name, id := range map[string]func(f *fixtures) string{"running": func(f *fixtures) string { return f.running }, "created": created} {
		for field, r := range map[string]*cri.LinuxContainerResources{
			"cpuset_cpus":                  {CpusetCpus: "4000", CpuShares: 700},
			"cpuset_mems":                  {CpusetMems: "63"},
			"hugepage_limits[0].page_size": {HugepageLimits: []*cri.HugepageLimit{{PageSize: "16MB", Limit: 16 << 20}}},
			"unified":                      {Unified: map[string]string{"nosuch.max": "1"}},
		} {
			call("UpdateContainerResources/"+field+" "+name, invalid, "resources."+field, func(f *fixtures) error {
				before := f.status(id(f)).Resources.String()
				err := f.update(id(f), r)
				if after := f.status(id(f)).Resources.String(); after != before {
					return fmt.Errorf("a refused update changed %s to %s", before, after)
				}
				return err
			})
		}
	}
	update("quota", "cpu_quota -7", &cri.LinuxContainerResources{CpuQuota: -7, CpuShares: 700})
	start := func(name string, code codes.Code, words string, edit func(c *cri.ContainerConfig)) {
		call("StartContainer/"+name, code, words, func(f *fixtures) error {
			id, err := f.tryCreate(f.ready, containerConfig(f.config, "bad", "true", edit), f.config)
			if err != nil {
				return err
			}
			defer f.remove(id)
			err = f.tryStart(id)
			if s := f.status(id); err != nil && (s.State != cri.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || s.ExitCode == 0) {
				return fmt.Errorf("a container that was not started: %s, reason %s, exit code %d", s.State, s.Reason, s.ExitCode)
			}
			return err
		})
	}
	start("absent command", absent, "/no/such/command", noSuchCommand)
	start("absent command on PATH", absent, "nocommand $PATH", func(c *cri.ContainerConfig) { c.Command = []string{"nocommand"} })
	start("command that is a directory", invalid, "/bin", func(c *cri.ContainerConfig) { c.Command = []string{"/bin"} })
	start("command that is no program", invalid, "/etc/passwd", func(c *cri.ContainerConfig) { c.Command = []string{"/etc/passwd"} })
	start("directory mounted on a file", invalid, "/bin/busybox", func(c *cri.ContainerConfig) {
		c.Mounts = []*cri.Mount{{HostPath: "/etc", ContainerPath: "/bin/busybox"}}
	})
	start("memory that no process fits into", codes.ResourceExhausted, "memory limit 16384", func(c *cri.ContainerConfig) {
		c.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 16384}
	})
	start("working directory that is a file", invalid, "/etc/passwd", func(c *cri.ContainerConfig) { c.WorkingDir = "/etc/passwd" })
	update("memory negative", "memory_limit_in_bytes -7", &cri.LinuxContainerResources{MemoryLimitInBytes: -7})
	call("UpdateRuntimeConfig/range", invalid, "pod_cidr 10.0.0.0/99", func(f *fixtures) error {
		_, err := f.rt.UpdateRuntimeConfig(f.ctx, &cri.UpdateRuntimeConfigRequest{RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.0.0.0/99"}}})
		return err
	})
	call("RunPodSandbox/17 MiB", codes.ResourceExhausted, "", func(f *fixtures) error {
		_, err := f.tryPod(f.podConfig("bad", func(c *cri.PodSandboxConfig) { c.Annotations = map[string]string{"a": strings.Repeat("a", 17<<20)} }))
		return err
	})
	return out
}

func badImages() []bad {
	var out []bad
	pull := func(name, ref string, code codes.Code, words string) {
		out = append(out, bad{"PullImage/" + name, func(f *fixtures) error {
			ctx, cancel := context.WithTimeout(f.ctx, long)
			defer cancel()
			_, err := f.img.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
			return err
		}, code, words})
	}
	const invalid = codes.InvalidArgument
	digest := "sha256:" + strings.Repeat("0", 64)
	pull("no name", "", invalid, "image")
	pull("malformed", "registry.test/UPPER", invalid, "UPPER")
	pull("with spaces", "a b", invalid, "")
	pull("climbing", "registry.test/../../etc:1", invalid, "")
	pull("short digest", "registry.test/busybox@sha256:00", invalid, "sha256:00")
	pull("digest with a path", "registry.test/busybox@sha256:../../../../etc/passwd", invalid, "")
	pull("absent tag", "registry.test/busybox:none", codes.NotFound, "busybox:none")
	pull("absent digest", "registry.test/busybox@"+digest, codes.NotFound, digest)
	out = append(out, bad{"RemoveImage/no name", func(f *fixtures) error {
		_, err := f.img.RemoveImage(f.ctx, &cri.RemoveImageRequest{})
		return err
	}, invalid, "image"}, bad{"RemoveImage/absent", func(f *fixtures) error {
		_, err := f.img.RemoveImage(f.ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: "registry.test/none:1"}})
		return err
	}, codes.OK, ""}, bad{"ImageStatus/no name", func(f *fixtures) error {
		_, err := f.img.ImageStatus(f.ctx, &cri.ImageStatusRequest{})
		return err
	}, invalid, "image"}, bad{"ImageStatus/absent", func(f *fixtures) error {
		r, err := f.img.ImageStatus(f.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "registry.test/none:1"}})
		if r.GetImage() != nil {
			return fmt.Errorf("an absent image is %v", r.Image)
		}
		return err
	}, codes.OK, ""})
	return out
}

// TestRefusedUpdateChangesNothing holds that an update of several limits is all or nothing.
func TestRefusedUpdateChangesNothing(t *testing.T) {
	f := newFixtures(t)
	before := f.status(f.running).Resources.String()
	for name, r := range map[string]*cri.LinuxContainerResources{
		"a CPU that is not there": {CpuShares: 777, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 32 << 20, CpusetCpus: "4000"},
		"no room":                 {CpuShares: 777, MemoryLimitInBytes: 4096},
	} {
		if err := f.update(f.running, r); status.Code(err) == codes.OK {
			t.Errorf("%s: it is accepted", name)
		}
		if after := f.status(f.running).Resources.String(); after != before {
			t.Errorf("%s: %s, was %s", name, after, before)
		}
		if got := f.exec(f.running, "echo ok"); got != "ok" {
			t.Errorf("%s: exec says %q", name, got)
		}
	}
	f.removeAll()
}

// TestRefusedReopenMakesNoFile is a log rotation of a container that does not run.
func TestRefusedReopenMakesNoFile(t *testing.T) {
	f := newFixtures(t)
	for _, id := range []string{f.exited, f.created} {
		path := f.status(id).LogPath
		_ = os.Rename(path, path+".1")
		if _, err := f.rt.ReopenContainerLog(f.ctx, &cri.ReopenContainerLogRequest{ContainerId: id}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%v", err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was made", filepath.Base(path))
		}
	}
	f.removeAll()
}

// TestCancelledCalls gives up on requests at all sorts of moments, those right around the answer among them: what was
// half made goes away, or the same request finds it. None finds its name taken by what nobody heard of.
func TestCancelledCalls(t *testing.T) {
	n := newNode(t)
	unheard := 0
	// short calls, and gives up after the limit: the server knows of no time limit. Who was not answered asks again.
	short := func(limit time.Duration, call func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(n.ctx)
		defer cancel()
		defer time.AfterFunc(limit, cancel).Stop()
		if err := call(ctx); err == nil {
			return
		}
		unheard++
		if err := call(n.ctx); err != nil {
			t.Fatal(err)
		}
	}
	took := func(call func() error) time.Duration {
		begin := time.Now()
		if err := call(); err != nil {
			t.Fatal(err)
		}
		return time.Since(begin)
	}
	usual := took(func() error { _, err := n.tryPod(n.configA()); return err })
	n.removeAll()
	for i := range 16 {
		at := func(d time.Duration) time.Duration { return d * time.Duration(5+10*i) / 100 } // from the beginning to well after
		config, pod, id := n.configA(), "", ""
		short(at(usual), func(ctx context.Context) error {
			r, err := n.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
			pod = r.GetPodSandboxId()
			return err
		})
		short(at(usual)/4, func(ctx context.Context) error {
			c := containerConfig(config, "one", "exec sleep 1000")
			r, err := n.rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
			id = r.GetContainerId()
			return err
		})
		short(at(usual)/4, func(ctx context.Context) error {
			_, err := n.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id})
			return err
		})
		short(at(usual)/2, func(ctx context.Context) error {
			_, err := n.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		})
		n.removePod(pod)
	}
	if unheard == 0 {
		t.Error("every call was answered in time")
	}
	n.clean()
}
