package systemd

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Where systemd listens: its own socket for root, and the bus, which needs a bus daemon but may be all
// that a container with the host's socket has.
const (
	privateSocket = "/run/systemd/private"
	systemBus     = "/run/dbus/system_bus_socket"
)

// Names on the bus.
const (
	busName       = "org.freedesktop.DBus"
	busPath       = "/org/freedesktop/DBus"
	managerName   = "org.freedesktop.systemd1"
	managerPath   = "/org/freedesktop/systemd1"
	managerIface  = "org.freedesktop.systemd1.Manager"
	propertyIface = "org.freedesktop.DBus.Properties"
)

// patience bounds a call, and the wait for a job, where the context does not: systemd may be busy reloading.
const patience = 30 * time.Second

// Conn is a connection to a systemd manager. It is for one goroutine at a time.
type Conn struct {
	fd     int
	serial uint32
	buf    []byte     // received, not yet read
	jobs   []*message // JobRemoved signals that nobody has waited for yet
}

// Booted reports whether systemd is the machine's init, as sd_booted(3) tells.
func Booted() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir()
}

// Dial connects to the manager of the system, or with user to that of the caller's session. The caller closes
// the connection. It is errs.Unavailable when no manager answers.
func Dial(ctx context.Context, user bool) (*Conn, error) {
	list, err := addresses(user, os.Getenv)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, a := range list {
		c, err := dial(ctx, a)
		if err == nil {
			return c, nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", a.path, err))
	}
	return nil, errs.New(errs.Unavailable, "connect to systemd: %w. Is it this machine's init? If not, manage cgroups by cgroupfs", errors.Join(failed...))
}

// address is a socket to try.
type address struct {
	path   string // begins with @ in the abstract namespace
	direct bool   // the manager itself listens, no bus
}

// addresses lists what to try, the most direct way first.
func addresses(user bool, env func(string) string) ([]address, error) {
	if !user {
		return []address{{privateSocket, true}, {systemBus, false}}, nil
	}
	var list []address
	for _, a := range strings.Split(env("DBUS_SESSION_BUS_ADDRESS"), ";") {
		if p := unixPath(a); p != "" {
			list = append(list, address{p, false})
		}
	}
	if dir := env("XDG_RUNTIME_DIR"); dir != "" {
		list = append(list, address{dir + "/systemd/private", true}, address{dir + "/bus", false})
	}
	if len(list) == 0 {
		return nil, errs.New(errs.Unavailable, "connect to the user's systemd: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set. Log in to a session of systemd's")
	}
	return list, nil
}

// unixPath reads the socket's path out of a D-Bus server address.
func unixPath(addr string) string {
	rest, ok := strings.CutPrefix(addr, "unix:")
	if !ok {
		return ""
	}
	for _, kv := range strings.Split(rest, ",") {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "path":
			return unpercent(v)
		case "abstract":
			return "@" + unpercent(v)
		}
	}
	return ""
}

func unpercent(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// dial connects and says who we are.
func dial(ctx context.Context, a address) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	c := &Conn{fd: fd}
	err = os.NewSyscallError("connect", unix.Connect(fd, &unix.SockaddrUnix{Name: a.path}))
	if err == nil {
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
	}
	if err == nil {
		err = c.authenticate(ctx)
	}
	if err == nil && !a.direct {
		err = c.greet(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection.
func (c *Conn) Close() { unix.Close(c.fd) }

// authenticate does SASL EXTERNAL: the socket's peer credentials say who we are, the text only repeats it. BEGIN
// goes along, and no message before the answer: systemd does not look again at what it has read together with BEGIN.
func (c *Conn) authenticate(ctx context.Context) error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(peerUID())))
	if err := c.write(ctx, []byte("\x00AUTH EXTERNAL "+uid+"\r\nBEGIN\r\n")); err != nil {
		return err
	}
	for !bytes.Contains(c.buf, []byte("\r\n")) {
		if len(c.buf) > 4096 {
			return errors.New("authenticate: the answer has no end")
		}
		if err := c.read(ctx); err != nil {
			return err
		}
	}
	line, rest, _ := bytes.Cut(c.buf, []byte("\r\n"))
	if !bytes.HasPrefix(line, []byte("OK ")) {
		return fmt.Errorf("authenticate as user %d: the answer is %q", peerUID(), line)
	}
	c.buf = rest
	return nil
}

// peerUID is our user as the other end sees it: in a user namespace that of its owner outside.
func peerUID() int {
	uid := os.Geteuid()
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return uid
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, size int
		if n, _ := fmt.Sscan(line, &inside, &outside, &size); n == 3 && uid >= inside && uid-inside < size {
			return outside + uid - inside
		}
	}
	return uid
}

