package criu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// fakeEnv makes the test executable a criu: its value says of which kind.
const fakeEnv = "CRIU_TEST_FAKE"

func TestMain(m *testing.M) {
	if kind := os.Getenv(fakeEnv); kind != "" {
		fake(kind)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fake answers one request on descriptor 3, as criu does.
func fake(kind string) {
	const sock = 3
	buf := make([]byte, 64<<10)
	read := func() *rpc.CriuReq {
		n, err := unix.Read(sock, buf)
		req := new(rpc.CriuReq)
		if err != nil || req.UnmarshalVT(buf[:n]) != nil {
			os.Exit(9)
		}
		return req
	}
	yes := true
	answer := func(resp *rpc.CriuResp, fds ...int) {
		if resp.Success == nil {
			resp.Success = &yes
		}
		b, _ := resp.MarshalVT()
		_ = unix.Sendmsg(sock, b, unix.UnixRights(fds...), nil, 0)
	}
	req := read()
	switch {
	case kind == "dies":
		os.Exit(3)
	case req.GetType() == rpc.CriuReqType_VERSION:
		major, minor := int32(3), int32(19)
		if kind == "old" {
			minor = 15
		}
		answer(&rpc.CriuResp{Type: req.Type, Version: &rpc.CriuVersion{MajorNumber: &major, MinorNumber: &minor}})
	case kind == "fails":
		no, n, text := false, int32(unix.EPERM), "no such luck"
		answer(&rpc.CriuResp{Type: req.Type, Success: &no, CrErrno: &n, CrErrmsg: &text})
		os.Exit(1)
	default:
		pid := int32(42)
		for _, script := range []string{"setup-namespaces", "orphan-pts-master"} {
			answer(&rpc.CriuResp{Type: rpc.CriuReqType_NOTIFY.Enum(), Notify: &rpc.CriuNotify{Script: &script, Pid: &pid}}, 0)
			if !read().GetNotifySuccess() {
				no := false
				answer(&rpc.CriuResp{Type: req.Type, Success: &no})
				os.Exit(1)
			}
		}
		answer(&rpc.CriuResp{Type: req.Type})
	}
}

func pretend(t *testing.T, kind string) {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, "criu")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Setenv(fakeEnv, kind)
}

func TestFind(t *testing.T) {
	for kind, want := range map[string]string{"": "it is not on PATH", "old": "is version 3.15", "dies": "ended without an answer"} {
		if kind == "" {
			t.Setenv("PATH", t.TempDir())
		} else {
			pretend(t, kind)
		}
		_, err := Find()
		if err == nil || !strings.Contains(err.Error(), want) || kind != "dies" && errs.KindOf(err) != errs.Unsupported {
			t.Errorf("%q: %v", kind, err)
		}
	}
	pretend(t, "good")
	c, err := Find()
	if err != nil || c.Version != 31900 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestSession(t *testing.T) {
	pretend(t, "good")
	c, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	req := &rpc.CriuReq{Type: rpc.CriuReqType_RESTORE.Enum()}
	var told []string
	s := &Session{
		Started: func(pid int) error { return unix.Kill(pid, 0) },
		Notify: func(script string, pid int, file *os.File) error {
			if pid != 42 || file == nil {
				t.Errorf("%s: pid %d, file %v", script, pid, file)
			}
			file.Close()
			told = append(told, script)
			return nil
		},
	}
	if resp, err := s.Run(c, req); err != nil || resp.GetType() != rpc.CriuReqType_RESTORE || len(told) != 2 {
		t.Errorf("%v, %v, %v", resp, err, told)
	}
	no := errors.New("no")
	s.Notify = func(_ string, _ int, file *os.File) error { file.Close(); return no }
	if _, err := s.Run(c, req); !errors.Is(err, no) {
		t.Error(err)
	}
	t.Setenv(fakeEnv, "fails")
	if _, err := s.Run(c, req); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "no such luck") {
		t.Error(err)
	}
}

func TestCheckImages(t *testing.T) {
	for name, c := range map[string]struct {
		make func(dir string) error
		want string
	}{
		"plain":  {func(dir string) error { return os.WriteFile(dir+"/core-1.img", nil, 0o600) }, ""},
		"link":   {func(dir string) error { return os.Symlink("/etc/passwd", dir+"/restore.log") }, "restore.log is neither"},
		"fifo":   {func(dir string) error { return unix.Mkfifo(dir+"/pages-1.img", 0o600) }, "pages-1.img is neither"},
		"parent": {func(dir string) error { return os.Symlink(t.TempDir(), dir+"/parent") }, ""},
		"loop":   {func(dir string) error { return os.Symlink(".", dir+"/parent") }, "more than 64 parents"},
		"file":   {func(dir string) error { return os.Symlink("/etc/passwd", dir+"/parent") }, "not a directory"},
		"below": {func(dir string) error {
			p := t.TempDir()
			return errors.Join(os.Symlink("/etc", p+"/x.img"), os.Symlink(p, dir+"/parent"))
		}, "x.img is neither"},
	} {
		dir := t.TempDir()
		if err := c.make(dir); err != nil {
			t.Fatal(err)
		}
		f, err := OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		err = CheckImages(f)
		f.Close()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestFiles(t *testing.T) {
	dir, err := OpenDir(filepath.Join(t.TempDir(), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, []byte("secret"), 0o600)
	os.Symlink(secret, filepath.Join(dir.Name(), "d.json"))
	if b, err := ReadFile(dir, "d.json"); err == nil {
		t.Errorf("read %q through a link", b)
	}
	if err := WriteFile(dir, "d.json", []byte("ours")); err != nil {
		t.Error(err)
	}
	if b, err := ReadFile(dir, "d.json"); string(b) != "ours" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if b, _ := os.ReadFile(secret); string(b) != "secret" {
		t.Error("written through a link")
	}
	unix.Mkfifo(filepath.Join(dir.Name(), "fifo"), 0o600)
	if _, err := ReadFile(dir, "fifo"); err == nil {
		t.Error("read a fifo")
	}
	os.WriteFile(filepath.Join(dir.Name(), "big"), make([]byte, maxFile+1), 0o600)
	if _, err := ReadFile(dir, "big"); err == nil {
		t.Error("read too much")
	}
	os.WriteFile(filepath.Join(dir.Name(), "log"), []byte("(0.1) x\n(0.2) Error (a.c:1): first\n(0.3) Error (b.c:2): last\n"), 0o600)
	if err := Explain(unix.EPERM, dir, "log"); !errors.Is(err, unix.EPERM) || !strings.HasSuffix(err.Error(), "last") {
		t.Error(err)
	}
	if err := FreshLog(dir, "log", "none"); err != nil {
		t.Error(err)
	}
}

func TestSplitAddress(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.1:27": "10.0.0.1 27", "[::1]:80": "::1 80", "host:1": "host 1", "::1:80": "", ":80": "", "a:": "", "a": "", "": "", "[]:1": ""} {
		a, p, ok := SplitAddress(in)
		if ok != (want != "") || ok && a+" "+p != want {
			t.Errorf("%q: %q %q %v", in, a, p, ok)
		}
	}
}
