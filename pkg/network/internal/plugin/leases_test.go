package plugin

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"golang.org/x/sys/unix"
)

var _ backend.Store = (*leaseDir)(nil)

func openLeases(t *testing.T, dir string) *leaseDir {
	t.Helper()
	d, err := (&leaseStores{}).open("net", dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func ranges(t *testing.T, start, end string) *allocator.RangeSet {
	t.Helper()
	conf, _, err := allocator.LoadIPAMConfig([]byte(fmt.Sprintf(`{"cniVersion":"1.0.0","name":"net","ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/16","rangeStart":%q,"rangeEnd":%q}]]}}`, start, end)), "")
	if err != nil {
		t.Fatal(err)
	}
	return &conf.Ranges[0]
}

// Two processes, as two stores of one directory, give no address twice and see each other's work.
func TestLeasesOfTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	set := ranges(t, "10.0.0.2", "10.0.0.101")
	var mu sync.Mutex
	given := map[string]string{}
	var wg sync.WaitGroup
	for p := range 2 {
		store := openLeases(t, dir)
		for i := range 50 {
			wg.Go(func() {
				id := fmt.Sprintf("pod-%d-%d", p, i)
				ipc, err := allocator.NewIPAllocator(set, store, 0).Get(id, "eth0", nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if other := given[ipc.Address.IP.String()]; other != "" {
					t.Errorf("%s was given to %s and %s", ipc.Address.IP, other, id)
				}
				given[ipc.Address.IP.String()] = id
			})
		}
	}
	wg.Wait()
	third := openLeases(t, dir)
	if ipc, err := allocator.NewIPAllocator(set, third, 0).Get("one-more", "eth0", nil); err == nil {
		t.Errorf("a full range gave %s", ipc.Address.IP)
	}
	if _, err := allocator.NewIPAllocator(set, third, 0).Get("pod-0-0", "eth0", nil); err == nil {
		t.Error("a second address for one pod")
	}
	for ip, id := range given {
		if err := allocator.NewIPAllocator(set, third, 0).Release(id, "eth0"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "net", ip)); !os.IsNotExist(err) {
			t.Errorf("%s of %s: %v", ip, id, err)
		}
	}
}

// What was remembered is not trusted where it would take somebody else's address.
func TestReleaseReadsAgain(t *testing.T) {
	dir := t.TempDir()
	d := openLeases(t, dir)
	lock(t, d)
	if ok, err := d.Reserve("mine", "eth0", net.ParseIP("10.0.0.5"), "0"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	file := filepath.Join(dir, "net", "10.0.0.5")
	if err := os.WriteFile(file, []byte("theirs\r\neth0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.ReleaseByID("mine", "eth0"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("another pod's lease was removed:", err)
	}
	if err := d.ReleaseByID("theirs", "eth0"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Error(err)
	}
	d.Unlock()
	os.RemoveAll(filepath.Join(dir, "net")) // and the lock with it
	lock(t, d)
	if ok, err := d.Reserve("mine", "eth0", net.ParseIP("10.0.0.5"), "0"); !ok || err != nil {
		t.Error(ok, err)
	}
	d.Unlock()
	other := openLeases(t, dir)
	lock(t, other)
	if ips := other.GetByID("mine", "eth0"); len(ips) != 1 {
		t.Error(ips)
	}
	other.Unlock()
}

func lock(t *testing.T, d *leaseDir) {
	t.Helper()
	if err := d.Lock(); err != nil {
		t.Fatal(err)
	}
}

// A directory that cannot be used is an error of the allocation, since the allocator drops that of Lock.
func TestBrokenDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "net"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := allocator.NewIPAllocator(ranges(t, "10.0.0.2", "10.0.0.9"), openLeases(t, dir), 0)
	if ipc, err := a.Get("id", "eth0", nil); err == nil {
		t.Error(ipc)
	}
	if err := a.Release("id", "eth0"); err == nil {
		t.Error("no error")
	}
}

func TestLockHeldByAnother(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := unix.Flock(int(g.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := flockWithin(f, 0); err == nil {
		t.Error("locked twice")
	}
	g.Close()
	if err := flockWithin(f, lockPatience); err != nil {
		t.Error(err)
	}
}

// A network has files that are no leases, and names that try to be more than a name.
func TestLeasesList(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"10.0.0.1": "a\r\neth0", "fd00::1": "b", "lock": "", "last_reserved_ip.0": "10.0.0.1", "10.0.0.x": "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Leases(dir)
	if err != nil || len(got) != 2 || got[dir+"/10.0.0.1"] != "a" || got[dir+"/fd00::1"] != "b" {
		t.Error(got, err)
	}
}
