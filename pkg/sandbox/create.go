package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/image"
	"github.com/cri-server/cri-server/pkg/oci"
	"github.com/cri-server/cri-server/pkg/store"
	"github.com/cri-server/cri-server/pkg/sys"
)

// createJob is a CreateContainer on its way.
type createJob struct {
	m       *Manager
	config  *cri.ContainerConfig
	pod     *podRecord
	rec     containerRecord
	image   *image.Image
	spec    *specs.Spec
	vols    []oci.ImageVolume
	rootfs  *os.File
	userns  *os.File
	volumes map[int]*os.File
}

// createTable makes a container that StartContainer can start. Nothing of it runs.
var createTable = table[*createJob]{"CreateContainer", []stage[*createJob]{
	{{"intent", (*createJob).intent}},
	{{"rootfs", (*createJob).makeRootfs}},
	{{"translate", (*createJob).translate}},
	{{"volumes", (*createJob).mountVolumes}},
	{{"bundle", (*createJob).writeBundle}},
	{{"record", (*createJob).record}},
}}

// CreateContainer makes a container in a ready pod and returns its ID. A retried request joins the one in flight; a
// name and attempt that the pod has already is errs.Exists. podConfig is not looked at: the pod's own counts.
func (m *Manager) CreateContainer(ctx context.Context, podID string, config *cri.ContainerConfig, _ *cri.PodSandboxConfig) (string, error) {
	pod, err := m.podRec(podID)
	if err != nil {
		return "", err
	}
	md := config.GetMetadata()
	if md.GetName() == "" {
		return "", errs.New(errs.Invalid, "create container in pod %s: config.metadata.name is empty", pod.ID)
	}
	key := fmt.Sprintf("container/%s/%s/%d", pod.ID, md.GetName(), md.GetAttempt())
	id, err := m.joins.join(ctx, key, m.goDo, func(ctx context.Context) (string, error) {
		return m.createContainer(ctx, pod.ID, config)
	})
	if err == nil {
		m.live.container(id).answers.made.give(ctx)
	}
	return id, err
}

func (m *Manager) createContainer(ctx context.Context, podID string, config *cri.ContainerConfig) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	id := newID()
	unlock, err := m.ops.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	same, err := m.sameContainer(ctx, podID, config)
	if same != "" || err != nil {
		return same, err
	}
	j := &createJob{m: m, config: config, rec: containerRecord{ID: id, PodID: podID, BootID: m.cfg.BootID}}
	j.rec.Config.M = config
	err = createTable.run(ctx, m, j)
	j.closeUserns()
	if err == nil {
		m.live.container(id).leaveFiles(j.spec, j.rootfs, j.volumes)
		return id, nil
	}
	j.closeFiles()
	undo, undone := m.detached(ctx)
	defer undone()
	if terr := m.dropContainer(undo, id); terr != nil {
		m.logger(ctx).Error(terr, "Left a half-made container to the next start", "container", id)
	}
	return "", createError(config.GetMetadata().GetName(), podID, err)
}

// sameContainer looks for a container with the metadata of config. What is left of a failed request gives way; a
// created container whose answer may have been lost answers the same request.
func (m *Manager) sameContainer(ctx context.Context, podID string, config *cri.ContainerConfig) (string, error) {
	want := config.GetMetadata()
	for _, c := range m.snap.Load().containersOf(podID) {
		md := c.Config.M.GetMetadata()
		if md.GetName() != want.GetName() || md.GetAttempt() != want.GetAttempt() {
			continue
		}
		if c.creating() { // what an earlier failure could not take away
			if err := m.dropContainer(ctx, c.ID); err != nil {
				return "", err
			}
			continue
		}
		lost := !m.live.container(c.ID).answers.made.heard()
		if lost && c.StartedAt.IsZero() && !c.exited() && !c.Removing && sameRequest(c.Config.M, config) {
			return c.ID, nil
		}
		return "", errs.New(errs.Exists, "container %q, attempt %d: pod %s has it already (%s). Remove that one or raise the attempt", want.GetName(), want.GetAttempt(), podID, c.ID)
	}
	return "", nil
}

