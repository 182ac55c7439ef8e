package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

func TestUsers(t *testing.T) {
	id := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	strict := cri.SupplementalGroupsPolicy_Strict
	for name, c := range map[string]struct {
		sc    *cri.LinuxContainerSecurityContext
		image string
		want  user
	}{
		"nothing":                    {want: user{0, 0, []uint32{0, 10}, "/root"}},
		"image name":                 {image: "app", want: user{1000, 1001, []uint32{1001, 10, 50000}, "/home/app"}},
		"image name and group":       {image: "app:staff", want: user{1000, 50000, []uint32{50000, 10}, "/home/app"}},
		"image name and group ID":    {image: "app:7", want: user{1000, 7, []uint32{7, 10, 50000}, "/home/app"}},
		"image ID":                   {image: "33", want: user{33, 33, []uint32{33, 50000}, "/var/www"}},
		"image ID and group":         {image: "33:staff", want: user{33, 50000, []uint32{50000}, "/var/www"}},
		"numeric is never a name":    {image: "99", want: user{99, 0, []uint32{0}, "/"}},
		"numeric group is no name":   {image: "99:99", want: user{99, 99, []uint32{99}, "/"}},
		"largest ID":                 {image: "4294967294:4294967294", want: user{4294967294, 4294967294, []uint32{4294967294}, "/"}},
		"home with control bytes":    {image: "lf", want: user{500, 500, []uint32{500}, "/"}},
		"run_as_user":                {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(1000)}, image: "web", want: user{1000, 1001, []uint32{1001, 10, 50000}, "/home/app"}},
		"run_as_user not in image":   {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(4242)}, want: user{4242, 0, []uint32{0}, "/"}},
		"run_as_user 1000 trap":      {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(100)}, want: user{100, 0, []uint32{0}, "/"}},
		"run_as_group":               {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(33), RunAsGroup: id(5)}, want: user{33, 5, []uint32{5, 50000}, "/var/www"}},
		"run_as_username":            {sc: &cri.LinuxContainerSecurityContext{RunAsUsername: "web"}, image: "app", want: user{33, 33, []uint32{33, 50000}, "/var/www"}},
		"run_as_username and group":  {sc: &cri.LinuxContainerSecurityContext{RunAsUsername: "web", RunAsGroup: id(0)}, want: user{33, 0, []uint32{0, 50000}, "/var/www"}},
		"groups merge":               {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(33), SupplementalGroups: []int64{4, 33, 4}}, want: user{33, 33, []uint32{33, 50000, 4}, "/var/www"}},
		"groups strict":              {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(33), SupplementalGroups: []int64{4}, SupplementalGroupsPolicy: strict}, want: user{33, 33, []uint32{33, 4}, "/var/www"}},
		"groups strict without list": {sc: &cri.LinuxContainerSecurityContext{SupplementalGroupsPolicy: strict}, want: user{0, 0, []uint32{0}, "/root"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolveUser(rootfs(t, passwdFile, groupFile), c.sc, c.image)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(user{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestUsersRefused(t *testing.T) {
	id := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	for name, c := range map[string]struct {
		sc    *cri.LinuxContainerSecurityContext
		image string
		kind  errs.Kind
		text  string
	}{
		"2^32":                   {image: "4294967296", kind: errs.Invalid, text: `"4294967296"`},
		"2^32-1":                 {image: "4294967295", kind: errs.Invalid, text: "4294967295"},
		"beyond 64 bits":         {image: "99999999999999999999999999", kind: errs.Invalid, text: "9999"},
		"minus one":              {image: "-1", kind: errs.Invalid, text: `"-1"`},
		"plus zero":              {image: "+0", kind: errs.Invalid, text: `"+0"`},
		"hex":                    {image: "0x0", kind: errs.Invalid, text: `"0x0"`},
		"hex, upper case":        {image: "0X0", kind: errs.Invalid, text: `"0X0"`},
		"binary":                 {image: "0b1", kind: errs.Invalid, text: "0b1"},
		"underscores":            {image: "1_000", kind: errs.Invalid, text: "1_000"},
		"leading zeros":          {image: "00", kind: errs.Invalid, text: `"00"`},
		"leading space":          {image: " 0", kind: errs.Invalid, text: `" 0"`},
		"trailing space":         {image: "1000 ", kind: errs.Invalid, text: `"1000 "`},
		"line end":               {image: "app\n", kind: errs.Invalid, text: "app"},
		"empty user with group":  {image: ":5", kind: errs.Invalid, text: ":5"},
		"empty group":            {image: "app:", kind: errs.Invalid, text: "app:"},
		"bad group":              {image: "app:-1", kind: errs.Invalid, text: "app:-1"},
		"group 2^32":             {image: "1:4294967296", kind: errs.Invalid, text: "4294967296"},
		"two colons":             {image: "1:2:3", kind: errs.Invalid, text: "1:2:3"},
		"no such user":           {image: "ghost", kind: errs.NotFound, text: `"ghost"`},
		"no such group":          {image: "app:ghosts", kind: errs.NotFound, text: `"ghosts"`},
		"account with a bad ID":  {image: "odd", kind: errs.NotFound, text: `"odd"`},
		"group with a bad ID":    {image: "app:huge", kind: errs.NotFound, text: `"huge"`},
		"username not in image":  {sc: &cri.LinuxContainerSecurityContext{RunAsUsername: "ghost"}, kind: errs.NotFound, text: "run_as_username"},
		"numeric username":       {sc: &cri.LinuxContainerSecurityContext{RunAsUsername: "1000"}, kind: errs.Invalid, text: "run_as_username"},
		"user and username":      {sc: &cri.LinuxContainerSecurityContext{RunAsUsername: "app", RunAsUser: id(1)}, kind: errs.Invalid, text: "run_as_user"},
		"group without user":     {sc: &cri.LinuxContainerSecurityContext{RunAsGroup: id(1)}, image: "app", kind: errs.Invalid, text: "run_as_group"},
		"negative user":          {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(-1)}, kind: errs.Invalid, text: "run_as_user: -1"},
		"user 2^32":              {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(1 << 32)}, kind: errs.Invalid, text: "4294967296"},
		"group 2^32-1":           {sc: &cri.LinuxContainerSecurityContext{RunAsUser: id(1), RunAsGroup: id(1<<32 - 1)}, kind: errs.Invalid, text: "run_as_group"},
		"supplementary group -1": {sc: &cri.LinuxContainerSecurityContext{SupplementalGroups: []int64{3, -1}}, kind: errs.Invalid, text: "supplemental_groups[1]: -1"},
		"unknown policy":         {sc: &cri.LinuxContainerSecurityContext{SupplementalGroupsPolicy: 9}, kind: errs.Invalid, text: "supplemental_groups_policy"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := resolveUser(rootfs(t, passwdFile, groupFile), c.sc, c.image)
			wantError(t, err, c.kind, c.text)
		})
	}
}

// A hostile image's account files neither hang the server, nor fill its memory, nor show it the node's.
func TestHostileAccountFiles(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("ghost:x:0:0::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		make func(dir string) error
		kind errs.Kind
	}{
		"fifo":               {func(p string) error { return mkfifo(p) }, errs.Invalid},
		"directory":          {func(p string) error { return os.Mkdir(p, 0o755) }, errs.Invalid},
		"link to itself":     {func(p string) error { return os.Symlink("passwd", p) }, errs.Invalid},
		"link out, absolute": {func(p string) error { return os.Symlink(secret, p) }, errs.NotFound},
		"link out, relative": {func(p string) error { return os.Symlink("../../../../../../../../../.."+secret, p) }, errs.NotFound},
		"link to a device":   {func(p string) error { return os.Symlink("/dev/zero", p) }, errs.NotFound},
		"link to proc":       {func(p string) error { return os.Symlink("/proc/self/fd/0", p) }, errs.NotFound},
		"missing":            {func(string) error { return nil }, errs.NotFound},
		"sparse gigabytes": {func(p string) error {
			if err := os.WriteFile(p, nil, 0o644); err != nil {
				return err
			}
			return os.Truncate(p, 4<<30)
		}, errs.Invalid},
		"endless line": {func(p string) error {
			return os.WriteFile(p, []byte(strings.Repeat("x", maxAccountLine+1)), 0o644)
		}, errs.Invalid},
		"binary": {func(p string) error { return os.WriteFile(p, []byte("\x00\xff:::\n\n:::::\n"), 0o644) }, errs.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.make(filepath.Join(dir, "etc", "passwd")); err != nil {
				t.Fatal(err)
			}
			_, err := resolveUser(openDir(t, dir), &cri.LinuxContainerSecurityContext{}, "ghost")
			wantError(t, err, c.kind)
		})
	}
}

