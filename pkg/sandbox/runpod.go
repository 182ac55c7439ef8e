package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/network"
	"github.com/cri-server/cri-server/pkg/oci"
	"github.com/cri-server/cri-server/pkg/store"
)

// runJob is a RunPodSandbox on its way.
type runJob struct {
	m     *Manager
	rec   podRecord
	netns *os.File      // the pod's network namespace, made ahead of its holder; nil: the holder makes it, or there is none
	held  chan struct{} // closed when the holder is there
}

// runPodTable makes a pod: intent first, then what may leak, then the record that says ready.
var runPodTable = table[*runJob]{"RunPodSandbox", []stage[*runJob]{
	{{"intent", (*runJob).intent}},
	{{"shim", (*runJob).spawn}, {"cgroup", (*runJob).cgroup}, {"files", (*runJob).files}, {"logs", (*runJob).logs}, {"netns", (*runJob).makeNetns}},
	{{"holder", (*runJob).holder}, {"network", (*runJob).network}},
	{{"hosts", (*runJob).hosts}},
	{{"record", (*runJob).record}},
}}

// RunPod makes a pod that is ready when it returns, and gives its ID. A retried request joins the one in flight; a
// name, namespace, uid and attempt that a pod has already is errs.Exists. On failure nothing of the pod is left, or,
// where that could not be had, a pod that is not ready and can be removed.
func (m *Manager) RunPod(ctx context.Context, config *cri.PodSandboxConfig, handler string) (string, error) {
	if handler != "" && !slices.Contains(m.cfg.Handlers, handler) {
		return "", errs.New(errs.NotFound, "runtime_handler %q: no such handler. Name one of the configuration's, or none", handler)
	}
	if err := oci.ValidatePod(config); err != nil {
		return "", err
	}
	if err := oci.CheckPodProfiles(config, &m.cfg.Translate.Host); err != nil {
		return "", err
	}
	md := config.GetMetadata()
	key := fmt.Sprintf("pod/%s/%s/%s/%d", md.GetNamespace(), md.GetName(), md.GetUid(), md.GetAttempt())
	id, err := m.joins.join(ctx, key, m.goDo, func(ctx context.Context) (string, error) {
		return m.runPod(ctx, config, handler)
	})
	if err == nil {
		m.live.pod(id).answers.made.give(ctx)
	}
	return id, err
}

func (m *Manager) runPod(ctx context.Context, config *cri.PodSandboxConfig, handler string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	same, err := m.samePod(ctx, config, handler)
	if same != "" || err != nil {
		return same, err
	}
	j := &runJob{m: m, rec: podRecord{ID: newID(), BootID: m.cfg.BootID, Handler: handler, CreatedAt: time.Now()}, held: make(chan struct{})}
	j.rec.Config.M = config
	unlock, err := m.ops.lock(ctx, j.rec.ID)
	if err != nil {
		return "", err
	}
	defer unlock()
	err = runPodTable.run(ctx, m, j)
	if j.netns != nil {
		j.netns.Close()
	}
	if err == nil {
		return j.rec.ID, nil
	}
	err = fmt.Errorf("run pod %s/%s: %w", config.GetMetadata().GetNamespace(), config.GetMetadata().GetName(), err)
	undo, undone := m.detached(ctx)
	defer undone()
	if m.snap.Load().pods[j.rec.ID] == nil {
		return "", err // not even the intent was recorded
	}
	if terr := m.dropPod(undo, j.rec.ID); terr != nil {
		m.logger(ctx).Error(terr, "Tore down a failed pod only in part", "pod", j.rec.ID)
		m.failPod(undo, j.rec.ID, err)
	}
	return "", err
}

// failPod shows a pod that could neither be made nor torn down, as not ready, and goes on tearing it down.
func (m *Manager) failPod(ctx context.Context, id string, cause error) {
	_, err := m.updatePod(id, func(r *podRecord) bool {
		r.StoppedAt, r.Message = time.Now(), cause.Error()
		return true
	})
	if err != nil {
		m.logger(ctx).Error(err, "Recorded no failed pod", "pod", id)
	}
	m.retryTeardown(id)
}

// samePod looks for a pod with the metadata of config. What is left of a failed request gives way; a ready pod whose
// answer may have been lost answers the same request.
func (m *Manager) samePod(ctx context.Context, config *cri.PodSandboxConfig, handler string) (string, error) {
	s := m.snap.Load()
	for id, p := range s.pods {
		if !proto.Equal(p.rec.Config.M.GetMetadata(), config.GetMetadata()) {
			continue
		}
		if p.rec.ReadyAt.IsZero() {
			if err := m.replace(ctx, id); err != nil {
				return "", err
			}
			continue
		}
		lost := !m.live.pod(id).answers.made.heard() && len(s.containersOf(id)) == 0
		if lost && p.rec.ready() && !p.rec.Removing && p.rec.Handler == handler && proto.Equal(p.rec.Config.M, config) {
			return id, nil
		}
		md := config.GetMetadata()
		return "", errs.New(errs.Exists, "pod %s/%s, uid %s, attempt %d: it exists already (%s). Remove that one or raise the attempt",
			md.GetNamespace(), md.GetName(), md.GetUid(), md.GetAttempt(), id)
	}
	return "", nil
}

