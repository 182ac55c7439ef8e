// Package systemd speaks to systemd for the cgroup driver of that name: it starts transient scopes for the
// processes of containers, changes their properties, and stops them.
//
// It is a few D-Bus messages over a unix socket, marshalled here, because cri-runtime links neither a D-Bus
// library nor package net; the daemon uses the same code. The specification is D-Bus's (dbus.freedesktop.org,
// dbus-specification.html); the methods are those of org.freedesktop.systemd1(5), the properties those of
// systemd.resource-control(5), named and converted as runc does, since kubelets and scripts look at them.
//
// The package keeps no connection: whoever dials closes. Nothing retries or sleeps: the ends of jobs are
// signals. An annotation becomes a property through Annotations alone, which only the runtime's own command
// line calls: what a pod says of itself must never reach systemd (CVE-2024-3154).
package systemd

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/cri-server/cri-server/pkg/errs"
)

// Unit is a scope and the slice that it is in.
type Unit struct {
	Slice string `json:"slice"` // "kubepods-pod1.slice"
	Name  string `json:"name"`  // "cri-0123.scope"
	User  bool   `json:"user,omitempty"`

	Container string `json:"-"` // the last part of the path that names it
}

// DefaultSlice is where scopes go that say nothing of it.
func DefaultSlice(user bool) string {
	if user {
		return "user.slice"
	}
	return "system.slice"
}

// ParsePath reads a cgroupsPath of the form "slice:prefix:name", as runc does. An empty one is a scope of the
// container's ID in the default slice.
func ParsePath(cgroupsPath, id string, user bool) (Unit, error) {
	slice, prefix, name := "", "runc", id // what scripts that know runc look for
	if cgroupsPath != "" {
		parts := strings.Split(cgroupsPath, ":")
		if len(parts) != 3 {
			return Unit{}, errs.New(errs.Invalid, "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got %q instead", cgroupsPath)
		}
		slice, prefix, name = parts[0], parts[1], parts[2]
	}
	if slice == "" {
		slice = DefaultSlice(user)
	}
	u := Unit{Slice: slice, Name: prefix + "-" + name + ".scope", User: user, Container: name}
	if strings.HasSuffix(name, ".slice") {
		return Unit{}, errs.New(errs.Invalid, "cgroupsPath %q: a container's process is in a scope, not in a slice", cgroupsPath)
	}
	_, err := u.Cgroup()
	return u, err
}

// Cgroup is the unit's path below the manager's own.
func (u Unit) Cgroup() (string, error) {
	dir, err := ExpandSlice(u.Slice)
	if err != nil {
		return "", err
	}
	if u.Name == "" || len(u.Name) > 255 || strings.Trim(u.Name, unitChars) != "" {
		return "", errs.New(errs.Invalid, "unit name %q: it is made of letters, digits and any of :-_.\\@, at most 255", u.Name)
	}
	return path.Join(dir, u.Name), nil
}

// unitChars is what a unit's name is made of (systemd.unit(5)).
const unitChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@"

// ExpandSlice is the cgroup of a slice: "a-b.slice" is in "a.slice".
func ExpandSlice(slice string) (string, error) {
	bad := errs.New(errs.Invalid, "invalid slice name: %s", slice)
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || strings.Trim(name, unitChars) != "" || len(slice) > 255 {
		return "", bad
	}
	if name == "-" {
		return "/", nil
	}
	dir, prefix := "", ""
	for _, part := range strings.Split(name, "-") {
		if part == "" {
			return "", bad
		}
		prefix += part
		dir += "/" + prefix + ".slice"
		prefix += "-"
	}
	return dir, nil
}

// Base is the cgroup that the manager's slices are below: the root for the system's.
func (c *Conn) Base(ctx context.Context) (string, error) {
	v, err := c.property(ctx, managerPath, managerIface, "ControlGroup")
	s, _ := v.V.(string)
	return path.Clean("/" + s), err
}

// Version is systemd's number, 0 where it has none.
func (c *Conn) Version(ctx context.Context) (int, error) {
	v, err := c.property(ctx, managerPath, managerIface, "Version")
	s, _ := v.V.(string)
	return parseVersion(s), err
}

// parseVersion reads the number of "252.39-1~deb12u2" or "v245.4".
func parseVersion(s string) int {
	s = strings.TrimPrefix(s, "v")
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	v, _ := strconv.Atoi(s[:n])
	return v
}

