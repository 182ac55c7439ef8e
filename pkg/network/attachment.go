package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/network/internal/netns"
)

const attachmentsDir = "attachments"

// attachment is what is recorded before the first plugin runs and removed after the last one undid its
// work: everything that can leak hangs on it.
type attachment struct {
	ID      string
	Network string
	Config  []byte // the whole configuration list, as it was
	Exec    bool   // an exec'd plugin takes part: the namespace has a name
}

func (m *Manager) attachmentFile(id string) string {
	return filepath.Join(m.cfg.StateDir, attachmentsDir, id)
}

// record writes the attachment. It is synced only where an exec'd plugin may keep leases that survive a
// power cut.
func (m *Manager) record(a *attachment) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	file := m.attachmentFile(a.ID)
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return errs.New(errs.Exists, "attach pod %s: it is attached, or was not detached after a failure. Detach it first", a.ID)
	}
	if err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	_, err = f.Write(data)
	if err == nil && a.Exec {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(file)
		return fmt.Errorf("record attachment: %w", err)
	}
	return nil
}

// recorded returns the pod's attachment, or nil when there is none. After a crash in the middle of record
// nothing but the pod's ID is known, and nothing was done yet; after a power cut the same may be left of a
// whole record.
func (m *Manager) recorded(id string) (*attachment, error) {
	data, err := os.ReadFile(m.attachmentFile(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read attachment: %w", err)
	}
	a := &attachment{}
	if json.Unmarshal(data, a) == nil && a.ID == id {
		return a, nil
	}
	return &attachment{ID: id}, nil
}

// list returns the configuration that the pod was attached with. Of a torn record it is the present one,
// which is the best guess, and nil when there is none.
func (m *Manager) list(a *attachment) (*libcni.NetworkConfigList, error) {
	if a.Config == nil {
		list, err := m.network()
		if err != nil {
			return nil, nil //nolint:nilerr // without any configuration there is nothing to ask
		}
		a.Exec = m.execs(list)
		return list, nil
	}
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return nil, fmt.Errorf("read the configuration that pod %s was attached with: %w", a.ID, err)
	}
	return list, nil
}

func (m *Manager) forget(id string) error {
	if err := os.Remove(m.attachmentFile(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove attachment: %w", err)
	}
	return nil
}

// attachments returns the IDs of all recorded attachments.
func (m *Manager) attachments() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(m.cfg.StateDir, attachmentsDir))
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if safeName.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func (m *Manager) bindPath(id string) string { return filepath.Join(m.cfg.NetnsDir, "cri-"+id) }

// bind gives the pod's network namespace a name that other processes can open. It is idempotent.
func (m *Manager) bind(pod Pod) (string, error) {
	path := m.bindPath(pod.ID)
	ns, err := netns.Open(pod.Netns)
	if err != nil {
		return "", err
	}
	if ns == nil {
		return "", errs.New(errs.NotFound, "bind network namespace: %s does not exist", pod.Netns)
	}
	defer ns.Close()
	if err := m.unbind(pod.ID); err != nil { // of an earlier attempt
		return "", err
	}
	if err := os.MkdirAll(m.cfg.NetnsDir, 0o755); err != nil {
		return "", fmt.Errorf("bind network namespace: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return "", fmt.Errorf("bind network namespace: %w", err)
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return "", fmt.Errorf("bind network namespace at %s: %w", path, err)
	}
	return path, nil
}

// unbind removes the name. Without one it does nothing.
func (m *Manager) unbind(id string) error {
	path := m.bindPath(id)
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // an earlier attempt may have bound it twice
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EINVAL) { // not a mount point any more
			return fmt.Errorf("unbind network namespace %s: %w", path, err)
		}
		break
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unbind network namespace: %w", err)
	}
	return nil
}