// replace takes away what is left of a failed pod whose request is repeated.
func (m *Manager) replace(ctx context.Context, id string) error {
	unlock, err := m.ops.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if m.snap.Load().pods[id] == nil {
		return nil
	}
	return m.dropPod(ctx, id)
}

// intent names everything that the next steps make, before they do.
func (j *runJob) intent(context.Context) error {
	r := &j.rec
	if err := j.m.placePod(r); err != nil {
		return err
	}
	if !r.OwnsParent {
		for p := r.CgroupParent; p != "/" && !j.m.shims.CgroupExists(p); p = filepath.Dir(p) {
			r.MadeAbove = p
		}
		j.inheritMade()
	}
	if err := os.MkdirAll(j.m.dirs.containers(r.ID), 0o700); err != nil {
		return fmt.Errorf("make record directory: %w", err)
	}
	if err := os.MkdirAll(j.m.dirs.run(r.ID), 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	rec := *r
	err := j.m.insert(change{pod: &rec})
	if err != nil { // nothing says that these are there: not one may stay
		_ = os.Remove(j.m.dirs.run(r.ID))
		_ = os.RemoveAll(j.m.dirs.pod(r.ID))
	}
	return err
}

// inheritMade takes on the parents that another pod made: whoever goes last removes them.
func (j *runJob) inheritMade() {
	for _, p := range j.m.snap.Load().pods {
		if made := p.rec.MadeAbove; made != "" && strings.HasPrefix(j.rec.CgroupPath, made+"/") && (j.rec.MadeAbove == "" || len(made) < len(j.rec.MadeAbove)) {
			j.rec.MadeAbove = made
		}
	}
}

func (j *runJob) spawn(ctx context.Context) error {
	shim, err := j.m.shims.Spawn(ctx, j.rec.ID, j.m.dirs.run(j.rec.ID), !j.rec.hostIPC())
	if err != nil {
		return fmt.Errorf("start its shim: %w", err)
	}
	j.rec.ShimPid = shim.Pid()
	j.m.live.pod(j.rec.ID).set(shim, 0)
	j.m.watch(j.rec.ID, shim)
	return nil
}

func (j *runJob) cgroup(ctx context.Context) error {
	j.m.trims.RLock()
	defer j.m.trims.RUnlock()
	return j.m.shims.MakeCgroup(ctx, j.rec.CgroupPath, nil)
}

// The names of the files that a pod's containers share, in its run directory.
const (
	fileHosts      = "hosts"
	fileHostname   = "hostname"
	fileResolvConf = "resolv.conf"
)

func (m *Manager) podFiles(pod *podRecord) oci.PodFiles {
	run := m.dirs.run(pod.ID)
	return oci.PodFiles{
		Shm:        m.shims.Shm(run, pod.hostIPC()),
		Hosts:      filepath.Join(run, fileHosts),
		Hostname:   filepath.Join(run, fileHostname),
		ResolvConf: filepath.Join(run, fileResolvConf),
	}
}

func (j *runJob) files(context.Context) error {
	config := j.rec.Config.M
	name := oci.PodHostname(config, j.m.cfg.Translate.Host.Hostname)
	node, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the node's resolv.conf: %w", err)
	}
	return j.writePodFiles(map[string][]byte{
		fileHostname:   oci.Hostname(name),
		fileResolvConf: oci.ResolvConf(config.GetDnsConfig(), node),
	})
}

// hosts writes the pod's /etc/hosts, which names its addresses.
func (j *runJob) hosts(context.Context) error {
	if !j.rec.hostNetwork() {
		name := oci.PodHostname(j.rec.Config.M, j.m.cfg.Translate.Host.Hostname)
		return j.writePodFiles(map[string][]byte{fileHosts: oci.Hosts(name, j.rec.Network.IPs)})
	}
	node, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the node's hosts: %w", err)
	}
	return j.writePodFiles(map[string][]byte{fileHosts: node})
}

