package sandbox

import (
	"context"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/oci"
)

// UpdateContainer changes a container's limits: those of a running one at once, those of a created one for its start.
// Fields that are zero stay as they are. On an error nothing has changed. The annotations are not interpreted.
func (m *Manager) UpdateContainer(ctx context.Context, id string, res *cri.LinuxContainerResources, _ map[string]string) error {
	rec, err := m.containerRec(id)
	if err != nil {
		return err
	}
	if res == nil {
		return nil
	}
	return m.finish(ctx, rec.ID, func(ctx context.Context) error {
		if err := m.updateLimits(ctx, rec.ID, res); err != nil {
			return fmt.Errorf("update container %s: %w", rec.ID, err)
		}
		return nil
	})
}

func (m *Manager) updateLimits(ctx context.Context, id string, res *cri.LinuxContainerResources) error {
	s := m.snap.Load().containers[id]
	if s == nil {
		return errs.New(errs.NotFound, "no such container")
	}
	if s.rec.exited() || s.rec.Removing {
		return errs.New(errs.Conflict, "it is exited. Only a created or running container has limits")
	}
	p := m.snap.Load().pods[s.rec.PodID]
	if p == nil || !p.rec.ready() {
		return errs.New(errs.Conflict, "its pod is not ready")
	}
	host := &m.cfg.Translate.Host
	limits, err := oci.Resources(res, host)
	if err != nil {
		return err
	}
	merged := mergeResources(s.rec.Resources.M, res)
	if _, err := oci.Resources(merged, host); err != nil {
		return err // together with what stays as it is
	}
	if err := m.checkLimits(p.rec, res); err != nil {
		return err
	}
	adj, err := oci.OOMScoreAdj(merged, host)
	if err != nil {
		return err
	}
	if s.rec.running() {
		var setAdj *int
		if res.GetOomScoreAdj() != 0 {
			setAdj = &adj
		}
		if err = m.shims.UpdateCgroup(ctx, s.rec.CgroupPath, limits, setAdj); err == nil {
			if err := m.updateBundle(s.rec, merged, adj); err != nil { // what it shows is all that is lost
				m.logger(ctx).Error(err, "Left old limits in the bundle of a container", "container", id)
			}
		}
	} else {
		err = m.updateBundle(s.rec, merged, adj)
	}
	if err != nil {
		return err
	}
	_, err = m.updateContainer(id, func(r *containerRecord) bool {
		r.Resources.M = merged
		return true
	})
	return err
}

// checkLimits refuses limits of a container that are malformed, or that the pod's cgroup cannot give: a container that
// was made is one that can start.
func (m *Manager) checkLimits(pod *podRecord, res *cri.LinuxContainerResources) error {
	if _, err := oci.Resources(res, &m.cfg.Translate.Host); err != nil || res == nil {
		return err
	}
	offer, err := m.shims.CgroupOffer(pod.CgroupPath)
	if err != nil {
		return err
	}
	return oci.CheckOffer(res, offer)
}

