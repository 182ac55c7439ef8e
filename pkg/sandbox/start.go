package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// startJob is a StartContainer on its way.
type startJob struct {
	m       *Manager
	rec     *containerRecord
	pod     *podRecord
	live    *liveContainer
	spec    *specs.Spec
	rootfs  *os.File
	volumes map[int]*os.File
	log     *os.File
	dir     *os.File
	pid     int
}

// startTable launches a created container.
var startTable = table[*startJob]{"StartContainer", []stage[*startJob]{
	{{"bundle", (*startJob).bundle}},
	{{"rootfs", (*startJob).mountRootfs}, {"cgroup", (*startJob).cgroup}, {"log", (*startJob).openLog}},
	{{"launch", (*startJob).launch}},
	{{"record", (*startJob).record}},
}}

// StartContainer launches a created container. When it returns without error the container's process is about to
// execute what the request named, or has, and its log file exists. A container that cannot be launched is exited,
// with 128 and reason StartError.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	rec, err := m.containerRec(id)
	if err != nil {
		return err
	}
	err = m.finish(ctx, rec.ID, func(ctx context.Context) error { return m.startContainer(ctx, rec.ID) })
	if err == nil {
		m.live.container(rec.ID).answers.started.give(ctx)
	}
	return err
}

func (m *Manager) startContainer(ctx context.Context, id string) error {
	c := m.snap.Load().containers[id]
	if c == nil {
		return errs.New(errs.NotFound, "container %s: no such container", id)
	}
	if c.rec.running() && !m.live.container(id).answers.started.heard() {
		return nil // the answer to an earlier request was lost
	}
	if state := c.pub.State(); state != Created || c.rec.Removing {
		return errs.New(errs.Conflict, "start container %s: it is %s. Only a created container can be started", id, state)
	}
	p := m.snap.Load().pods[c.rec.PodID]
	if p == nil || !p.rec.ready() {
		return errs.New(errs.Conflict, "start container %s: its pod %s is not ready. Run a new pod", id, c.rec.PodID)
	}
	j := &startJob{m: m, rec: c.rec, pod: p.rec, live: m.live.container(id)}
	err := startTable.run(ctx, m, j)
	j.close()
	if err == nil {
		j.started()
		return nil
	}
	undo, cancel := m.detached(ctx)
	defer cancel()
	if terr := m.teardownContainer(undo, id); terr != nil {
		m.logger(ctx).Error(terr, "Tore down a container that did not start only in part", "container", id)
	}
	j.live.settle()
	_, rerr := m.updateContainer(id, func(r *containerRecord) bool {
		if r.exited() {
			return false
		}
		r.FinishedAt, r.ExitCode, r.Reason, r.Message = time.Now(), 128, "StartError", err.Error()
		return true
	}, EventStopped)
	if rerr != nil {
		m.logger(ctx).Error(rerr, "Recorded no failed start", "container", id)
	}
	return fmt.Errorf("start container %s: %w", id, err)
}

// started commits the exit of a container that was faster than its start.
func (j *startJob) started() {
	if e := j.live.settle(); e != nil {
		j.m.commitExit(j.rec.ID, *e, "", "")
	}
}

func (j *startJob) bundle(context.Context) (err error) {
	j.spec, j.rootfs, j.volumes = j.live.takeFiles()
	if j.spec == nil {
		if j.spec, err = j.m.readSpec(j.rec); err != nil {
			return err
		}
	}
	j.dir, err = os.Open(j.m.dirs.bundle(j.rec.PodID, j.rec.ID))
	return err
}

func (j *startJob) mountRootfs(ctx context.Context) error {
	if j.rootfs != nil {
		return nil
	}
	userns, err := j.m.userns(j.pod)
	if err != nil {
		return err
	}
	if userns != nil {
		defer userns.Close()
	}
	if j.rootfs, err = j.m.images.MountRootfs(ctx, j.rec.ID, userns); err != nil {
		return err
	}
	j.volumes = map[int]*os.File{}
	for _, v := range j.rec.Volumes {
		f, err := j.m.images.MountImage(ctx, j.rec.ID, v.ImageID, v.SubPath, userns)
		if err != nil {
			return volumeError(err)
		}
		j.volumes[v.Index] = f
	}
	return nil
}

func (j *startJob) cgroup(ctx context.Context) error {
	var res *specs.LinuxResources
	if j.spec.Linux != nil {
		res = j.spec.Linux.Resources
	}
	return j.m.shims.MakeCgroup(ctx, j.rec.CgroupPath, res)
}

func (j *startJob) openLog(context.Context) (err error) {
	if j.rec.LogPath == "" {
		return nil
	}
	j.log, _, err = openLog(j.pod.Config.M.GetLogDirectory(), j.rec.Config.M.GetLogPath())
	return err
}

// openLog opens the log file rel below dir for appending, making it and its directories. made says that the file is new.
func openLog(dir, rel string) (f *os.File, made bool, err error) {
	rel = filepath.Clean(rel)
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, false, fmt.Errorf("open log directory: %w", err)
	}
	defer d.Close()
	if parent := filepath.Dir(rel); parent != "." {
		p, err := sys.MkdirAllInRoot(d, parent, 0o755)
		if err != nil {
			return nil, false, fmt.Errorf("open log %s below %s: %w", rel, dir, err)
		}
		p.Close()
	}
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err = sys.OpenAt(d, rel, flags|unix.O_EXCL, 0o640, sys.Beneath)
	made = err == nil
	if errors.Is(err, unix.EEXIST) {
		f, err = sys.OpenAt(d, rel, flags, 0o640, sys.Beneath)
	}
	if err != nil {
		return nil, false, fmt.Errorf("open log %s below %s: %w", rel, dir, err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, false, errs.New(errs.Invalid, "open log %s below %s: it is not a regular file", rel, dir)
	}
	return f, made, nil
}

func (j *startJob) launch(ctx context.Context) error {
	shim, err := j.m.shimOf(j.rec.PodID)
	if err != nil {
		return err
	}
	j.live.reset()
	j.live.begin()
	c := j.rec.Config.M
	j.pid, err = shim.Start(ctx, &StartRequest{
		ID: j.rec.ID, PodID: j.rec.PodID, HolderPid: j.pod.HolderPid, Spec: j.spec, Bundle: j.m.dirs.bundle(j.rec.PodID, j.rec.ID), HostIPC: j.pod.hostIPC(), Rootfs: j.rootfs, Mounts: j.volumes,
		CgroupPath: j.rec.CgroupPath, Log: j.log, Stdin: c.GetStdin(), StdinOnce: c.GetStdinOnce(), TTY: c.GetTty(), Dir: j.dir,
		HoldOutput: c.GetAnnotations()[HoldOutput] == "true",
	})
	return err
}

func (j *startJob) record(context.Context) error {
	_, err := j.m.updateContainer(j.rec.ID, func(r *containerRecord) bool {
		r.StartedAt, r.Pid = time.Now(), j.pid
		return true
	}, EventStarted)
	return err
}

func (j *startJob) close() {
	sys.CloseAll([]*os.File{j.rootfs, j.log, j.dir})
	closeMap(j.volumes)
}
