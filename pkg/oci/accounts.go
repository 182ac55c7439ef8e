package oci

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// The image's account files are hostile: a link that points out of the tree, a FIFO that never yields a
// byte, a device, a file of gigabytes, a line without an end.
const (
	maxAccountFile = 10 << 20
	maxAccountLine = 1 << 20
)

// openAccounts opens an account file of the root filesystem, nil when there is none. The caller closes it.
func openAccounts(rootfs *os.File, path string) (*os.File, error) {
	if rootfs == nil {
		return nil, nil
	}
	// O_PATH opens nothing yet: a FIFO cannot block and a device driver is not called.
	at, err := sys.OpenAt(rootfs, path, unix.O_PATH, 0, sys.InRoot|unix.RESOLVE_NO_XDEV)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "image file %s: %w", path, err)
	}
	defer at.Close()
	info, err := at.Stat()
	switch {
	case err != nil:
		return nil, errs.New(errs.Invalid, "image file %s: %w", path, err)
	case !info.Mode().IsRegular():
		return nil, errs.New(errs.Invalid, "image file %s: is no regular file (%s)", path, info.Mode().Type())
	case info.Size() > maxAccountFile:
		return nil, errs.New(errs.Invalid, "image file %s: %d bytes are more than the limit of %d", path, info.Size(), maxAccountFile)
	}
	return os.Open(sys.FDPath(at))
}

// eachAccount calls f with the fields of every line of an account file until f returns false. A missing
// file has no lines; comments and blank lines are skipped.
func eachAccount(rootfs *os.File, path string, f func(fields []string) bool) error {
	file, err := openAccounts(rootfs, path)
	if file == nil || err != nil {
		return err
	}
	defer file.Close()
	if err := scanAccounts(file, f); err != nil {
		return errs.New(errs.Invalid, "image file %s: %w", path, err)
	}
	return nil
}

func scanAccounts(r io.Reader, f func(fields []string) bool) error {
	// The size was checked, but the file may grow while it is read.
	sc := bufio.NewScanner(io.LimitReader(r, maxAccountFile))
	sc.Buffer(nil, maxAccountLine)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if !f(strings.Split(line, ":")) {
			return nil
		}
	}
	return sc.Err()
}

// account is a line of /etc/passwd.
type account struct {
	name     string
	uid, gid uint32
	home     string
}

// findAccount returns the first account that matches, nil when there is none. Lines with IDs that are no
// IDs are skipped, as the C library does.
func findAccount(rootfs *os.File, match func(*account) bool) (*account, error) {
	var found *account
	err := eachAccount(rootfs, "etc/passwd", func(fields []string) bool {
		if len(fields) < 4 {
			return true
		}
		a := &account{name: fields[0]}
		var ok bool
		if a.uid, ok = parseID(fields[2]); !ok {
			return true
		}
		if a.gid, ok = parseID(fields[3]); !ok {
			return true
		}
		if len(fields) > 5 {
			a.home = fields[5]
		}
		if match(a) {
			found = a
			return false
		}
		return true
	})
	return found, err
}

// findGroup returns the ID of a group by name.
func findGroup(rootfs *os.File, name string) (gid uint32, ok bool, err error) {
	err = eachAccount(rootfs, "etc/group", func(fields []string) bool {
		if len(fields) < 3 || fields[0] != name {
			return true
		}
		gid, ok = parseID(fields[2])
		return !ok
	})
	return gid, ok, err
}

// groupsOf returns the groups whose member lists name the user, in file order.
func groupsOf(rootfs *os.File, name string) ([]uint32, error) {
	var gids []uint32
	err := eachAccount(rootfs, "etc/group", func(fields []string) bool {
		if len(fields) < 4 {
			return true
		}
		for _, member := range strings.Split(fields[3], ",") {
			if strings.TrimSpace(member) != name {
				continue
			}
			if gid, ok := parseID(fields[2]); ok {
				gids = append(gids, gid)
			}
			break
		}
		return len(gids) < maxGroups
	})
	return gids, err
}

// parseID parses a decimal user or group ID: digits only, no sign, no leading zero, at most 2^32-2.
func parseID(s string) (uint32, bool) {
	if s == "" || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}