// StartScope makes systemd know a scope that holds pid, and returns when it does. The scope is delegated: below
// its cgroup systemd touches nothing. The cgroup may exist before. What is left of a failed unit of the name
// gives way; one that lives is errs.Exists.
func (c *Conn) StartScope(ctx context.Context, u Unit, description string, pid int, props []Property) error {
	all := append([]Property{
		{"Description", Value{"s", description}},
		{"Slice", Value{"s", u.Slice}},
		{"Delegate", Value{"b", true}},
		{"PIDs", Value{"au", []any{uint32(pid)}}},
		{"DefaultDependencies", Value{"b", false}},
	}, props...)
	result, err := c.startTransient(ctx, u.Name, all)
	if isBusError(err, "UnitExists") {
		_ = c.resetFailed(ctx, u.Name)
		result, err = c.startTransient(ctx, u.Name, all)
	}
	switch {
	case isBusError(err, "UnitExists"):
		return errs.New(errs.Exists, "start unit %s: %w", u.Name, err)
	case err != nil:
		_ = c.resetFailed(ctx, u.Name)
		return fmt.Errorf("start unit %s: %w", u.Name, err)
	case result != "done":
		_ = c.resetFailed(ctx, u.Name)
		return fmt.Errorf("start unit %s: systemd's job ended as %q. Look into its journal", u.Name, result)
	}
	return nil
}

func (c *Conn) startTransient(ctx context.Context, name string, props []Property) (string, error) {
	return c.job(ctx, "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "replace", encodeProps(props), []any{})
}

func encodeProps(props []Property) []any {
	list := make([]any, len(props))
	for i, p := range props {
		list[i] = []any{p.Name, p.Value}
	}
	return list
}

// job calls a method that queues a job, and waits for the job.
func (c *Conn) job(ctx context.Context, member, sig string, args ...any) (string, error) {
	c.jobs = nil
	r, err := c.manager(ctx, member, sig, args...)
	if err != nil {
		return "", err
	}
	return c.wait(ctx, r.text(0))
}

// Attach has systemd move a process into a unit's cgroup, or into the group at the path below, which is absolute, of a
// delegated one. A user's manager asks that of the machine where it may not itself. It takes systemd 239.
func (c *Conn) Attach(ctx context.Context, name, below string, pid int) error {
	if below == "/" {
		below = ""
	}
	if _, err := c.manager(ctx, "AttachProcessesToUnit", "ssau", name, below, []any{uint32(pid)}); err != nil {
		return fmt.Errorf("attach process %d to unit %s: %w", pid, name, err)
	}
	return nil
}

// SetProperties changes properties of a unit until it is stopped or the machine reboots.
func (c *Conn) SetProperties(ctx context.Context, name string, props []Property) error {
	if len(props) == 0 {
		return nil
	}
	_, err := c.manager(ctx, "SetUnitProperties", "sba(sv)", name, true, encodeProps(props))
	switch {
	case isBusError(err, "NoSuchUnit"):
		return errs.New(errs.NotFound, "set properties of unit %s: %w", name, err)
	case err != nil:
		return fmt.Errorf("set properties of unit %s: %w", name, err)
	}
	return nil
}

// Stop stops a unit and makes systemd forget it, failed or not. A unit that systemd does not know is fine. What
// lives in it gets SIGTERM, and later SIGKILL.
func (c *Conn) Stop(ctx context.Context, name string) error {
	_, err := c.job(ctx, "StopUnit", "ss", name, "replace")
	_ = c.resetFailed(ctx, name)
	if err != nil && !isBusError(err, "NoSuchUnit") {
		return fmt.Errorf("stop unit %s: %w", name, err)
	}
	return nil
}

func (c *Conn) resetFailed(ctx context.Context, name string) error {
	_, err := c.manager(ctx, "ResetFailedUnit", "s", name)
	return err
}

// Status is one unit that systemd knows.
type Status struct{ Name, Description, State string }

// List lists the units whose names match one of the shell patterns.
func (c *Conn) List(ctx context.Context, patterns ...string) ([]Status, error) {
	names := make([]any, len(patterns))
	for i, p := range patterns {
		names[i] = p
	}
	r, err := c.manager(ctx, "ListUnitsByPatterns", "asas", []any{}, names)
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	if len(r.body) == 0 {
		return nil, errors.New("list units: an empty answer")
	}
	rows, _ := r.body[0].([]any)
	var out []Status
	for _, row := range rows {
		f, _ := row.([]any)
		m := message{body: f}
		out = append(out, Status{m.text(0), m.text(1), m.text(3)})
	}
	return out, nil
}
