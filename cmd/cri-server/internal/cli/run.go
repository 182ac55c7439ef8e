package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/sandbox"
)

// endTime is how long the end of a container may take to be known when its terminal is gone.
const endTime = 2 * time.Second

// cleanTime is how long the removal of a container that was run may take.
const cleanTime = time.Minute

// runOptions are the flags of run.
type runOptions struct {
	stdin, tty, hostNetwork, keep bool
	env, volumes, ports           []string
	workdir, user, name           string
	privileged                    bool
}

func (a *app) run() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run IMAGE [COMMAND [ARG...]]",
		Short: "Run a container in a pod of its own, attached, and clean up after it",
		Long: "Run pulls the image where it is not there, runs one container of it in a pod of its own, connects to it, and\n" +
			"removes everything when it ends. The exit code is the container's. Where no network is configured, the default\n" +
			"network is switched on.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *client) error {
				r := &runner{app: a, c: c, o: o, image: args[0], command: args[1:]}
				code, err := r.run(cmd)
				if err == nil && code != 0 {
					err = exitCode(code)
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.stdin, "stdin", "i", false, "connect standard input")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	f.BoolVar(&o.hostNetwork, "host-network", false, "in the host's network")
	f.BoolVar(&o.privileged, "privileged", false, "with all of root's rights")
	f.BoolVar(&o.keep, "keep", false, "do not remove the pod at the end")
	f.StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE of the environment, repeatable")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "HOST:CONTAINER[:ro] to mount, repeatable")
	f.StringArrayVarP(&o.ports, "publish", "p", nil, "HOST:CONTAINER port to map, repeatable")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working directory")
	f.StringVarP(&o.user, "user", "u", "", "user, by number or name")
	f.StringVar(&o.name, "name", "", "name of the pod and of the container")
	return cmd
}

// runner is one run.
type runner struct {
	*app
	c              *client
	o              runOptions
	image          string
	command        []string
	logs           string // a directory
	pod, container string
}

func (r *runner) run(cmd *cobra.Command) (code int, err error) {
	ctx := cmd.Context()
	if err := r.ensureImage(ctx); err != nil {
		return 0, err
	}
	if err := r.ensureNetwork(cmd); err != nil {
		return 0, err
	}
	if r.logs, err = os.MkdirTemp("", logsPrefix); err != nil {
		return 0, err
	}
	if !r.o.keep { // a container that is kept goes on writing there, and "logs" reads it
		defer os.RemoveAll(r.logs)
	}
	defer func() { err = errors.Join(err, r.clean(ctx)) }()
	if err := r.create(ctx); err != nil {
		return 0, err
	}
	if _, err := r.c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: r.container}); err != nil {
		return 0, startError(err)
	}
	if err := r.stream(ctx); err != nil && ctx.Err() == nil {
		return 0, err
	}
	if ctx.Err() != nil {
		return 130, nil // interrupted: clean ends the container
	}
	return r.result(ctx)
}

func (r *runner) ensureImage(ctx context.Context) error {
	st, err := r.c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: r.image}})
	if err != nil || st.GetImage() != nil {
		return err
	}
	_, err = r.pullImage(ctx, r.c, r.image, false)
	return err
}

// ensureNetwork switches the default network on where pods would have none.
func (r *runner) ensureNetwork(cmd *cobra.Command) error {
	if r.o.hostNetwork {
		return nil
	}
	ready, _, err := networkReady(cmd, r.c)
	if err != nil || ready {
		return err
	}
	fmt.Fprintln(r.err, "cri-server: no network is configured: switching on the default one (\"cri-server network remove-default\" undoes it)")
	return r.c.admin.EnableDefaultNetwork(cmd.Context())
}

func (r *runner) create(ctx context.Context) error {
	podConfig, config, err := r.configs()
	if err != nil {
		return err
	}
	pod, err := r.c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: podConfig})
	if err != nil {
		return err
	}
	r.pod = pod.GetPodSandboxId()
	ctr, err := r.c.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: r.pod, Config: config, SandboxConfig: podConfig})
	r.container = ctr.GetContainerId()
	return err
}

// configs are what the flags ask for in the CRI's words.
func (r *runner) configs() (*cri.PodSandboxConfig, *cri.ContainerConfig, error) {
	id := randomName()
	name := r.o.name
	if name == "" {
		name = "run-" + id
	}
	network := cri.NamespaceMode_POD
	if r.o.hostNetwork {
		network = cri.NamespaceMode_NODE
	}
	ns := &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER}
	pod := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: runNamespace, Uid: id}, LogDirectory: r.logs,
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: ns, Privileged: r.o.privileged}},
	}
	if !r.o.hostNetwork {
		pod.Hostname = name
	}
	pod.Annotations = map[string]string{logsAnnotation: r.logs}
	pod.Labels = map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": pod.Metadata.Namespace, "io.kubernetes.pod.uid": id} // what crictl shows
	sc := &cri.LinuxContainerSecurityContext{NamespaceOptions: ns, Privileged: r.o.privileged, Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}}
	ctr := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: r.image, UserSpecifiedImage: r.image}, Args: r.command,
		WorkingDir: r.o.workdir, LogPath: "log", Stdin: r.o.stdin, StdinOnce: r.o.stdin, Tty: r.o.tty,
		Labels: map[string]string{"io.kubernetes.container.name": name},
		Linux:  &cri.LinuxContainerConfig{SecurityContext: sc},
	}
	if r.o.stdin && r.o.tty {
		ctr.Annotations = map[string]string{sandbox.HoldOutput: "true"}
	}
	maps.Copy(ctr.Labels, pod.Labels)
	return pod, ctr, errors.Join(setUser(sc, r.o.user), setEnv(ctr, r.o.env), setVolumes(ctr, r.o.volumes), setPorts(pod, r.o.ports))
}

