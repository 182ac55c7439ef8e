//go:build root

package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/internal/testroot"
	"github.com/cri-server/cri-server/pkg/runtime/criu"
)

// needCriu skips where criu is not, or does not understand this kernel.
func needCriu(t *testing.T) {
	t.Helper()
	testroot.NeedRoot(t)
	tool, err := criu.Find()
	if err != nil {
		testroot.Skip(t, err.Error())
	}
	if out, err := exec.Command(tool.Path, "check").CombinedOutput(); err != nil {
		testroot.Skip(t, "criu check: "+err.Error()+": "+strings.TrimSpace(string(out)))
	}
}

// piped runs a command whose container has pipes to the test: stdin is written to the first, what it prints is read
// from the second.
func (b *bench) piped(args ...string) (in *os.File, out *os.File) {
	b.t.Helper()
	stdin, in, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { in.Close(); out.Close() })
	cmd := b.cmd(args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stdout
	err = cmd.Run()
	stdin.Close()
	stdout.Close()
	if err != nil {
		text, _ := io.ReadAll(out)
		b.t.Fatalf("%v: %v: %s", args, err, text)
	}
	return in, out
}

// echo holds that the container answers.
func echo(t *testing.T, in, out *os.File, word, want string) {
	t.Helper()
	if _, err := in.WriteString(word + "\n"); err != nil {
		t.Fatal(err)
	}
	_ = out.SetReadDeadline(time.Now().Add(60 * time.Second))
	buf := make([]byte, 256)
	n, err := out.Read(buf)
	if err != nil || string(buf[:n]) != want+"\n" {
		t.Fatalf("the container answered %q, %v; want %q", buf[:n], err, want)
	}
}

const counting = `n=0; while read w; do n=$((n+1)); echo "$n $w"; done`

func (b *bench) checkpointed(change func(*specs.Spec), script string) {
	b.t.Helper()
	volume := filepath.Join(b.t.TempDir(), "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Symlink("/real", filepath.Join(b.bundle, "rootfs/link")); err != nil {
		b.t.Fatal(err)
	}
	b.config("c1", func(s *specs.Spec) {
		s.Root.Readonly = false
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/link/volume", Source: volume, Options: []string{"bind"}},
			specs.Mount{Destination: "/link/volume/below", Source: b.t.TempDir(), Options: []string{"bind"}})
		if change != nil {
			change(s)
		}
	}, "sh", "-c", script)
}

// TestCheckpoint takes a container with a volume below a link, masked paths and pipes through two rounds.
func TestCheckpoint(t *testing.T) {
	needCriu(t)
	for _, mode := range []string{"ignore", "soft"} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t)
			b.checkpointed(nil, counting)
			in, out := b.piped("run", "--detach", "--bundle", b.bundle, "c1")
			echo(t, in, out, "a", "1 a")
			images := t.TempDir()
			for round, want := range []string{"2 b", "3 b"} {
				b.ok("checkpoint", "--image-path", images, "--work-path", t.TempDir(), "--manage-cgroups-mode", mode, "c1")
				if r := b.do("state", "c1"); r.code == 0 {
					t.Errorf("after its checkpoint there is %s", r.out)
				}
				in, out = b.piped("restore", "--detach", "--bundle", b.bundle, "--image-path", images, "--manage-cgroups-mode", mode, "c1")
				if s := b.status("c1"); s != statusRunning {
					t.Errorf("round %d: %s", round, s)
				}
				echo(t, in, out, "b", want)
			}
			got := b.ok("exec", "c1", "sh", "-c", "cat /proc/self/cgroup; ip addr show lo; grep NoNewPrivs /proc/1/status; ls -d /real/volume/below; cat /proc/kcore; ! chmod 0 /proc/kcore")
			for _, want := range []string{"127.0.0.1/8", "NoNewPrivs:\t1", "/real/volume/below"} {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in %s", want, got)
				}
			}
			if st, err := os.Stat("/dev/null"); err != nil || st.Mode().Perm() != 0o666 {
				t.Errorf("the host's /dev/null is %v, %v", st.Mode(), err)
			}
			b.ok("delete", "--force", "c1")
		})
	}
}

// TestCheckpointStays: without pipes stdio is files of the host's; pre-dumps and --leave-running leave the container.
func TestCheckpointStays(t *testing.T) {
	needCriu(t)
	b := newBench(t)
	b.checkpointed(nil, "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.1; done")
	b.ok("run", "--detach", "--bundle", b.bundle, "c1")
	dir := t.TempDir()
	args := []string{"--image-path", dir + "/last", "--manage-cgroups-mode", "ignore", "--leave-running"}
	if r := b.do("checkpoint", "--pre-dump", "--image-path", dir+"/pre", "c1"); r.code == 0 {
		args = append(args, "--parent-path", "../pre")
	} else if !strings.Contains(r.err, "MemTrack") {
		t.Errorf("%+v", r)
	}
	b.ok(append(append([]string{"checkpoint"}, args...), "c1")...)
	if s := b.status("c1"); s != statusRunning {
		t.Errorf("it is %s", s)
	}
	b.ok("delete", "--force", "c1")
	b.ok("restore", "--detach", "--bundle", b.bundle, "--image-path", dir+"/last", "--manage-cgroups-mode", "ignore", "c1")
	b.wait("c1", statusRunning)
	b.ok("kill", "c1", "KILL")
	b.wait("c1", statusStopped)
	b.ok("delete", "c1")
}

