package runtime

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/program"
)

// idmap gives a detached tree the mapping that its mount asks for.
func (c *compiler) idmap(o *Options, b *build, m *specs.Mount, opts *mountOptions, tree *os.File) error {
	uids, gids := m.UIDMappings, m.GIDMappings
	if len(uids) == 0 && len(gids) == 0 {
		if !opts.idmap {
			return nil
		}
		uids, gids = b.uidMaps, b.gidMaps
	}
	if len(uids) == 0 || len(gids) == 0 {
		return errs.New(errs.Invalid, "an idmapped mount needs uidMappings and gidMappings")
	}
	userns, err := c.usernsFor(b, uids, gids)
	if err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := c.host.setMount(tree, opts.ridmap, attr); err != nil {
		return fmt.Errorf("idmap: %w (does the filesystem allow idmapped mounts?)", err)
	}
	return nil
}

// usernsFor returns a user namespace with the mappings: the one that the container joins when it has them,
// or else one that is made once per container. It stays open until the preparation is over.
func (c *compiler) usernsFor(b *build, uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	if c.host.isUserns(b.ns.user) && slices.Equal(uids, b.uidMaps) && slices.Equal(gids, b.gidMaps) {
		return b.ns.user, nil
	}
	for _, u := range b.made {
		if slices.Equal(uids, u.uids) && slices.Equal(gids, u.gids) {
			return u.file, nil
		}
	}
	f, err := c.host.newUserns(uids, gids)
	if err != nil {
		return nil, err
	}
	b.made = append(b.made, madeUserns{uids, gids, f})
	return f, nil
}

// madeUserns is a user namespace made for idmapped mounts.
type madeUserns struct {
	uids, gids []specs.LinuxIDMapping
	file       *os.File
}

// UsernsFD returns a user namespace with these mappings, held by nothing but the descriptor: for idmapped
// mounts. They need not map ID 0. The caller closes it.
func UsernsFD(uids, gids []specs.LinuxIDMapping) (ns *os.File, err error) {
	req := &launch.Request{
		Name: "userns", Cloneflags: unix.CLONE_NEWUSER, UIDMaps: launchMaps(uids), GIDMaps: launchMaps(gids), Setgroups: true, Gate: true, Cgroup: -1,
	}
	err = withProcess(req, program.New(), nil, func(pid int) (err error) {
		ns, err = os.Open("/proc/" + strconv.Itoa(pid) + "/ns/user")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	return ns, nil
}

// InUserns calls look while process pid is in the user namespace, which need not have another one: for
// what only the /proc of a process tells, such as its mappings.
func InUserns(ns *os.File, look func(pid int) error) error {
	p := program.New()
	p.Subject("join the user namespace")
	p.Call(unix.SYS_SETNS, program.Int(launch.FirstFD), program.Int(unix.CLONE_NEWUSER))
	if err := withProcess(&launch.Request{Name: "userns", Files: []int{1}, Gate: true, Cgroup: -1}, p, []*os.File{ns}, look); err != nil {
		return fmt.Errorf("look into a user namespace: %w", err)
	}
	return nil
}

// withProcess runs p up to a gate at its end, calls look, and ends the process.
func withProcess(req *launch.Request, p *program.Program, files []*os.File, look func(pid int) error) error {
	p.Subject("wait to be ended")
	p.Gate(program.Int(launch.ReportFD), program.Int(launch.GateFD))
	p.Exit(0)
	f, err := p.Seal("userns")
	if err != nil {
		return err
	}
	defer f.Close()
	proc, err := launch.Start(req, append([]*os.File{f}, files...), [3]*os.File{})
	if err != nil {
		return err
	}
	err = look(proc.Pid)
	_ = proc.Kill(unix.SIGKILL) // it waits at its gate, which Close shuts as well
	_, _ = proc.Wait()
	proc.Close()
	return err
}
