package plugin

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

const (
	defaultLeaseDir = "/var/lib/cni/networks"
	lastReserved    = "last_reserved_ip."
	leaseSeparator  = "\r\n"
)

// leaseStores are the lease directories in use, by path.
type leaseStores struct {
	mu   sync.Mutex
	dirs map[string]*leaseDir
}

// open returns the leases of a network. They stay open until the runner closes.
func (s *leaseStores) open(network, dataDir string) (*leaseDir, error) {
	if dataDir == "" {
		dataDir = defaultLeaseDir
	}
	dir := filepath.Join(dataDir, network)
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.dirs[dir]; d != nil {
		return d, nil
	}
	d := &leaseDir{dir: dir, owners: map[string]string{}}
	if s.dirs == nil {
		s.dirs = map[string]*leaseDir{}
	}
	s.dirs[dir] = d
	return d, nil
}

// leaseDir is host-local's directory of leases: one file for every address, named after it, that holds the
// owner. It is the store of the reference plugin's allocator, with the same files and the same lock, so
// that the reference plugin may work on the same directory; but it remembers what it read, since looking
// for a pod's leases would otherwise read the file of every lease.
type leaseDir struct {
	dir string

	mu     sync.Mutex
	err    error // of the last Lock
	lock   *os.File
	owners map[string]string // file name -> owner, as of the last Lock
}

// Lock waits for this process's and every other process's work on the directory, and catches up with it.
// The allocator ignores its error and unlocks all the same: after a failure every change fails with it.
func (d *leaseDir) Lock() error {
	d.mu.Lock()
	d.err = d.flock()
	if d.err == nil {
		d.err = d.sync()
	}
	if d.err != nil {
		d.err = fmt.Errorf("lock leases in %s: %w", d.dir, d.err)
	}
	return d.err
}

// Unlock lets others work on the directory.
func (d *leaseDir) Unlock() error {
	d.unflock()
	d.mu.Unlock()
	return nil
}

func (d *leaseDir) unflock() {
	if d.lock != nil {
		_ = unix.Flock(int(d.lock.Fd()), unix.LOCK_UN) // cannot fail on an open file
	}
}

func (d *leaseDir) flock() error {
	for {
		if d.lock == nil {
			if err := os.MkdirAll(d.dir, 0o755); err != nil {
				return err
			}
			f, err := os.OpenFile(filepath.Join(d.dir, "lock"), os.O_RDONLY|os.O_CREATE|unix.O_CLOEXEC, 0o750)
			if err != nil {
				return err
			}
			d.lock = f
		}
		if err := flockWithin(d.lock, lockPatience); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(d.lock.Fd()), &st); err != nil || st.Nlink > 0 {
			return err
		}
		d.lock.Close() // somebody removed the directory
		d.lock = nil
	}
}

// lockPatience bounds the wait for another process that has the lock and hangs.
const lockPatience = 20 * time.Second

func flockWithin(f *os.File, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for p := poll(0); ; p.wait() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return err
		}
		if time.Now().After(deadline) {
			return errs.New(errs.Timeout, "another process has had %s locked for %s", f.Name(), patience)
		}
	}
}

// sync reads the leases that came since the last time and forgets those that went.
func (d *leaseDir) sync() error {
	names, err := d.names()
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(names))
	for _, n := range names {
		there[n] = true
		if _, ok := d.owners[n]; !ok {
			if b, err := os.ReadFile(filepath.Join(d.dir, n)); err == nil {
				d.owners[n] = strings.TrimSpace(string(b))
			}
		}
	}
	for n := range d.owners {
		if !there[n] {
			delete(d.owners, n)
		}
	}
	return nil
}

// names returns the files that are leases: those named after an address.
func (d *leaseDir) names() ([]string, error) {
	f, err := os.Open(d.dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	leases := all[:0]
	for _, n := range all {
		if net.ParseIP(n) != nil {
			leases = append(leases, n)
		}
	}
	return leases, nil
}

// Close releases nothing: directories stay open for the next call.
func (d *leaseDir) Close() error { return nil }

// Reserve gives the address to the owner and says whether it was free.
func (d *leaseDir) Reserve(id, ifname string, ip net.IP, rangeID string) (bool, error) {
	if d.err != nil {
		return false, d.err
	}
	name := ip.String()
	if _, taken := d.owners[name]; taken {
		return false, nil
	}
	path := filepath.Join(d.dir, name)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_EXCL|os.O_CREATE, 0o600)
	if os.IsExist(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	owner := strings.TrimSpace(id) + leaseSeparator + ifname
	_, err = f.WriteString(owner)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = overwrite(filepath.Join(d.dir, lastReserved+rangeID), name)
	}
	if err != nil {
		os.Remove(path)
		return false, err
	}
	d.owners[name] = owner
	return true, nil
}

// overwrite is os.WriteFile without giving the file's block back first.
func overwrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	n, err := f.WriteString(text)
	if err == nil {
		err = f.Truncate(int64(n))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// LastReservedIP returns the address that was given last from the range, for the round robin.
func (d *leaseDir) LastReservedIP(rangeID string) (net.IP, error) {
	b, err := os.ReadFile(filepath.Join(d.dir, lastReserved+rangeID))
	if err != nil {
		return nil, err
	}
	return net.ParseIP(string(b)), nil
}

func isOwner(owner, id, ifname string) bool {
	id = strings.TrimSpace(id)
	return owner == id+leaseSeparator+ifname || owner == id // the latter as old versions of the plugin wrote it
}

// GetByID returns the addresses of the owner.
func (d *leaseDir) GetByID(id, ifname string) []net.IP {
	var ips []net.IP
	for name, owner := range d.owners {
		if isOwner(owner, id, ifname) {
			ips = append(ips, net.ParseIP(name))
		}
	}
	return ips
}

// ReleaseByID takes all addresses of the owner back. What is not the owner's any more is left alone.
func (d *leaseDir) ReleaseByID(id, ifname string) error {
	return d.releaseIf(func(owner string) bool { return isOwner(owner, id, ifname) })
}

func (d *leaseDir) releaseIf(match func(owner string) bool) error {
	if d.err != nil {
		return d.err
	}
	for name, owner := range d.owners {
		if !match(owner) {
			continue
		}
		path := filepath.Join(d.dir, name)
		b, err := os.ReadFile(path)
		if err == nil {
			if now := strings.TrimSpace(string(b)); !match(now) {
				d.owners[name] = now
				continue
			}
			err = os.Remove(path)
		}
		if err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("release %s: %w", name, err)
		}
		delete(d.owners, name)
	}
	return nil
}

// Leases returns the lease files of a directory with the ID of their owner. It takes no lock.
func Leases(dir string) (map[string]string, error) {
	d := &leaseDir{dir: dir}
	names, err := d.names()
	if err != nil {
		return nil, err
	}
	leases := map[string]string{}
	for _, n := range names {
		path := filepath.Join(dir, n)
		if b, err := os.ReadFile(path); err == nil {
			id, _, _ := strings.Cut(string(b), leaseSeparator)
			leases[path] = strings.TrimSpace(id)
		}
	}
	return leases, nil
}
