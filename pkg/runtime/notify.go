package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/runtime/launch"
	"github.com/cri-server/cri-server/pkg/runtime/seccomp"
)

// planNotify opens the way to the agent that a profile with SCMP_ACT_NOTIFY names. later: another process
// does it, when the filter is loaded.
func (c *compiler) planNotify(f seccomp.Filter, later bool, state specs.State) error {
	if !f.Notify {
		return nil
	}
	if later {
		c.req.Notify = &launch.Notify{Socket: -1}
		return nil
	}
	sock, message, err := agent(f.ListenerPath, f.ListenerMetadata, state)
	if err != nil {
		return err
	}
	c.req.Notify = &launch.Notify{Socket: c.files.keep(sock, true), Message: message}
	return nil
}

// Agent connects to the seccomp agent of a profile with SCMP_ACT_NOTIFY, and returns what it is to be told
// (launch.Process.SetNotify): the parts of the message that the process's pid joins. A state without a pid
// is that of a container whose process it is. The caller closes the socket. Without SCMP_ACT_NOTIFY all
// is nil.
func Agent(profile *specs.LinuxSeccomp, state specs.State) (*os.File, []string, error) {
	f, err := compileFilter(profile)
	if err != nil || !f.Notify {
		return nil, nil, err
	}
	return agent(f.ListenerPath, f.ListenerMetadata, state)
}

func agent(path, metadata string, state specs.State) (*os.File, []string, error) {
	state.Version = specs.Version
	inner, err := json.Marshal(state)
	if err != nil {
		return nil, nil, err
	}
	data, err := json.Marshal(metadata)
	if err != nil {
		return nil, nil, err
	}
	sock, err := connect(path)
	if err != nil {
		return nil, nil, fmt.Errorf("failed to connect with seccomp agent specified in the seccomp profile: %w", err)
	}
	// A specs.ContainerProcessState, with room for the pid.
	rest := fmt.Sprintf(`,"ociVersion":%q,"fds":[%q],"metadata":%s,"state":{`, specs.Version, specs.SeccompFdName, data)
	message := []string{`{"pid":`, rest + string(inner[1:]) + "}"}
	if state.Pid == 0 {
		message = []string{`{"pid":`, rest + `"pid":`, "," + string(inner[1:]) + "}"}
	}
	return sock, message, nil
}

func (o *Options) agentState() specs.State {
	return specs.State{ID: o.ID, Status: specs.StateCreating, Bundle: o.Bundle, Annotations: o.Spec.Annotations}
}

// connect connects to a unix socket whose path may be longer than an address holds.
func connect(socket string) (*os.File, error) {
	dir, err := os.OpenFile(filepath.Dir(socket), unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	name := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(socket)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "connect", Path: socket, Err: errors.Unwrap(os.NewSyscallError("connect", err))}
	}
	return os.NewFile(uintptr(fd), "seccomp-agent"), nil
}