// stream connects to the container until it ends. The outputs are read from the log, which has everything from
// the first byte; attaching could come too late for that. Only who types into a terminal is attached, and its output
// is held until he is.
func (r *runner) stream(ctx context.Context) error {
	l := &logReader{path: filepath.Join(r.logs, "log"), out: r.out, err: r.app.err, tail: -1}
	if !r.o.stdin {
		return l.follow(ctx, func() bool { return !r.c.runs(ctx, r.container) })
	}
	resp, err := r.c.Attach(ctx, &cri.AttachRequest{ContainerId: r.container, Stdin: true, Stdout: true, Stderr: !r.o.tty, Tty: r.o.tty})
	switch {
	case err != nil && r.c.runs(ctx, r.container):
		return err
	case err == nil && r.o.tty:
		return r.interact(ctx, resp.GetUrl(), l)
	case err == nil:
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() { _, _ = r.session(ctx, resp.GetUrl(), true, false, false) }() // ends with the container, or with ctx
	}
	return l.follow(ctx, func() bool { return !r.c.runs(ctx, r.container) })
}

// interact is at the container's terminal until it ends. One that ended before there was a connection has shown nothing
// there, and all that it wrote is in the log.
func (r *runner) interact(ctx context.Context, url string, l *logReader) error {
	shown := &counter{Writer: r.out}
	at := *r.app
	at.out = shown
	_, err := at.session(ctx, url, true, true, true)
	if shown.n > 0 || ctx.Err() != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	if e := l.follow(soon, func() bool { return !r.c.runs(soon, r.container) }); e != nil {
		return errors.Join(err, e)
	}
	if r.c.runs(ctx, r.container) {
		return err
	}
	return nil
}

// counter counts what is written.
type counter struct {
	io.Writer
	n int
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n += n
	return n, err
}

// result waits for the exit code, which comes right after the last output.
func (r *runner) result(ctx context.Context) (int, error) {
	for {
		st, err := r.c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: r.container})
		if err != nil {
			return 0, err
		}
		s := st.GetStatus()
		if s.GetState() == cri.ContainerState_CONTAINER_EXITED {
			if s.GetReason() != "Completed" && s.GetReason() != "Error" {
				fmt.Fprintf(r.app.err, "cri-server: the container ended: %s %s\n", s.GetReason(), s.GetMessage())
			}
			return int(s.GetExitCode()), nil
		}
		select {
		case <-ctx.Done():
			return 130, nil
		case <-time.After(logInterval):
		}
	}
}

// unstarted is a failure that has an exit code of its own, as other command lines and shells give it.
type unstarted struct {
	error
	code int
}

func (e *unstarted) Unwrap() error { return e.error }

const (
	codeNotExecutable = 126
	codeNotThere      = 127
)

// startError gives the failure of a container's start an exit code where the command is to blame.
func startError(err error) error {
	if !strings.Contains(status.Convert(err).Message(), "exec: ") {
		return err
	}
	switch status.Code(err) {
	case codes.NotFound:
		return &unstarted{err, codeNotThere}
	case codes.InvalidArgument:
		return &unstarted{err, codeNotExecutable}
	}
	return err
}

// failureCode is the exit code of a command line that has failed.
func failureCode(err error) int {
	var u *unstarted
	if errors.As(err, &u) {
		return u.code
	}
	return 1
}

// runNamespace is that of the pods that run makes. logsAnnotation is where one says which directory its log is in, since rm
// has to remove that of a pod that was kept.
const (
	runNamespace   = "cri-server-run"
	logsAnnotation = "cri-server.run/logs"
	logsPrefix     = "cri-server-run-"
)

// removeLogs removes the log directory of a pod that run made and kept. A pod may say what it likes: only a
// directory of run's own is removed.
func removeLogs(pod *cri.PodSandboxStatus) error {
	dir := pod.GetAnnotations()[logsAnnotation]
	if pod.GetMetadata().GetNamespace() != runNamespace || filepath.Dir(dir) != filepath.Clean(os.TempDir()) || !strings.HasPrefix(filepath.Base(dir), logsPrefix) {
		return nil
	}
	return os.RemoveAll(dir)
}

// clean removes what create made, though the run was interrupted.
func (r *runner) clean(ctx context.Context) error {
	if r.pod == "" || r.o.keep {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	if r.container != "" {
		if _, err := r.c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: r.container, Timeout: 2}); err != nil {
			return err
		}
	}
	if _, err := r.c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: r.pod}); err != nil {
		return err
	}
	_, err := r.c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: r.pod})
	return err
}

func randomName() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func setEnv(c *cri.ContainerConfig, env []string) error {
	for _, e := range env {
		k, v, ok := strings.Cut(e, "=")
		if !ok {
			v = os.Getenv(k)
		}
		if k == "" {
			return fmt.Errorf("environment (%q): it has no name. Write NAME=VALUE.", e)
		}
		c.Envs = append(c.Envs, &cri.KeyValue{Key: k, Value: []byte(v)})
	}
	return nil
}