// updateBundle puts limits into the spec of a container: those it starts with, or a running one's for who inspects it.
func (m *Manager) updateBundle(rec *containerRecord, merged *cri.LinuxContainerResources, adj int) error {
	spec, err := m.readSpec(rec)
	if err != nil {
		return err
	}
	limits, err := oci.Resources(merged, &m.cfg.Translate.Host)
	if err != nil {
		return err
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if old := spec.Linux.Resources; old != nil {
		limits.Devices, limits.Pids = old.Devices, old.Pids
	}
	spec.Linux.Resources = limits
	if spec.Process != nil {
		spec.Process.OOMScoreAdj = &adj
	}
	if err := m.writeSpec(rec.PodID, rec.ID, spec); err != nil {
		return err
	}
	lc := m.live.container(rec.ID)
	if old, rootfs, volumes := lc.takeFiles(); old != nil {
		lc.leaveFiles(spec, rootfs, volumes)
	}
	return nil
}

// mergeResources lays the fields of update that are set over old.
func mergeResources(old, update *cri.LinuxContainerResources) *cri.LinuxContainerResources {
	out := &cri.LinuxContainerResources{}
	if old != nil {
		out, _ = proto.Clone(old).(*cri.LinuxContainerResources)
	}
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&out.CpuPeriod, update.GetCpuPeriod()}, {&out.CpuQuota, update.GetCpuQuota()}, {&out.CpuShares, update.GetCpuShares()},
		{&out.MemoryLimitInBytes, update.GetMemoryLimitInBytes()}, {&out.OomScoreAdj, update.GetOomScoreAdj()},
		{&out.MemorySwapLimitInBytes, update.GetMemorySwapLimitInBytes()},
	} {
		if f.from != 0 {
			*f.to = f.from
		}
	}
	// The sum of memory and swap goes with the memory where the update does not name it: oci.Resources leaves no swap.
	if limit := update.GetMemoryLimitInBytes(); limit != 0 && update.GetMemorySwapLimitInBytes() == 0 && out.MemorySwapLimitInBytes != 0 {
		out.MemorySwapLimitInBytes = limit
	}
	if v := update.GetCpusetCpus(); v != "" {
		out.CpusetCpus = v
	}
	if v := update.GetCpusetMems(); v != "" {
		out.CpusetMems = v
	}
	for _, h := range update.GetHugepageLimits() {
		out.HugepageLimits = mergeHugepages(out.HugepageLimits, h)
	}
	for k, v := range update.GetUnified() {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[k] = v
	}
	return out
}

func mergeHugepages(have []*cri.HugepageLimit, h *cri.HugepageLimit) []*cri.HugepageLimit {
	for _, old := range have {
		if old.GetPageSize() == h.GetPageSize() {
			old.Limit = h.GetLimit()
			return have
		}
	}
	return append(have, &cri.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
}

// UpdatePod is told of the limits of a pod as a whole. The kubelet itself sets those on the pod's cgroup, which is
// its own; here they are checked and shown by the pod's configuration from then on.
func (m *Manager) UpdatePod(ctx context.Context, id string, overhead, res *cri.LinuxContainerResources) error {
	rec, err := m.podRec(id)
	if err != nil {
		return err
	}
	for _, r := range []*cri.LinuxContainerResources{overhead, res} {
		if _, err := oci.Resources(r, &m.cfg.Translate.Host); err != nil {
			return fmt.Errorf("update pod %s: %w", rec.ID, err)
		}
	}
	return m.finish(ctx, rec.ID, func(context.Context) error {
		_, err := m.updatePod(rec.ID, func(r *podRecord) bool {
			config, _ := proto.Clone(r.Config.M).(*cri.PodSandboxConfig)
			if config.Linux == nil {
				config.Linux = &cri.LinuxPodSandboxConfig{}
			}
			if overhead != nil {
				config.Linux.Overhead = overhead
			}
			if res != nil {
				config.Linux.Resources = res
			}
			r.Config.M = config
			return true
		})
		return err
	})
}

// ReopenLog makes a running container's output go to a newly opened log file at its log path, after a rotation has
// renamed the old one. No line is lost. On an error no new file stays.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	rec, err := m.containerRec(id)
	if err != nil {
		return err
	}
	return m.finish(ctx, rec.ID, func(ctx context.Context) error {
		s := m.snap.Load()
		c, p := s.containers[rec.ID], s.pods[rec.PodID]
		if c == nil || p == nil || !c.rec.running() {
			return errs.New(errs.Conflict, "reopen log of container %s: it is not running", rec.ID)
		}
		if c.rec.LogPath == "" {
			return errs.New(errs.Conflict, "reopen log of container %s: it has no log", rec.ID)
		}
		shim, err := m.shimOf(rec.PodID)
		if err != nil {
			return err
		}
		f, made, err := openLog(p.rec.Config.M.GetLogDirectory(), c.rec.Config.M.GetLogPath())
		if err != nil {
			return err
		}
		defer f.Close()
		if err := shim.ReopenLog(ctx, rec.ID, f); err != nil {
			if made {
				_ = os.Remove(c.rec.LogPath)
			}
			return fmt.Errorf("reopen log of container %s: %w", rec.ID, err)
		}
		return nil
	})
}
