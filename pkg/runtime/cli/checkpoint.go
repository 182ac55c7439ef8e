package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/criu"
	"github.com/cri-server/cri-server/pkg/sys"
)

// Files of a checkpoint beside criu's images.
const (
	descriptorsFile = "descriptors.json" // what stdio was, as runc writes it
	dumpLog         = "dump.log"
	restoreLog      = "restore.log"
)

// criuFlags are what checkpoint and restore are told alike.
type criuFlags struct {
	imagePath, workPath   string
	tcpEstablished        bool
	extUnixSk, shellJob   bool
	fileLocks, autoDedup  bool
	lazyPages             bool
	cgroupsMode           string
	emptyNS               []string
	lsmProfile, lsmMounts string

	images, work *os.File
}

func (f *criuFlags) flags() []flag {
	return []flag{
		text(&f.imagePath, "image-path", "DIR", "directory of criu's image files (default: checkpoint)"),
		text(&f.workPath, "work-path", "DIR", "directory for criu's work files and logs (default: that of the images)"),
		boolean(&f.tcpEstablished, "tcp-established", "allow open TCP connections"),
		boolean(&f.extUnixSk, "ext-unix-sk", "allow unix sockets to the outside"),
		boolean(&f.shellJob, "shell-job", "allow processes of a shell's session"),
		boolean(&f.fileLocks, "file-locks", "keep file locks"),
		boolean(&f.lazyPages, "lazy-pages", "move memory pages when they are needed"),
		boolean(&f.autoDedup, "auto-dedup", "drop pages of older images that newer ones have"),
		text(&f.cgroupsMode, "manage-cgroups-mode", "MODE", "soft, full, strict or ignore (default: soft)"),
		list(&f.emptyNS, "empty-ns", "TYPE", "make a namespace of that type without what it holds: network"),
	}
}

// open opens the directories and holds the images to what criu makes.
func (f *criuFlags) open(log, stats string) (err error) {
	if f.imagePath == "" {
		f.imagePath = "checkpoint"
	}
	if f.imagePath, err = filepath.Abs(f.imagePath); err != nil {
		return err
	}
	if f.images, err = criu.OpenDir(f.imagePath); err != nil {
		return err
	}
	if err := criu.CheckImages(f.images); err != nil {
		return err
	}
	f.work = f.images
	if f.workPath != "" {
		if f.workPath, err = filepath.Abs(f.workPath); err != nil {
			return err
		}
		if f.work, err = criu.OpenDir(f.workPath); err != nil {
			return err
		}
	}
	return criu.FreshLog(f.work, log, stats)
}

func (f *criuFlags) close() { sys.CloseAll([]*os.File{f.images, f.work}) }

// options are criu's for either job. Annotations are the live bundle's.
func (f *criuFlags) options(log string, annotations map[string]string) (*rpc.CriuOpts, error) {
	mode, ok := map[string]rpc.CriuCgMode{
		"": rpc.CriuCgMode_DEFAULT, "soft": rpc.CriuCgMode_SOFT, "full": rpc.CriuCgMode_FULL, "strict": rpc.CriuCgMode_STRICT, "ignore": rpc.CriuCgMode_IGNORE,
	}[f.cgroupsMode]
	if !ok {
		return nil, errors.New("invalid manage-cgroups-mode value")
	}
	for _, ns := range f.emptyNS {
		if ns != "network" {
			return nil, fmt.Errorf("namespace %q is not supported", ns)
		}
	}
	opts := &rpc.CriuOpts{
		ImagesDirFd: ptr(int32(f.images.Fd())), WorkDirFd: ptr(int32(f.work.Fd())), LogLevel: ptr(int32(4)), LogFile: &log,
		ManageCgroups: ptr(true), ManageCgroupsMode: &mode, NotifyScripts: ptr(true), OrphanPtsMaster: ptr(true),
		TcpEstablished: &f.tcpEstablished, ExtUnixSk: &f.extUnixSk, ShellJob: &f.shellJob, FileLocks: &f.fileLocks,
		AutoDedup: &f.autoDedup, LazyPages: &f.lazyPages,
		EmptyNs: ptr(uint32(unix.CLONE_NEWNET)), // whoever manages the network fills it
	}
	file, named := annotations["org.criu.config"]
	if !named {
		file = "/etc/criu/runc.conf" // where administrators of runc have it
	}
	if file != "" {
		opts.ConfigFile = &file
	}
	return opts, nil
}

