package oci

import (
	"os"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// maxGroups is NGROUPS_MAX of the kernel.
const maxGroups = 65536

// user is who the container's first process runs as.
type user struct {
	uid, gid uint32
	groups   []uint32 // the primary one first, no duplicates
	home     string   // of the account, "/" without one
}

// userRef names a user or a group: a number, never to be looked up as a name, or a name.
type userRef struct {
	id      uint32
	numeric bool
	name    string
}

// parseUserRef reads one half of an image's USER. Whatever a tool might take for a number and is no valid
// ID ("-1", "+0", "0x0", "4294967296", "007") is refused rather than looked up: the image also provides the
// file it would be looked up in.
func parseUserRef(s string) (userRef, bool) {
	if id, ok := parseID(s); ok {
		return userRef{id: id, numeric: true}, true
	}
	if s == "" || s[0] == '-' || s[0] == '+' || looksNumeric(s) || len(s) > 256 {
		return userRef{}, false
	}
	for _, c := range s {
		if c <= ' ' || c == ':' || c == ',' || c == '/' || c == 0x7f || c == '\ufffd' {
			return userRef{}, false
		}
	}
	return userRef{name: s}, true
}

// looksNumeric reports whether s is an integer in any base Go or C know, however large.
func looksNumeric(s string) bool {
	_, err := strconv.ParseUint(strings.ToLower(s), 0, 64)
	if err == nil {
		return true
	}
	digits := true
	for i := range len(s) {
		digits = digits && s[i] >= '0' && s[i] <= '9'
	}
	return digits || strings.Contains(err.Error(), strconv.ErrRange.Error())
}

// ImageUser splits an image config's User for the CRI's Image message: uid when the user is numeric, else
// the name, "" and nil when the image names none. A User that Container would refuse is returned as a name,
// so that a kubelet asked for runAsNonRoot refuses it too.
func ImageUser(imageUser string) (uid *cri.Int64Value, username string) {
	name, _, _ := strings.Cut(imageUser, ":")
	if id, ok := parseID(name); ok {
		return &cri.Int64Value{Value: int64(id)}, ""
	}
	return nil, name
}

// identity resolves the user and fills in spec.Process.User and the status.
func (t *translation) identity() error {
	u, err := resolveUser(t.Rootfs, t.sc, t.Image.User)
	if err != nil {
		return err
	}
	t.user = u
	p := t.spec.Process
	p.User.UID, p.User.GID, p.User.AdditionalGids = u.uid, u.gid, u.groups
	return t.tellUser()
}

// tellUser checks the user and makes the status of it.
func (t *translation) tellUser() error {
	if err := t.checkMapped(); err != nil {
		return err
	}
	u := &t.user
	status := &cri.LinuxContainerUser{Uid: int64(u.uid), Gid: int64(u.gid)}
	for _, g := range u.groups {
		status.SupplementalGroups = append(status.SupplementalGroups, int64(g))
	}
	t.out.User = &cri.ContainerUser{Linux: status}
	return nil
}

// checkMapped refuses IDs that the pod's user namespace does not have: the kernel would, at the start.
func (t *translation) checkMapped() error {
	if !t.pod.userns() {
		return nil
	}
	size := t.pod.uids[0].Size
	if t.user.uid >= size {
		return errs.New(errs.Invalid, "user %d: not mapped in the pod's user namespace of %d IDs", t.user.uid, size)
	}
	for _, g := range t.user.groups {
		if g >= size {
			return errs.New(errs.Invalid, "group %d: not mapped in the pod's user namespace of %d IDs", g, size)
		}
	}
	return nil
}

// resolveUser applies the CRI's order: run_as_user, run_as_username, the image's USER, root.
func resolveUser(rootfs *os.File, sc *cri.LinuxContainerSecurityContext, imageUser string) (user, error) {
	u, err := primaryUser(rootfs, sc, imageUser)
	if err != nil {
		return user{}, err
	}
	out := user{uid: u.uid, gid: u.gid, home: u.home, groups: []uint32{u.gid}}
	if !validHome(out.home) {
		out.home = "/"
	}
	if sc.GetSupplementalGroupsPolicy() == cri.SupplementalGroupsPolicy_Merge && u.name != "" {
		members, err := groupsOf(rootfs, u.name)
		if err != nil {
			return user{}, err
		}
		out.addGroups(members...)
	}
	switch p := sc.GetSupplementalGroupsPolicy(); p {
	case cri.SupplementalGroupsPolicy_Merge, cri.SupplementalGroupsPolicy_Strict:
	default:
		return user{}, errs.New(errs.Invalid, "supplemental_groups_policy: no such policy %d", p)
	}
	for i, g := range sc.GetSupplementalGroups() {
		id, err := checkID(indexed("supplemental_groups", i), g)
		if err != nil {
			return user{}, err
		}
		out.addGroups(id)
	}
	if len(out.groups) > maxGroups {
		return user{}, errs.New(errs.Invalid, "supplemental_groups: %d groups are more than the %d a process can have", len(out.groups), maxGroups)
	}
	return out, nil
}

func (u *user) addGroups(gids ...uint32) {
	seen := make(map[uint32]bool, len(u.groups)+len(gids))
	for _, g := range u.groups {
		seen[g] = true
	}
	for _, g := range gids {
		if !seen[g] {
			seen[g] = true
			u.groups = append(u.groups, g)
		}
	}
}

// primaryUser resolves everything but the supplementary groups. The account's name is "" where the image
// has none for the uid.
func primaryUser(rootfs *os.File, sc *cri.LinuxContainerSecurityContext, imageUser string) (account, error) {
	uid, name, gid := sc.GetRunAsUser(), sc.GetRunAsUsername(), sc.GetRunAsGroup()
	switch {
	case uid != nil && name != "":
		return account{}, errs.New(errs.Invalid, "run_as_username: %q together with run_as_user %d; only one can be given", name, uid.GetValue())
	case gid != nil && uid == nil && name == "":
		return account{}, errs.New(errs.Invalid, "run_as_group: %d without run_as_user or run_as_username", gid.GetValue())
	}
	a, err := requestedUser(rootfs, uid, name, imageUser)
	if err != nil || gid == nil {
		return a, err
	}
	a.gid, err = checkID("run_as_group", gid.GetValue())
	return a, err
}

func requestedUser(rootfs *os.File, uid *cri.Int64Value, name, imageUser string) (account, error) {
	switch {
	case uid != nil:
		id, err := checkID("run_as_user", uid.GetValue())
		if err != nil {
			return account{}, err
		}
		return lookupUser(rootfs, "run_as_user", userRef{id: id, numeric: true})
	case name != "":
		ref, ok := parseUserRef(name)
		if !ok || ref.numeric {
			return account{}, errs.New(errs.Invalid, "run_as_username: %q is no user name", name)
		}
		return lookupUser(rootfs, "run_as_username", ref)
	}
	return lookupImageUser(rootfs, imageUser)
}

func lookupImageUser(rootfs *os.File, imageUser string) (account, error) {
	const field = "image user"
	if imageUser == "" {
		return lookupUser(rootfs, field, userRef{numeric: true})
	}
	name, group, hasGroup := strings.Cut(imageUser, ":")
	ref, ok := parseUserRef(name)
	if !ok {
		return account{}, errs.New(errs.Invalid, "%s: %q is neither a user ID nor a user name", field, imageUser)
	}
	a, err := lookupUser(rootfs, field, ref)
	if err != nil || !hasGroup {
		return a, err
	}
	ref, ok = parseUserRef(group)
	if !ok {
		return account{}, errs.New(errs.Invalid, "%s: the group of %q is neither a group ID nor a group name", field, imageUser)
	}
	if ref.numeric {
		a.gid = ref.id
		return a, nil
	}
	a.gid, ok, err = findGroup(rootfs, ref.name)
	if err == nil && !ok {
		err = errs.New(errs.NotFound, "%s: no group %q in the image's /etc/group", field, ref.name)
	}
	return a, err
}

// lookupUser finds the account of a reference. A number needs none: its group is then 0, as everywhere.
func lookupUser(rootfs *os.File, field string, ref userRef) (account, error) {
	a, err := findAccount(rootfs, func(a *account) bool {
		if ref.numeric {
			return a.uid == ref.id
		}
		return a.name == ref.name
	})
	switch {
	case err != nil:
		return account{}, err
	case a != nil:
		return *a, nil
	case ref.numeric:
		return account{uid: ref.id}, nil
	}
	return account{}, errs.New(errs.NotFound, "%s: no user %q in the image's /etc/passwd", field, ref.name)
}

func checkID(field string, id int64) (uint32, error) {
	if id < 0 || id > maxID {
		return 0, errs.New(errs.Invalid, "%s: %d is no ID; they go from 0 to %d", field, id, uint32(maxID))
	}
	return uint32(id), nil
}

// validHome refuses homes that would not survive in an environment or in tools that read it by line.
func validHome(home string) bool {
	if !strings.HasPrefix(home, "/") || len(home) > 4096 {
		return false
	}
	for i := range len(home) {
		if home[i] < ' ' || home[i] == 0x7f {
			return false
		}
	}
	return true
}