// writePodFiles writes files that root of the pod's containers may write, in a user namespace as elsewhere.
func (j *runJob) writePodFiles(files map[string][]byte) error {
	uids, gids := oci.UserNamespace(j.rec.Config.M)
	for name, data := range files {
		path := filepath.Join(j.m.dirs.run(j.rec.ID), name)
		if err := store.WriteFile(path, data, 0o644, false); err != nil {
			return err
		}
		if len(uids) == 0 || os.Geteuid() != 0 { // only root may, and makes pods
			continue
		}
		if err := os.Lchown(path, int(hostID(uids)), int(hostID(gids))); err != nil {
			return fmt.Errorf("give the pod its %s: %w", name, err)
		}
	}
	return nil
}

func (j *runJob) logs(context.Context) error {
	dir := j.rec.Config.M.GetLogDirectory()
	if dir == "" {
		return nil
	}
	if !filepath.IsAbs(dir) {
		return errs.New(errs.Invalid, "config.log_directory %q: it is not an absolute path", dir)
	}
	err := os.MkdirAll(dir, 0o755)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) {
		return errs.New(errs.Invalid, "config.log_directory %q: %w", dir, err)
	}
	if err != nil {
		return fmt.Errorf("make log directory %s: %w", dir, err)
	}
	return nil
}

func (j *runJob) holder(ctx context.Context) error {
	shim, err := j.m.shimOf(j.rec.ID)
	if err != nil {
		return err
	}
	uids, gids := oci.UserNamespace(j.rec.Config.M)
	sysctls, err := oci.Sysctls(j.rec.Config.M)
	if err != nil {
		return err
	}
	hostname := oci.PodHostname(j.rec.Config.M, j.m.cfg.Translate.Host.Hostname)
	if j.rec.hostNetwork() {
		hostname = "" // its UTS namespace is the node's
	}
	req := &HolderRequest{
		PodID: j.rec.ID, CgroupPath: j.rec.CgroupPath, Namespaces: podNamespaces(j.rec.Config.M), Netns: j.netns,
		UIDMaps: uids, GIDMaps: gids, Hostname: hostname, Sysctls: sysctls,
	}
	if j.netns != nil {
		req.Namespaces = slices.DeleteFunc(req.Namespaces, func(t specs.LinuxNamespaceType) bool { return t == specs.NetworkNamespace })
	}
	pid, err := shim.Holder(ctx, req)
	if err != nil {
		return fmt.Errorf("make its namespaces: %w", err)
	}
	j.rec.HolderPid = pid
	j.m.live.pod(j.rec.ID).set(nil, pid)
	close(j.held)
	return nil
}

// makeNetns makes the pod's network namespace here, so that the network can be attached to it while shim and holder
// start; the holder joins it, and until then it lives by our descriptor alone. It is left to the holder where it has to
// be made inside a user namespace, and where sysctls may have to be set before an interface is there.
func (j *runJob) makeNetns(context.Context) error {
	config := j.rec.Config.M
	if uids, _ := oci.UserNamespace(config); j.rec.hostNetwork() || len(uids) > 0 || len(config.GetLinux().GetSysctls()) > 0 {
		return nil
	}
	ns, err := j.m.shims.MakeNetns()
	if err != nil {
		return fmt.Errorf("make its network namespace: %w", err)
	}
	j.netns = ns
	return nil
}

// networkPod is the pod as pkg/network wants it, once there is a namespace to attach.
func (j *runJob) networkPod(ctx context.Context) (network.Pod, error) {
	if j.netns != nil {
		return j.rec.network(fmt.Sprintf("/proc/self/fd/%d", j.netns.Fd())), nil
	}
	select {
	case <-j.held:
		return j.rec.network(j.rec.netns()), nil
	case <-ctx.Done():
		return network.Pod{}, ctx.Err()
	}
}

func (j *runJob) network(ctx context.Context) error {
	if j.rec.hostNetwork() {
		return nil
	}
	pod, err := j.networkPod(ctx)
	if err != nil {
		return err
	}
	result, err := j.m.nets.Attach(ctx, pod)
	if err != nil {
		return fmt.Errorf("attach to the network: %w", err)
	}
	j.rec.Network = result
	return nil
}

func (j *runJob) record(context.Context) error {
	shim, err := j.m.shimOf(j.rec.ID)
	if err != nil {
		return err
	}
	if isClosed(shim.Done()) {
		return errs.New(errs.Unavailable, "its shim died while the pod was made")
	}
	lp := j.m.live.pod(j.rec.ID)
	if lp.isLost() {
		return errs.New(errs.Unavailable, holderDied)
	}
	j.rec.ReadyAt = time.Now()
	rec := j.rec
	if err := j.m.insert(change{pod: &rec, events: []EventType{EventCreated, EventStarted}}); err != nil {
		return err
	}
	if lp.isLost() { // it died just now, when the record could not take it yet
		j.m.podLost(rec.ID, holderDied)
	}
	return nil
}
