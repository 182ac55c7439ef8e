package runtime

import (
	"encoding/binary"
	"fmt"
	"os"
	"sort"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	"github.com/cri-server/cri-server/pkg/sys"
)

// CheckNetDevices refuses network devices that cannot be moved: without a network namespace for them, or
// with a name that no device can have.
func CheckNetDevices(l *specs.Linux) error {
	if l == nil || len(l.NetDevices) == 0 {
		return nil
	}
	own := false
	for _, n := range l.Namespaces {
		own = own || n.Type == specs.NetworkNamespace
	}
	if !own {
		return errs.New(errs.Invalid, "unable to move network devices without a NET namespace")
	}
	for name, d := range l.NetDevices {
		for _, n := range []string{name, d.Name} {
			if n == "" && name != "" {
				continue
			}
			if n == "" || n == "." || n == ".." || len(n) >= unix.IFNAMSIZ || strings.ContainsAny(n, "/: \t\n\v\f\r\x00") {
				return errs.New(errs.Invalid, "netDevices: invalid network device name %q", n)
			}
		}
	}
	return nil
}

// LoopbackUp sets up the loopback device in the network namespace of a process.
func LoopbackUp(pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	err = sys.OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		r, err := newRoute()
		if err != nil {
			return err
		}
		defer r.close()
		return r.setUp(1, true)
	})
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// MoveNetDevices moves devices from this process's network namespace to another, gives them their names
// there, their permanent global addresses back, and sets them up. A failure leaves those that have been
// moved where they are: they return, or go, with the namespace.
func MoveNetDevices(devices map[string]specs.LinuxNetDevice, netns *os.File) error {
	if len(devices) == 0 {
		return nil
	}
	here, err := newRoute()
	if err != nil {
		return err
	}
	defer here.close()
	var there *route
	err = sys.OnThread(func() (err error) {
		if err = unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		there, err = newRoute() // a socket stays in the namespace that it was made in
		return err
	})
	if err != nil {
		return err
	}
	defer there.close()
	names := make([]string, 0, len(devices))
	for name := range devices {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		to := devices[name].Name
		if to == "" {
			to = name
		}
		if err := moveDevice(here, there, name, to, netns); err != nil {
			return fmt.Errorf("move netDevice %s to the container as %s: %w", name, to, err)
		}
	}
	return nil
}

func moveDevice(here, there *route, name, to string, netns *os.File) error {
	index, err := here.link(name)
	if err != nil {
		return fmt.Errorf("link not found for interface %s on runtime namespace: %w", name, err)
	}
	addrs, err := here.addresses(index)
	if err != nil {
		return fmt.Errorf("read its addresses: %w", err)
	}
	before, err := there.links()
	if err != nil {
		return err
	}
	if err := here.setUp(index, false); err != nil {
		return fmt.Errorf("set it down: %w", err)
	}
	var attrs []byte
	attrs = appendAttr(attrs, unix.IFLA_IFNAME, append([]byte(to), 0))
	attrs = appendAttr(attrs, unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(netns.Fd())))
	if err := here.do(unix.RTM_NEWLINK, 0, append(ifInfo(index, 0, 0), attrs...)); err != nil {
		return err
	}
	after, err := there.links()
	if err != nil {
		return err
	}
	for i := range after {
		if _, old := before[i]; !old {
			index = i // the number may be another there, and the name one of the kernel's choice
		}
	}
	for _, a := range addrs {
		a[4], a[5], a[6], a[7] = byte(index), byte(index>>8), byte(index>>16), byte(index>>24)
		if err := there.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a); err != nil {
			return fmt.Errorf("give it its address back: %w", err)
		}
	}
	if err := there.setUp(index, true); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	return nil
}

// route is a socket to the routing tables of one network namespace.
type route struct {
	fd  int
	seq uint32
}

func newRoute() (*route, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return &route{fd: fd}, nil
}

func (r *route) close() { unix.Close(r.fd) }

// do sends a request and waits for the kernel's answer to it.
func (r *route) do(kind uint16, flags uint16, body []byte) error {
	_, err := r.ask(kind, flags|unix.NLM_F_ACK, body)
	return err
}

// ask sends a request and returns the messages that answer it.
func (r *route) ask(kind uint16, flags uint16, body []byte) ([]syscall.NetlinkMessage, error) {
	r.seq++
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, kind)
	msg = binary.NativeEndian.AppendUint16(msg, flags|unix.NLM_F_REQUEST)
	msg = binary.NativeEndian.AppendUint32(msg, r.seq)
	msg = append(binary.NativeEndian.AppendUint32(msg, 0), body...)
	if err := unix.Sendto(r.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	var out []syscall.NetlinkMessage
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		list, err := syscall.ParseNetlinkMessage(append([]byte(nil), buf[:n]...))
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			switch m.Header.Type {
			case unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					if e := int32(binary.NativeEndian.Uint32(m.Data)); e != 0 {
						return nil, syscall.Errno(-e)
					}
				}
				return out, nil
			case unix.NLMSG_DONE:
				return out, nil
			}
			out = append(out, m)
			if m.Header.Flags&unix.NLM_F_MULTI == 0 {
				return out, nil
			}
		}
	}
}

// ifInfo is a struct ifinfomsg.
func ifInfo(index int32, flags, change uint32) []byte {
	b := make([]byte, 4, unix.SizeofIfInfomsg)
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

func appendAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// link finds a device by its name.
func (r *route) link(name string) (int32, error) {
	list, err := r.ask(unix.RTM_GETLINK, 0, appendAttr(ifInfo(0, 0, 0), unix.IFLA_IFNAME, append([]byte(name), 0)))
	if err != nil {
		return 0, err
	}
	if len(list) != 1 || len(list[0].Data) < unix.SizeofIfInfomsg {
		return 0, unix.ENODEV
	}
	return int32(binary.NativeEndian.Uint32(list[0].Data[4:])), nil
}

// links are the numbers of all devices.
func (r *route) links() (map[int32]bool, error) {
	list, err := r.ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifInfo(0, 0, 0))
	out := map[int32]bool{}
	for _, m := range list {
		if m.Header.Type == unix.RTM_NEWLINK && len(m.Data) >= unix.SizeofIfInfomsg {
			out[int32(binary.NativeEndian.Uint32(m.Data[4:]))] = true
		}
	}
	return out, err
}

func (r *route) setUp(index int32, up bool) error {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	return r.do(unix.RTM_NEWLINK, 0, ifInfo(index, flags, unix.IFF_UP))
}

// addresses are requests that give a device the permanent addresses of global scope which it has.
func (r *route) addresses(index int32) ([][]byte, error) {
	list, err := r.ask(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for i := range list {
		m := &list[i]
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg || int32(binary.NativeEndian.Uint32(m.Data[4:])) != index {
			continue
		}
		const flagsAt, scopeAt = 2, 3
		if m.Data[flagsAt]&unix.IFA_F_PERMANENT == 0 || m.Data[scopeAt] != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			return nil, err
		}
		req := append([]byte(nil), m.Data[:unix.SizeofIfAddrmsg]...)
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_ADDRESS, unix.IFA_LOCAL, unix.IFA_BROADCAST, unix.IFA_FLAGS, unix.IFA_RT_PRIORITY:
				req = appendAttr(req, a.Attr.Type, a.Value)
			}
		}
		out = append(out, req)
	}
	return out, nil
}
