package testroot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// User is a user of this machine without privileges, whom /etc/subuid and /etc/subgid grant further IDs.
// The files that say so are of Main's mount namespace alone.
type User struct {
	Name     string
	UID, GID int
	Sub      int    // first of the 65536 users and groups that he may map
	Dir      string // his, on a tmpfs, 0755
	Runtime  string // XDG_RUNTIME_DIR, 0700
}

const (
	userName = "criuser"
	userID   = 23456
	subID    = 2000000
)

// Unprivileged returns a user, with directories of the test's own, which go with it.
func Unprivileged(t testing.TB) *User {
	t.Helper()
	NeedRoot(t)
	if err := accounts(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/run", userName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	u := &User{Name: userName, UID: userID, GID: userID, Sub: subID, Dir: dir, Runtime: filepath.Join(dir, "run")}
	if err := os.Mkdir(u.Runtime, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	u.Give(t, dir)
	return u
}

// Give makes the user the owner of a tree.
func (u *User) Give(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(p, u.UID, u.GID)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Become makes a command the user's: it has no capabilities, one group, and a short environment to which the
// command's own, when it has one, is added.
func (u *User) Become(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}
	cmd.Dir = u.Dir
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + u.Dir, "USER=" + u.Name, "XDG_RUNTIME_DIR=" + u.Runtime, "TMPDIR=" + u.Dir,
	}, cmd.Env...)
}

// accounts puts files over those of the machine that name users and what they may map.
var accounts = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("/run", "accounts")
	if err != nil {
		return err
	}
	grant := fmt.Sprintf("%s:%d:65536\n", userName, subID)
	for file, line := range map[string]string{
		"/etc/subuid": grant, "/etc/subgid": grant,
		"/etc/passwd": fmt.Sprintf("%s:x:%d:%d::/:/bin/sh\n", userName, userID, userID),
		"/etc/group":  fmt.Sprintf("%s:x:%d:\n", userName, userID),
	} {
		text, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if strings.HasPrefix(filepath.Base(file), "sub") {
			text = nil
			if err != nil { // a machine without shadow's package has none
				continue
			}
		}
		over := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(over, append(text, line...), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(over, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", file, err)
		}
	}
	return nil
})
