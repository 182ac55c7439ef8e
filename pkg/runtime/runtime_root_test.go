//go:build root

package runtime_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
)

func TestMain(m *testing.M) { testroot.Main(m) }

// spec is a plain container configuration that runs a shell script.
func spec(root, script string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_MKNOD", "CAP_NET_BIND_SERVICE"}
	return &specs.Spec{
		Hostname: "box",
		Root:     &specs.Root{Path: root},
		Process: &specs.Process{
			Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "A=b"}, Cwd: "/",
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/nothing"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// result is what a container did.
type result struct {
	out, err string
	code     int
}

// launchPrepared starts p and waits for its end.
func launchPrepared(t *testing.T, p *runtime.Prepared) (result, error) {
	t.Helper()
	return launchWatched(t, p, make(chan int, 1))
}

// launchWatched is launchPrepared that tells the pid once the process runs.
func launchWatched(t *testing.T, p *runtime.Prepared, pid chan<- int) (result, error) {
	t.Helper()
	defer p.Close()
	or, ow, _ := os.Pipe()
	er, ew, _ := os.Pipe()
	defer or.Close()
	defer er.Close()
	proc, err := launch.Start(&p.Request, p.Files, [3]*os.File{nil, ow, ew})
	ow.Close()
	ew.Close()
	if err != nil {
		return result{}, p.Explain(err)
	}
	defer proc.Close()
	pid <- proc.Pid
	if p.Request.Gate {
		if err := proc.Release(); err != nil {
			return result{}, p.Explain(err)
		}
	}
	var stderr bytes.Buffer
	done := make(chan struct{})
	go func() { io.Copy(&stderr, er); close(done) }()
	out, _ := io.ReadAll(or)
	<-done
	ws, err := proc.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return result{string(out), stderr.String(), launch.ExitCode(ws)}, nil
}

func run(t *testing.T, o runtime.Options) (result, error) {
	t.Helper()
	if o.ID == "" {
		o.ID = "test"
	}
	o.Clamp = true
	p, err := runtime.Prepare(context.Background(), o)
	if err != nil {
		return result{}, err
	}
	r, err := launchPrepared(t, p)
	if err != nil && os.Getenv("CRI_PROGRAM_TEXT") != "" {
		t.Logf("%v\n%s", err, p.Text())
	}
	return r, err
}

func TestHello(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	r, err := run(t, runtime.Options{Spec: spec(root, "echo hi; exit 7")})
	if err != nil || r.out != "hi\n" || r.code != 7 {
		t.Fatalf("got %+v, %v", r, err)
	}
}

// started is a container that runs.
type started struct {
	*launch.Process
	spec *specs.Spec
	out  *os.File
}

// begin starts a container and leaves it running; its stdout is read from out.
func begin(t *testing.T, o runtime.Options) *started {
	t.Helper()
	if o.ID == "" {
		o.ID = "test"
	}
	o.Clamp = true
	p, err := runtime.Prepare(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return &started{startPrepared(t, p), o.Spec, nil}
}

// startPrepared starts p with no stdio and ends it with the test.
func startPrepared(t *testing.T, p *runtime.Prepared) *launch.Process {
	t.Helper()
	defer p.Close()
	proc, err := launch.Start(&p.Request, p.Files, [3]*os.File{})
	if err != nil {
		t.Fatal(p.Explain(err))
	}
	t.Cleanup(func() {
		proc.Kill(unix.SIGKILL)
		proc.Wait()
		proc.Close()
	})
	return proc
}

// exec runs a script in a container and returns what it did.
func (s *started) exec(t *testing.T, script string, change ...func(o *runtime.ExecOptions)) (result, error) {
	t.Helper()
	proc := *s.spec.Process
	proc.Args = []string{"sh", "-c", script}
	o := runtime.ExecOptions{ID: "test", Spec: s.spec, Process: &proc, Pid: s.Pid, Clamp: true}
	for _, f := range change {
		f(&o)
	}
	p, err := runtime.PrepareExec(context.Background(), o)
	if err != nil {
		return result{}, err
	}
	return launchPrepared(t, p)
}

// has fails the test unless out holds every line.
func has(t *testing.T, out string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains("\n"+out, "\n"+l+"\n") {
			t.Errorf("no line %q in:\n%s", l, out)
		}
	}
}
