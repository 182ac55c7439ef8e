//go:build root

package runtime_test

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime"
)

// agent is a seccomp agent that answers each call it is asked about with an errno.
func agent(t *testing.T, path string, errno int32) <-chan specs.ContainerProcessState {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	unix.Listen(fd, 8)
	told := make(chan specs.ContainerProcessState, 8)
	go func() {
		for {
			conn, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			buf, oob := make([]byte, 8192), make([]byte, 128)
			n, on, _, _, err := unix.Recvmsg(conn, buf, oob, 0)
			unix.Close(conn)
			var st specs.ContainerProcessState
			if err != nil || json.Unmarshal(buf[:n], &st) != nil {
				st.Metadata = "not read: " + string(buf[:n])
			}
			msgs, _ := unix.ParseSocketControlMessage(oob[:on])
			if len(msgs) == 1 {
				if fds, _ := unix.ParseUnixRights(&msgs[0]); len(fds) == 1 {
					go answer(fds[0], errno)
				}
			}
			told <- st
		}
	}()
	t.Cleanup(func() { unix.Shutdown(fd, unix.SHUT_RDWR); unix.Close(fd) })
	return told
}

// answer is the kernel's protocol on a listener: struct seccomp_notif, struct seccomp_notif_resp.
func answer(listener int, errno int32) {
	defer unix.Close(listener)
	for {
		var req [80]byte
		switch _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), 0xc0502100, uintptr(unsafe.Pointer(&req))); e {
		case 0:
		case unix.EINTR: // a signal of the Go runtime's
			continue
		default:
			return
		}
		var resp [24]byte
		copy(resp[:8], req[:8])
		binary.NativeEndian.PutUint32(resp[16:], uint32(-errno))
		unix.Syscall(unix.SYS_IOCTL, uintptr(listener), 0xc0182101, uintptr(unsafe.Pointer(&resp)))
	}
}

func TestSeccompNotify(t *testing.T) {
	testroot.NeedRoot(t)
	root := testroot.Rootfs(t, t.TempDir())
	path := filepath.Join(t.TempDir(), "agent")
	told := agent(t, path, int32(unix.ENOMEDIUM))
	for _, nnp := range []bool{true, false} {
		for _, gate := range []bool{true, false} {
			s := spec(root, "mkdir /made; sleep 1000")
			s.Annotations = map[string]string{"a": "b"}
			s.Process.NoNewPrivileges = nnp
			s.Linux.Seccomp = &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: `"meta"`,
				Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActNotify}},
			}
			if gate { // held by the launcher, and let go
				r, err := run(t, runtime.Options{Bundle: "/bundle", Spec: func() *specs.Spec {
					c := *s
					p := *s.Process
					p.Args = []string{"mkdir", "/made"}
					c.Process = &p
					return &c
				}(), Gate: true})
				if err != nil || r.code != 1 || r.err != "mkdir: can't create directory '/made': No medium found\n" {
					t.Errorf("nnp=%v: %+v, %v", nnp, r, err)
				}
				<-told
				continue
			}
			c := begin(t, runtime.Options{Bundle: "/bundle", Spec: s})
			st := <-told
			if st.Pid != c.Pid || st.State.Pid != c.Pid || st.State.ID != "test" || st.Metadata != `"meta"` || st.State.Bundle != "/bundle" ||
				st.State.Annotations["a"] != "b" || len(st.Fds) != 1 || st.Fds[0] != specs.SeccompFdName || st.State.Status != specs.StateCreating || st.Version != specs.Version {
				t.Errorf("nnp=%v: %+v, process %d", nnp, st, c.Pid)
			}
			r, err := c.exec(t, "mkdir /other", func(o *runtime.ExecOptions) { o.Bundle = "/bundle" })
			if err != nil || r.code != 1 || r.err != "mkdir: can't create directory '/other': No medium found\n" {
				t.Errorf("exec, nnp=%v: %+v, %v", nnp, r, err)
			}
			if st := <-told; st.Pid == c.Pid || st.Pid == 0 || st.State.Pid != c.Pid || st.State.Status != specs.StateRunning {
				t.Errorf("exec, nnp=%v: %+v", nnp, st)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(root, "made")); err == nil {
		t.Error("the directory was made")
	}
}
