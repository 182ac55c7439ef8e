package stats

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// filesystem is the one a container's writable layer lies on.
type filesystem struct {
	used, size, inodes, inodesFree uint64
	major, minor                   uint64
	device                         string
	at                             int64 // when used was measured
}

// filesystem is nil when the layer cannot be measured, because it is gone.
func (c *Collector) filesystem(containerID string) *filesystem {
	u, at, ok := c.layer(containerID)
	if !ok {
		return nil
	}
	out := &filesystem{used: u.Bytes, at: at.UnixNano()}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(u.Mountpoint, &fs) != nil || unix.Stat(u.Mountpoint, &st) != nil {
		return out
	}
	out.size, out.inodes, out.inodesFree = fs.Blocks*uint64(fs.Bsize), fs.Files, fs.Ffree
	out.major, out.minor = uint64(unix.Major(uint64(st.Dev))), uint64(unix.Minor(uint64(st.Dev)))
	out.device = c.device(out.major, out.minor)
	return out
}

// device names a block device as the node does, "/dev/sda1"; one without a node by what is mounted from it.
func (c *Collector) device(major, minor uint64) string {
	key := [2]uint64{major, minor}
	c.mu.Lock()
	name, known := c.devices[key]
	c.mu.Unlock()
	if known {
		return name
	}
	name = c.lookUpDevice(major, minor)
	c.mu.Lock()
	c.devices[key] = name
	c.mu.Unlock()
	return name
}

func (c *Collector) lookUpDevice(major, minor uint64) string {
	if f, err := os.Open(filepath.Join(c.Sys, "dev/block", fmt.Sprintf("%d:%d", major, minor), "uevent")); err == nil {
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if name, ok := strings.CutPrefix(sc.Text(), "DEVNAME="); ok {
				return "/dev/" + name
			}
		}
	}
	found, _ := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		match := uint64(i.Major) == major && uint64(i.Minor) == minor
		return !match, match
	})
	if len(found) > 0 {
		return found[0].Source
	}
	return fmt.Sprintf("%d:%d", major, minor)
}