// sameRequest compares two configurations but for what a record leaves out.
func sameRequest(a, b *cri.ContainerConfig) bool {
	strip := func(c *cri.ContainerConfig) proto.Message {
		d, _ := proto.Clone(c).(*cri.ContainerConfig)
		d.Envs = nil
		return d
	}
	return proto.Equal(strip(a), strip(b))
}

func (j *createJob) intent(ctx context.Context) (err error) {
	ref := j.config.GetImage().GetImage()
	if j.image, err = j.m.images.Get(ref); err != nil {
		return err
	}
	j.rec.ImageID, j.rec.ImageRef = j.image.ID, j.image.ID
	if len(j.image.RepoDigests) > 0 {
		j.rec.ImageRef = j.image.RepoDigests[0]
	}
	unlock, err := j.m.ops.lock(ctx, j.rec.PodID)
	if err != nil {
		return err
	}
	defer unlock()
	s := j.m.snap.Load().pods[j.rec.PodID]
	if s == nil {
		return errs.New(errs.NotFound, "pod %s: no such pod", j.rec.PodID)
	}
	if !s.rec.ready() {
		return errs.New(errs.Conflict, "pod %s: it is not ready. Run a new pod", j.rec.PodID)
	}
	j.pod = s.rec
	if j.rec.LogPath, err = logPath(j.pod.Config.M, j.config); err != nil {
		return err
	}
	if err := j.m.checkLimits(j.pod, j.config.GetLinux().GetResources()); err != nil {
		return err
	}
	j.rec.CgroupPath = leaf(j.pod.CgroupParent, j.rec.ID, j.pod.scoped())
	uids, gids := oci.UserNamespace(j.pod.Config.M)
	j.rec.RootUID, j.rec.RootGID = hostID(uids), hostID(gids)
	rec := j.rec
	return j.m.insert(change{container: &rec})
}

// hostID is the host's id of the container's 0.
func hostID(maps []specs.LinuxIDMapping) uint32 {
	for _, m := range maps {
		if m.ContainerID == 0 {
			return m.HostID
		}
	}
	return 0
}

// logPath joins and checks the two halves of a container's log path; "" is no log.
func logPath(pod *cri.PodSandboxConfig, config *cri.ContainerConfig) (string, error) {
	dir, rel := pod.GetLogDirectory(), config.GetLogPath()
	if dir == "" || rel == "" {
		return "", nil
	}
	path := filepath.Join(dir, rel)
	switch {
	case !filepath.IsLocal(rel) || strings.ContainsRune(rel, 0):
		return "", errs.New(errs.Invalid, "config.log_path %.200q: it has to stay below the pod's log_directory", rel)
	case filepath.Clean(rel) == ".":
		return "", errs.New(errs.Invalid, "config.log_path %q: it names the pod's log_directory and no file in it", rel)
	case len(path) >= unix.PathMax || slices.ContainsFunc(strings.Split(rel, "/"), func(part string) bool { return len(part) > unix.NAME_MAX }):
		return "", errs.New(errs.Invalid, "config.log_path %.200q: of its %d bytes, and those of log_directory, the kernel takes %d in all and %d between two slashes", rel, len(rel), unix.PathMax-1, unix.NAME_MAX)
	}
	return path, nil
}

func (j *createJob) makeRootfs(ctx context.Context) (err error) {
	if err := j.m.images.CreateRootfs(ctx, j.rec.ID, j.rec.ImageID, j.rec.RootUID, j.rec.RootGID); err != nil {
		return err
	}
	if j.userns, err = j.m.userns(j.pod); err != nil {
		return err
	}
	if j.rootfs, err = j.m.images.MountRootfs(ctx, j.rec.ID, j.userns); err != nil {
		return err
	}
	return j.makeVolumes()
}

// maxVolumes is how many volumes an image may declare: more are a mistake, or an attack on the time of a create.
const maxVolumes = 256

