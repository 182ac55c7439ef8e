package sandbox

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// ballastSize is enough for the records of what ends while the disk is full: each is a few KiB, and replaces another.
const ballastSize = 4 << 20

// ballast is a file that takes up space to give back: with nothing left on the disk, pods and containers must still be
// stopped and removed, which rewrites their records. The zero value has none.
type ballast struct {
	path string
	gone bool
}

// fill takes the space where it is not taken. On a disk that is too full for that it stays away.
func (b *ballast) fill() {
	st, err := os.Lstat(b.path)
	if b.gone = err != nil || st.Size() < ballastSize; !b.gone {
		return
	}
	f, err := os.OpenFile(b.path, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600) //nolint:forbidigo // our own state directory
	if err != nil {
		return
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, ballastSize)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, ballastSize))
	}
	if b.gone = err != nil; b.gone {
		_ = os.Remove(b.path)
	}
}

// drop gives the space back and reports whether there was any.
func (b *ballast) drop() bool {
	b.gone = true
	return b.path != "" && os.Remove(b.path) == nil
}

// noSpace says whether err is of a disk, or a quota, that is full.
func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// record writes what a change says. On a full disk what exists already may use the ballast; what is new may not.
// m.mu is held.
func (m *Manager) record(c change) error {
	err := m.write(c)
	if noSpace(err) && m.snap.Load().has(c) && m.ballast.drop() {
		err = m.write(c)
	}
	if err == nil && m.ballast.gone && (c.dropPod != "" || c.dropContainer != "") {
		m.ballast.fill()
	}
	return err
}

// has says whether what a change is about is there.
func (s *snapshot) has(c change) bool {
	switch {
	case c.pod != nil:
		return s.pods[c.pod.ID] != nil
	case c.container != nil:
		return s.containers[c.container.ID] != nil
	}
	return true
}