func ptr[T any](v T) *T { return &v }

// checkpoint is what checkpoint is told.
type checkpoint struct {
	app *app
	criuFlags
	parentPath      string
	leaveRunning    bool
	tcpSkipInFlight bool
	linkRemap       bool
	preDump         bool
	pageServer      string
	statusFD        int
}

func setupCheckpoint(a *app) ([]flag, func([]string) error) {
	cp := &checkpoint{app: a, statusFD: -1}
	flags := append(cp.flags(),
		text(&cp.parentPath, "parent-path", "DIR", "directory of the pre-dump before, relative to that of the images"),
		boolean(&cp.leaveRunning, "leave-running", "let the container run on"),
		boolean(&cp.tcpSkipInFlight, "tcp-skip-in-flight", "leave out TCP connections that are not established yet"),
		boolean(&cp.linkRemap, "link-remap", "link unlinked files back where possible"),
		boolean(&cp.preDump, "pre-dump", "write memory only, and let the container run on"),
		text(&cp.pageServer, "page-server", "ADDRESS:PORT", "page server that takes the memory"),
		number(&cp.statusFD, "status-fd", "descriptor that gets a NUL when lazy pages can be asked for"))
	return flags, func(args []string) error { return cp.do(args[0]) }
}

func (cp *checkpoint) do(id string) error {
	c, err := cp.app.load(id)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.lock(); err != nil {
		return err
	}
	switch status := c.status(); status {
	case statusRunning, statusPaused:
	default:
		return fmt.Errorf("Container cannot be checkpointed in %s state", status) //nolint:staticcheck // runc's words
	}
	if err := cp.checkFlags(); err != nil {
		return err
	}
	tool, err := criu.Find()
	if err != nil {
		return err
	}
	defer cp.close()
	if err := cp.open(dumpLog, "stats-dump"); err != nil {
		return err
	}
	if err := cp.checkParent(); err != nil {
		return err
	}
	if err := cp.dump(c, tool); err != nil {
		return criu.Explain(err, cp.work, dumpLog)
	}
	if cp.leaveRunning || cp.preDump {
		return nil
	}
	spec, specErr := c.spec()
	ctx, cancel := context.WithTimeout(context.Background(), teardown)
	defer cancel()
	if err := c.destroy(ctx); err != nil {
		c.app.log.warn("delete container %s: %v", c.ID, err)
		return nil
	}
	if specErr == nil {
		c.stopped(spec.Hooks)
	}
	return nil
}

func (cp *checkpoint) checkFlags() error {
	if cp.pageServer != "" {
		_, port, ok := criu.SplitAddress(cp.pageServer)
		if !ok {
			return errors.New("Use --page-server ADDRESS:PORT to specify page server") //nolint:staticcheck // runc's words
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return errors.New("Invalid port number") //nolint:staticcheck // runc's words
		}
	}
	if cp.lazyPages && cp.statusFD >= 0 {
		flags, err := unix.FcntlInt(uintptr(cp.statusFD), unix.F_GETFL, 0)
		if err != nil {
			return fmt.Errorf("invalid --status-fd argument %d: %w", cp.statusFD, err)
		}
		if flags&unix.O_ACCMODE == unix.O_RDONLY {
			return fmt.Errorf("invalid --status-fd argument %d: not writable", cp.statusFD)
		}
		unix.CloseOnExec(cp.statusFD)
	}
	return nil
}

func (cp *checkpoint) checkParent() error {
	if cp.parentPath == "" {
		return nil
	}
	if filepath.IsAbs(cp.parentPath) {
		return errors.New("--parent-path must be relative")
	}
	parent, err := sys.OpenAt(cp.images, cp.parentPath, os.O_RDONLY|unix.O_DIRECTORY, 0, unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return fmt.Errorf("invalid --parent-path: %w", err)
	}
	defer parent.Close()
	return criu.CheckImages(parent)
}