// greet is what a bus wants first, and asks it for the signals we wait for; a manager's own socket sends them
// unasked.
func (c *Conn) greet(ctx context.Context) error {
	if _, err := c.call(ctx, busName, busPath, busName, "Hello", ""); err != nil {
		return err
	}
	rule := "type='signal',sender='" + managerName + "',interface='" + managerIface + "',member='JobRemoved',path='" + managerPath + "'"
	_, err := c.call(ctx, busName, busPath, busName, "AddMatch", "s", rule)
	return err
}

// poll waits until the socket is ready or ctx has ended.
func (c *Conn) poll(ctx context.Context, events int16) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		wait := 100 // a context has no descriptor: look for its end now and then
		if deadline, ok := ctx.Deadline(); ok {
			wait = min(wait, int(time.Until(deadline).Milliseconds())+1)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: events}}, max(wait, 0))
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
	}
}

func (c *Conn) write(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		n, err := unix.SendmsgN(c.fd, b, nil, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if err := c.poll(ctx, unix.POLLOUT); err != nil {
				return err
			}
		case err != nil:
			return os.NewSyscallError("send", err)
		default:
			b = b[n:]
		}
	}
	return nil
}

// read appends what has come to c.buf, and waits until something has.
func (c *Conn) read(ctx context.Context) error {
	var chunk [8192]byte
	for {
		n, err := unix.Read(c.fd, chunk[:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			if err := c.poll(ctx, unix.POLLIN); err != nil {
				return err
			}
		case err != nil:
			return os.NewSyscallError("read", err)
		case n == 0:
			return errors.New("the connection was closed")
		default:
			c.buf = append(c.buf, chunk[:n]...)
			return nil
		}
	}
}

// receive returns the next message.
func (c *Conn) receive(ctx context.Context) (*message, error) {
	for {
		if len(c.buf) >= prefixSize {
			n, err := messageSize(c.buf)
			if err != nil {
				return nil, err
			}
			if len(c.buf) >= n {
				m, err := unmarshal(c.buf[:n])
				c.buf = append([]byte{}, c.buf[n:]...)
				return m, err
			}
		}
		if err := c.read(ctx); err != nil {
			return nil, err
		}
	}
}

// busError is an error that the other side answered with.
type busError struct{ name, text string }

func (e *busError) Error() string {
	if e.text == "" {
		return e.name
	}
	return e.text
}

// isBusError reports whether an error is one of systemd's of that last name.
func isBusError(err error, name string) bool {
	var e *busError
	return errors.As(err, &e) && strings.HasSuffix(e.name, "."+name)
}

// call calls a method and waits for its answer. Signals of ended jobs that come meanwhile are kept.
func (c *Conn) call(ctx context.Context, dest, path, iface, member, sig string, args ...any) (*message, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c.serial++
	m := message{kind: typeCall, serial: c.serial, path: path, iface: iface, member: member, destination: dest, sig: sig, body: args}
	b, err := m.marshal()
	if err == nil {
		err = c.write(ctx, b)
	}
	for err == nil {
		var r *message
		if r, err = c.receive(ctx); err != nil {
			break
		}
		switch {
		case r.kind == typeSignal && r.member == "JobRemoved":
			c.jobs = append(c.jobs, r)
		case r.kind == typeReturn && r.reply == m.serial:
			return r, nil
		case r.kind == typeError && r.reply == m.serial:
			err = &busError{r.errorName, r.text(0)}
		}
	}
	return nil, fmt.Errorf("%s: %w", member, err)
}

// manager calls a method of the manager.
func (c *Conn) manager(ctx context.Context, member, sig string, args ...any) (*message, error) {
	return c.call(ctx, managerName, managerPath, managerIface, member, sig, args...)
}

// wait waits for the end of a job and returns its result: "done" is the good one.
func (c *Conn) wait(ctx context.Context, job string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		for _, m := range c.jobs {
			if m.text(1) == job {
				c.jobs = nil
				return m.text(3), nil
			}
		}
		c.jobs = nil
		m, err := c.receive(ctx)
		if err != nil {
			return "", fmt.Errorf("wait for a job of systemd's: %w", err)
		}
		if m.kind == typeSignal && m.member == "JobRemoved" {
			c.jobs = append(c.jobs, m)
		}
	}
}

// property reads a property of the manager that is a string.
func (c *Conn) property(ctx context.Context, path, iface, name string) (Value, error) {
	r, err := c.call(ctx, managerName, path, propertyIface, "Get", "ss", iface, name)
	if err != nil {
		return Value{}, err
	}
	if len(r.body) == 0 {
		return Value{}, errTruncated
	}
	v, _ := r.body[0].(Value)
	return v, nil
}