// makeVolumes makes the directories that the image declares as volumes and does not contain, in the container's
// writable layer: nothing keeps what is written there longer than the container. Where the request mounts something
// there is nothing to be made, for that may be a file.
func (j *createJob) makeVolumes() error {
	if len(j.image.Config.Volumes) > maxVolumes {
		return errs.New(errs.Invalid, "image volumes: %d are declared, %d are supported", len(j.image.Config.Volumes), maxVolumes)
	}
	for _, v := range slices.Sorted(maps.Keys(j.image.Config.Volumes)) {
		dest := filepath.Join("/", v)
		if slices.ContainsFunc(j.config.GetMounts(), func(m *cri.Mount) bool { return filepath.Join("/", m.GetContainerPath()) == dest }) {
			continue
		}
		if err := j.makeVolume(dest); err != nil {
			return fmt.Errorf("make the image's volume %.200q: %w", v, err)
		}
	}
	return nil
}

// makeVolume makes a directory and its parents, all root's, unless they are there. Where the image has something else
// than directories the volume is left out.
func (j *createJob) makeVolume(dest string) error {
	for i := range len(dest) {
		if rest := dest[i+1:]; rest != "" && rest[0] != '/' {
			continue
		}
		err := j.makeDir(dest[:i+1])
		switch {
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG):
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

func (j *createJob) makeDir(name string) error {
	if d, err := sys.OpenAt(j.rootfs, name, unix.O_PATH|unix.O_DIRECTORY, 0, sys.InRoot); !errors.Is(err, unix.ENOENT) {
		d.Close() // nil is no harm
		return err
	}
	d, err := sys.MkdirAllInRoot(j.rootfs, name, 0o755)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := os.Chown(sys.FDPath(d), int(j.rec.RootUID), int(j.rec.RootGID)); err != nil {
		return err
	}
	return os.Chmod(sys.FDPath(d), 0o755) //nolint:gosec // not what the umask of the daemon makes of it
}

// userns opens the pod's user namespace; nil when it shares the host's.
func (m *Manager) userns(pod *podRecord) (*os.File, error) {
	if uids, _ := oci.UserNamespace(pod.Config.M); len(uids) == 0 {
		return nil, nil
	}
	return m.shims.Namespace(pod.HolderPid, "user")
}

func (j *createJob) translate(ctx context.Context) error {
	out, err := oci.Container(ctx, &oci.ContainerInput{
		ID: j.rec.ID, Config: j.config, Pod: j.pod.Config.M, Image: &j.image.Config, Rootfs: j.rootfs,
		CgroupsPath: j.rec.CgroupPath, Namespaces: j.m.namespaces(j.pod), TargetPID: j.m.targetPID(j.pod, j.config),
		Files: j.m.podFiles(j.pod), CDI: j.m.cfg.Translate.CDI,
		Defaults: &j.m.cfg.Translate.Defaults, Host: &j.m.cfg.Translate.Host,
	})
	if err != nil {
		return err
	}
	j.spec, j.vols = out.Spec, out.ImageVolumes
	if err := j.m.placeHooks(j.rec.PodID, j.rec.ID, j.spec); err != nil {
		return err
	}
	j.rec.User.M, j.rec.StopSignal = out.User, out.StopSignal
	for _, mnt := range out.Mounts {
		j.rec.Mounts = append(j.rec.Mounts, message[*cri.Mount]{mnt})
	}
	j.rec.Resources.M, _ = proto.Clone(j.config.GetLinux().GetResources()).(*cri.LinuxContainerResources)
	return nil
}

// mountVolumes mounts image volumes already now, so that what is wrong with them fails the request that names them.
func (j *createJob) mountVolumes(ctx context.Context) error {
	j.volumes = map[int]*os.File{}
	for _, v := range j.vols {
		img, err := j.m.images.Get(v.Image)
		if err != nil {
			return volumeError(err)
		}
		f, err := j.m.images.MountImage(ctx, j.rec.ID, img.ID, v.SubPath, j.userns)
		if err != nil {
			return volumeError(err)
		}
		j.volumes[v.Index] = f
		j.rec.Mounts[v.Request].M.Image.ImageRef = img.ID
		j.rec.Volumes = append(j.rec.Volumes, volume{v.Index, img.ID, v.SubPath})
	}
	return nil
}

// volumeFailure is an error of an image volume. A kubelet knows it by the word that the whole message begins with.
type volumeFailure struct{ err error }

func (e *volumeFailure) Error() string {
	if text := e.err.Error(); strings.HasPrefix(text, image.VolumeFailed) {
		return text
	}
	return image.VolumeFailed + ": " + e.err.Error()
}

func (e *volumeFailure) Unwrap() error { return e.err }

func volumeError(err error) error { return &volumeFailure{err} }

func (j *createJob) writeBundle(context.Context) error {
	if err := os.MkdirAll(j.m.dirs.bundle(j.rec.PodID, j.rec.ID), 0o700); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if j.spec.Root.Path != "" { // hooks find the root filesystem there
		if err := os.Mkdir(j.spec.Root.Path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make bundle: %w", err)
		}
	}
	return j.m.writeSpec(j.rec.PodID, j.rec.ID, j.spec)
}

func (m *Manager) writeSpec(podID, id string, spec *specs.Spec) error {
	data, err := oci.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	return store.WriteFile(m.dirs.spec(podID, id), data, 0o600, false)
}

func (m *Manager) readSpec(rec *containerRecord) (*specs.Spec, error) {
	data, err := os.ReadFile(m.dirs.spec(rec.PodID, rec.ID))
	if err != nil {
		return nil, fmt.Errorf("read bundle of container %s: %w", rec.ID, err)
	}
	spec, err := oci.Unmarshal(data)
	if err != nil {
		return nil, fmt.Errorf("read bundle of container %s: %w", rec.ID, err)
	}
	return spec, nil
}

func (j *createJob) record(context.Context) error {
	j.rec.CreatedAt = time.Now()
	rec := j.rec
	return j.m.insert(change{container: &rec, events: []EventType{EventCreated}})
}

func (j *createJob) closeUserns() {
	if j.userns != nil {
		j.userns.Close()
	}
}

func (j *createJob) closeFiles() {
	if j.rootfs != nil {
		j.rootfs.Close()
	}
	closeMap(j.volumes)
}

// createError gives a failed create the text a kubelet looks for: prefixes it knows stay in front.
func createError(name, podID string, err error) error {
	var v *volumeFailure
	if errors.As(err, &v) || errors.Is(err, crierrors.ErrImageVolumeMountFailed) || errors.Is(err, crierrors.ErrRROUnsupported) {
		return fmt.Errorf("%w (container %q in pod %s)", err, name, podID)
	}
	return fmt.Errorf("create container %q in pod %s: %w", name, podID, err)
}

// namespaces are the paths of the pod's namespaces that its containers join.
func (m *Manager) namespaces(pod *podRecord) map[specs.LinuxNamespaceType]string {
	out := map[specs.LinuxNamespaceType]string{}
	for _, t := range podNamespaces(pod.Config.M) {
		out[t] = namespacePath(pod.HolderPid, t)
	}
	return out
}

// targetPID is the pid namespace of the container whose the new one asks to share, "" when it is not running here.
func (m *Manager) targetPID(pod *podRecord, config *cri.ContainerConfig) string {
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != cri.NamespaceMode_TARGET {
		return ""
	}
	c := m.snap.Load().containers[ns.GetTargetId()]
	if c == nil || c.rec.PodID != pod.ID || !c.rec.running() {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/pid", c.rec.Pid)
}

// podNamespaces are the namespaces that a pod's holder makes and holds.
func podNamespaces(pod *cri.PodSandboxConfig) []specs.LinuxNamespaceType {
	ns := namespaceOptions(pod)
	var out []specs.LinuxNamespaceType
	if uids, _ := oci.UserNamespace(pod); len(uids) > 0 {
		out = append(out, specs.UserNamespace)
	}
	if ns.GetNetwork() != cri.NamespaceMode_NODE {
		out = append(out, specs.NetworkNamespace, specs.UTSNamespace)
	}
	if ns.GetIpc() != cri.NamespaceMode_NODE {
		out = append(out, specs.IPCNamespace)
	}
	if ns.GetPid() == cri.NamespaceMode_POD {
		out = append(out, specs.PIDNamespace)
	}
	return out
}