func TestAccountFilesBehindLinksInTheImage(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"usr/etc", "real"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("/usr/etc", filepath.Join(dir, "etc"))
	os.Symlink("/real/accounts", filepath.Join(dir, "usr/etc/passwd"))
	os.WriteFile(filepath.Join(dir, "real/accounts"), []byte("app:x:7:8::/x:\n"), 0o644)
	u, err := resolveUser(openDir(t, dir), &cri.LinuxContainerSecurityContext{}, "app")
	if err != nil || u.uid != 7 || u.gid != 8 {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestImageUser(t *testing.T) {
	for in, want := range map[string]struct {
		uid  int64
		name string
	}{
		"": {-1, ""}, "0": {0, ""}, "1000:2000": {1000, ""}, "app": {-1, "app"}, "app:staff": {-1, "app"},
		"00": {-1, "00"}, "-1": {-1, "-1"}, "4294967296": {-1, "4294967296"}, "+0": {-1, "+0"},
	} {
		uid, name := ImageUser(in)
		got := int64(-1)
		if uid != nil {
			got = uid.GetValue()
		}
		if got != want.uid || name != want.name {
			t.Errorf("%q gives %d, %q; want %d, %q", in, got, name, want.uid, want.name)
		}
	}
}

func TestUserNamespaceHoldsTheUser(t *testing.T) {
	in := usernsInput(t)
	in.security().RunAsUser = &cri.Int64Value{Value: 65535}
	mustTranslate(t, in)
	in.security().RunAsUser.Value = 65536
	_, err := Container(t.Context(), in)
	wantError(t, err, errs.Invalid, "user 65536", "not mapped")
	in.security().RunAsUser.Value = 0
	in.security().SupplementalGroups = []int64{5, 70000}
	_, err = Container(t.Context(), in)
	wantError(t, err, errs.Invalid, "group 70000", "not mapped")
}

// Whatever an image's USER is, it is refused or runs as what it says: root only where it says 0 or names
// an account with uid 0.
func FuzzImageUser(f *testing.F) {
	for _, s := range []string{"", "0", "app", "app:staff", "1000:0", "-1", "+0", "0x0", " 0", "1000 ", "4294967296", "99:99", "nobody:4294967295", "٠", "0\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		root := rootfs(t, passwdFile, groupFile)
		u, err := resolveUser(root, &cri.LinuxContainerSecurityContext{}, s)
		if err != nil {
			return
		}
		name, _, _ := strings.Cut(s, ":")
		if u.uid == 0 && name != "" && name != "0" && name != "root" {
			t.Errorf("%q runs as root", s)
		}
	})
}

func FuzzAccountFile(f *testing.F) {
	f.Add(passwdFile, "app")
	f.Add("a:b:c:d\n:::\n\n#", "a")
	f.Fuzz(func(t *testing.T, content, name string) {
		_ = scanAccounts(strings.NewReader(content), func(fields []string) bool {
			if len(fields) == 0 {
				t.Error("a line without fields")
			}
			return fields[0] != name
		})
	})
}