// TestCheckpointTerminal: the terminal's master comes to the console socket again.
func TestCheckpointTerminal(t *testing.T) {
	needCriu(t)
	b := newBench(t)
	b.checkpointed(func(s *specs.Spec) { s.Process.Terminal = true }, counting)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	masters := make(chan *os.File, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			oob, buf := make([]byte, unix.CmsgSpace(4)), make([]byte, 256)
			_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(buf, oob)
			c.Close()
			if err != nil {
				continue
			}
			msgs, _ := unix.ParseSocketControlMessage(oob[:n])
			fds, _ := unix.ParseUnixRights(&msgs[0])
			_ = unix.SetNonblock(fds[0], true)
			masters <- os.NewFile(uintptr(fds[0]), "master")
		}
	}()
	b.ok("run", "--detach", "--bundle", b.bundle, "--console-socket", socket, "c1")
	answers := func(m *os.File, word, want string) {
		t.Helper()
		defer m.Close()
		m.WriteString(word + "\n")
		_ = m.SetReadDeadline(time.Now().Add(60 * time.Second))
		var all bytes.Buffer
		for !strings.Contains(all.String(), want) {
			buf := make([]byte, 256)
			n, err := m.Read(buf)
			if all.Write(buf[:n]); err != nil {
				t.Fatalf("%q, %v; want %q", all.String(), err, want)
			}
		}
	}
	m := <-masters
	b.wait("c1", statusRunning)
	kept, err := unix.Dup(int(m.Fd())) // a terminal without a master would be hung up
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kept)
	answers(m, "a", "1 a")
	images := t.TempDir()
	b.ok("checkpoint", "--image-path", images, "--manage-cgroups-mode", "ignore", "c1")
	restored := make(chan result, 1)
	go func() {
		restored <- b.do("restore", "--detach", "--bundle", b.bundle, "--image-path", images, "--manage-cgroups-mode", "ignore", "--console-socket", socket, "c1")
	}()
	select {
	case m = <-masters:
		answers(m, "b", "2 b")
	case r := <-restored:
		t.Errorf("no terminal came: %+v", r)
		restored <- r
	}
	if r := <-restored; r.code != 0 {
		t.Errorf("%+v", r)
	}
	b.ok("delete", "--force", "c1")
}

// TestRestoreHeld: what images say is held to the bundle.
func TestRestoreHeld(t *testing.T) {
	needCriu(t)
	b := newBench(t)
	b.checkpointed(nil, counting)
	in, out := b.piped("run", "--detach", "--bundle", b.bundle, "c1")
	echo(t, in, out, "a", "1 a")
	images := t.TempDir()
	b.ok("checkpoint", "--image-path", images, "--manage-cgroups-mode", "ignore", "c1")
	config, err := os.ReadFile(filepath.Join(b.bundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*specs.Spec){
		"that the container has not": func(s *specs.Spec) { s.Process.Capabilities = nil },
		"has no seccomp filter": func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"reboot"}, Action: specs.ActErrno}}}
		},
		"in the host's user namespace": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		},
		"mnt: No mapping for ": func(s *specs.Spec) { s.Mounts = s.Mounts[:len(s.Mounts)-2] },
	} {
		var s specs.Spec
		if err := json.Unmarshal(config, &s); err != nil {
			t.Fatal(err)
		}
		change(&s)
		data, _ := json.Marshal(&s)
		if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r := b.do("restore", "--detach", "--bundle", b.bundle, "--image-path", images, "--manage-cgroups-mode", "ignore", "c1")
		if r.code == 0 || !strings.Contains(r.err, want) {
			log, _ := exec.Command("grep", "Error", images+"/restore.log").Output()
			t.Errorf("want %q: %+v\n%s", want, r, log)
		}
		if r := b.do("state", "c1"); r.code == 0 {
			t.Errorf("there is a container: %s", r.out)
			b.do("delete", "--force", "c1")
		}
	}
}

// TestHostileImages needs no criu that works: nothing is asked of it.
func TestHostileImages(t *testing.T) {
	b := newBench(t)
	if _, err := criu.Find(); err != nil {
		testroot.Skip(t, err.Error())
	}
	b.config("c1", nil, "true")
	victim := filepath.Join(t.TempDir(), "victim")
	os.WriteFile(victim, []byte("precious"), 0o600)
	for _, name := range []string{restoreLog, "stats-restore", descriptorsFile, "inventory.img"} {
		images := t.TempDir()
		if err := os.Symlink(victim, filepath.Join(images, name)); err != nil {
			t.Fatal(err)
		}
		if r := b.do("restore", "--bundle", b.bundle, "--image-path", images, "c1"); r.code == 0 || !strings.Contains(r.err, "neither a regular file nor a directory") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
		t.Errorf("%q, %v", text, err)
	}
}

// TestCheckpointRefused: states and flags.
func TestCheckpointRefused(t *testing.T) {
	b := newBench(t)
	b.config("c1", nil, "sleep", "1000")
	b.ok("create", "--bundle", b.bundle, "c1")
	if r := b.do("checkpoint", "c1"); r.code != 1 || !strings.Contains(r.err, "Container cannot be checkpointed in created state") {
		t.Errorf("%+v", r)
	}
	b.ok("start", "c1")
	for args, want := range map[string]string{
		"--page-server nonsense":      "Use --page-server ADDRESS:PORT",
		"--page-server a:b":           "Invalid port number",
		"--lazy-pages --status-fd 99": "invalid --status-fd argument 99",
		"":                            "it is not on PATH",
		"--manage-cgroups-mode wrong": "it is not on PATH",
		"--leave-running --shell-job --ext-unix-sk": "it is not on PATH",
	} {
		cmd := b.cmd(append(append([]string{"checkpoint"}, strings.Fields(args)...), "c1")...)
		cmd.Env = append(cmd.Env, "PATH=/none")
		cmd.Dir = t.TempDir()
		if r := run(t, cmd); r.code != 1 || !strings.Contains(r.err, want) {
			t.Errorf("%s: %+v", args, r)
		}
	}
	b.ok("delete", "--force", "c1")
}