// dump has criu write the container's processes down. Without leaveRunning they have ended then.
func (cp *checkpoint) dump(c *container, tool *criu.Criu) error {
	spec, err := c.spec()
	if err != nil {
		return err
	}
	opts, err := cp.options(dumpLog, spec.Annotations)
	if err != nil {
		return err
	}
	g, h, err := c.group()
	if err != nil {
		return err
	}
	opts.Root, opts.Pid = &c.Rootfs, ptr(int32(c.Pid))
	opts.LeaveRunning, opts.TcpSkipInFlight, opts.LinkRemap = &cp.leaveRunning, &cp.tcpSkipInFlight, &cp.linkRemap
	if dir := freezer(h, g); dir != "" {
		opts.FreezeCgroup = &dir
	}
	if cp.parentPath != "" {
		opts.ParentImg, opts.TrackMem = &cp.parentPath, ptr(true)
	}
	if address, port, ok := criu.SplitAddress(cp.pageServer); ok {
		n, _ := strconv.ParseUint(port, 10, 16)
		opts.Ps = &rpc.CriuPageServerInfo{Address: &address, Port: ptr(int32(n))}
	}
	if err := externalNamespaces(opts, spec.Linux.Namespaces); err != nil {
		return err
	}
	kind := rpc.CriuReqType_DUMP
	if cp.preDump {
		kind = rpc.CriuReqType_PRE_DUMP
	} else if err := cp.external(c, spec, h, opts); err != nil {
		return err
	}
	if err := cp.features(tool); err != nil {
		return err
	}
	s := &criu.Session{Notify: cp.notified}
	_, err = s.Run(tool, &rpc.CriuReq{Type: &kind, Opts: opts})
	return err
}

// features refuses what this criu or kernel cannot do.
func (cp *checkpoint) features(tool *criu.Criu) error {
	if !cp.preDump && !cp.lazyPages {
		return nil
	}
	have, err := tool.Features(&rpc.CriuFeatures{MemTrack: &cp.preDump, LazyPages: &cp.lazyPages})
	if err != nil {
		return err
	}
	switch {
	case cp.preDump && !have.GetMemTrack():
		return errors.New("criu is missing features: [MemTrack]")
	case cp.lazyPages && !have.GetLazyPages():
		return errors.New("criu is missing features: [LazyPages]")
	}
	return nil
}

func (cp *checkpoint) notified(script string, _ int, file *os.File) error {
	cp.app.log.debugf("criu: %s", script)
	if file != nil {
		file.Close()
	}
	if script == "status-ready" && cp.statusFD >= 0 {
		if _, err := unix.Write(cp.statusFD, []byte{0}); err != nil {
			cp.app.log.warn("write to --status-fd %d: %v", cp.statusFD, err)
		}
		unix.Close(cp.statusFD)
		cp.statusFD = -1
	}
	return nil
}

// freezer is the directory by which criu can hold the container still, "" for none.
func freezer(h *cgroup.Host, g *cgroup.Group) string {
	dir := ""
	for _, t := range h.Hierarchies() {
		for _, name := range t.Controllers {
			if name == "freezer" {
				return filepath.Join(t.Mount, g.Path())
			}
		}
		if t.Unified && h.Mode() == cgroup.V2 {
			dir = filepath.Join(t.Mount, g.Path())
		}
	}
	return dir
}

// writeDescriptors says in the checkpoint what the container's stdio was, so that restore can put its own in place.
// What is neither a pipe nor the container's own is named by its mount and number, and told to criu as external.
func (cp *checkpoint) writeDescriptors(c *container, opts *rpc.CriuOpts) error {
	names := append([]string{}, c.Stdio...)
	for fd, name := range names {
		if now, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.Pid, fd)); err != nil || now != name || strings.HasPrefix(name, "pipe:") {
			continue
		}
		if key := outsideFile(c.Pid, fd); key != "" {
			names[fd] = key
			opts.External = append(opts.External, key)
		}
	}
	data, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return criu.WriteFile(cp.images, descriptorsFile, data)
}

// outsideFile is criu's name of a process's open file that lies on none of its mounts, "" where it does.
func outsideFile(pid, fd int) string {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return ""
	}
	mount := ""
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			mount = strings.TrimSpace(v)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil || mount == "" {
		return ""
	}
	for line := range strings.Lines(string(mounts)) {
		if id, _, _ := strings.Cut(line, " "); id == mount {
			return ""
		}
	}
	var st unix.Stat_t
	n, err := strconv.Atoi(mount)
	if err != nil || unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), &st) != nil {
		return ""
	}
	return fmt.Sprintf("file[%x:%x]", n, st.Ino)
}
