package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/errs"
	it "github.com/cri-server/cri-server/pkg/image/internal/imagetest"
)

// layer unpacks entries into a directory that stands beside a canary, and checks that the canary and
// everything else outside stayed as it was.
func layer(t testing.TB, opts Options, raw []byte) (string, Result, error) {
	t.Helper()
	base := t.TempDir()
	outside := filepath.Join(base, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("alive"), 0o640); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(base, "layer")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	opts.Unprivileged = opts.Unprivileged || os.Geteuid() != 0
	res, err := Layer(context.Background(), d, bytes.NewReader(raw), opts)
	if b, rerr := os.ReadFile(canary); rerr != nil || string(b) != "alive" {
		t.Errorf("the canary outside the layer: %q, %v", b, rerr)
	}
	if fi, serr := os.Stat(canary); serr != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("the canary's mode: %v, %v", fi, serr)
	}
	for _, dir := range []string{base, outside} {
		entries, _ := os.ReadDir(dir)
		if want := map[string]int{base: 2, outside: 1}[dir]; len(entries) != want {
			t.Errorf("%s holds %v", dir, entries)
		}
	}
	return root, res, err
}

// tree lists what is below root: path, type and what it holds.
func tree(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		fi, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			out = append(out, rel+"/")
		case fi.Mode()&fs.ModeSymlink != 0:
			l, _ := os.Readlink(p)
			out = append(out, rel+" -> "+l)
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out = append(out, rel+" = "+string(b))
		default:
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				return err
			}
			out = append(out, fmt.Sprintf("%s %v %d", rel, fi.Mode().Type(), st.Rdev))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out[1:]
}

const charDev = "Dc"

func TestLayer(t *testing.T) {
	for name, c := range map[string]struct {
		entries []it.Entry
		want    []string
	}{
		"plain":                         {[]it.Entry{it.Dir("a/", 0o755), it.File("a/f", "x"), it.Symlink("l", "a/f"), it.Link("h", "a/f")}, []string{"a/", "a/f = x", "h = x", "l -> a/f"}},
		"dots and slashes":              {[]it.Entry{it.Dir("./", 0o755), it.Dir("./a/", 0o755), it.File("/a//f", "x"), it.File("./a/./g", "y")}, []string{"a/", "a/f = x", "a/g = y"}},
		"missing parents":               {[]it.Entry{it.File("a/b/c", "x")}, []string{"a/", "a/b/", "a/b/c = x"}},
		"later entry wins":              {[]it.Entry{it.File("f", "1"), it.File("f", "2")}, []string{"f = 2"}},
		"directory again":               {[]it.Entry{it.Dir("d", 0o700), it.File("d/f", "x"), it.Dir("d", 0o755)}, []string{"d/", "d/f = x"}},
		"file over directory":           {[]it.Entry{it.File("d/e/f", "x"), it.File("d", "y")}, []string{"d = y"}},
		"directory over file":           {[]it.Entry{it.File("d", "y"), it.Dir("d", 0o755), it.File("d/f", "x")}, []string{"d/", "d/f = x"}},
		"directory over link":           {[]it.Entry{it.Dir("a", 0o755), it.Symlink("d", "a"), it.Dir("d", 0o755), it.File("d/f", "x")}, []string{"a/", "d/", "d/f = x"}},
		"link over directory":           {[]it.Entry{it.File("d/f", "x"), it.Symlink("d", "e")}, []string{"d -> e"}},
		"through a link":                {[]it.Entry{it.Dir("usr/lib", 0o755), it.Symlink("lib", "usr/lib"), it.File("lib/f", "x")}, []string{"lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/f = x"}},
		"through a dangling link":       {[]it.Entry{it.Symlink("var/run", "/run"), it.File("var/run/f", "x")}, []string{"run/", "run/f = x", "var/", "var/run -> /run"}},
		"through a relative dangler":    {[]it.Entry{it.Symlink("var/run", "../run/x"), it.File("var/run/f", "x")}, []string{"run/", "run/x/", "run/x/f = x", "var/", "var/run -> ../run/x"}},
		"fifo":                          {[]it.Entry{it.Special("etc/passwd", tar.TypeFifo, 0, 0)}, []string{"etc/", "etc/passwd p--------- 0"}},
		"whiteout":                      {[]it.Entry{it.File("d/.wh.f", "")}, []string{"d/", "d/f " + charDev}},
		"whiteout then file":            {[]it.Entry{it.File(".wh.f", ""), it.File("f", "x")}, []string{"f = x"}},
		"whiteout then new below":       {[]it.Entry{it.File(".wh.d", ""), it.File("d/f", "x")}, []string{"d/", "d/f = x"}},
		"file then whiteout":            {[]it.Entry{it.File("f", "x"), it.File(".wh.f", "")}, []string{"f = x"}},
		"aufs's own":                    {[]it.Entry{it.File(".wh..wh.plnk", ""), it.File(".wh..wh.aufs", "")}, []string{}},
		"link to itself":                {[]it.Entry{it.File("f", "x"), it.Link("f", "f"), it.Link("./f", "/f")}, []string{"f = x"}},
		"hard link to link":             {[]it.Entry{it.Symlink("l", "/etc/passwd"), it.Link("m", "l")}, []string{"l -> /etc/passwd", "m -> /etc/passwd"}},
		"hard link replaces":            {[]it.Entry{it.File("a", "1"), it.File("b", "2"), it.Link("b", "a")}, []string{"a = 1", "b = 1"}},
		"global header":                 {[]it.Entry{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "x"}}}, it.File("f", "x")}, []string{"f = x"}},
		"zeros are holes and read back": {[]it.Entry{it.File("z", strings.Repeat("\x00", 20000)+"end")}, []string{"z = " + strings.Repeat("\x00", 20000) + "end"}},
		"only zeros":                    {[]it.Entry{it.File("z", strings.Repeat("\x00", 10000))}, []string{"z = " + strings.Repeat("\x00", 10000)}},
	} {
		t.Run(name, func(t *testing.T) {
			root, _, err := layer(t, Options{}, it.Tar(c.entries...))
			if err != nil {
				t.Fatal(err)
			}
			got := tree(t, root)
			for i := range got {
				if j := strings.Index(got[i], charDev); j > 0 {
					got[i] = got[i][:j] + charDev
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestHostile unpacks what tries to get out, or to take the machine along.
func TestHostile(t *testing.T) {
	abs := func(dir string) string { return strings.Repeat("../", 40) + dir }
	long := strings.Repeat("n", 256)
	deep := strings.Repeat("d/", 60)
	neg := it.File("f", "x")
	neg.Uid = -1
	rootFile := it.File(".", "x")
	wide := it.File("f", "x")
	wide.Uid = 1<<32 - 1
	for name, entries := range map[string][]it.Entry{
		"climbing name":          {it.File("../outside/canary", "dead")},
		"climbing far":           {it.File(abs("etc/x"), "dead")},
		"climbing inside":        {it.File("a/../../outside/canary", "dead")},
		"climbing directory":     {it.Dir("../outside", 0o777)},
		"climbing hard link":     {it.Link("f", "../outside/canary")},
		"climbing whiteout":      {it.File("../outside/.wh.canary", "")},
		"whiteout of nothing":    {it.File(".wh.", "")},
		"whiteout of the parent": {it.File("a/.wh...", "")},
		"root is a link":         {it.Symlink(".", "../outside")},
		"root is a file":         {rootFile},
		"root is a hard link":    {it.File("f", "x"), it.Link("/", "f")},
		"hard link to nothing":   {it.Link("f", "none")},
		"hard link to a dir":     {it.Dir("d", 0o755), it.Link("f", "d")},
		"hard link to the root":  {it.Link("f", "/")},
		"file as directory":      {it.File("f", "x"), it.File("f/g", "x")},
		"link loop":              {it.Symlink("a", "b"), it.Symlink("b", "a"), it.File("a/f", "x")},
		"link to itself":         {it.Symlink("a", "a"), it.File("a/f", "x")},
		"long component":         {it.File(long, "x")},
		"deep":                   {it.File(deep+"f", "x")},
		"negative owner":         {neg},
		"owner minus one":        {wide},
		"device out of range":    {it.Special("d", tar.TypeChar, 1<<20, 1)},
		"a whiteout device":      {it.Special("d", tar.TypeChar, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			w := tar.NewWriter(&buf)
			for _, e := range entries {
				h := e.Header
				if h.Uid < 0 { // the writer would refuse it
					h.Format = tar.FormatGNU
				}
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(w, e.Content)
			}
			w.Close()
			_, _, err := layer(t, Options{Limits: Limits{Depth: 50}}, buf.Bytes())
			if !errs.Is(err, errs.Invalid) {
				t.Errorf("%v (%v), want it refused as invalid", err, errs.KindOf(err))
			}
		})
	}
}

// TestContained unpacks links that point out and are then written through: it works, inside.
func TestContained(t *testing.T) {
	for name, entries := range map[string][]it.Entry{
		"absolute":        {it.Symlink("esc", "/outside"), it.File("esc/canary", "dead")},
		"climbing":        {it.Symlink("esc", "../outside"), it.File("esc/canary", "dead")},
		"climbing far":    {it.Symlink("esc", strings.Repeat("../", 30)+"outside"), it.File("esc/canary", "dead")},
		"chain":           {it.Symlink("a", "b"), it.Symlink("b", "../outside"), it.File("a/canary", "dead")},
		"swap":            {it.Dir("d", 0o755), it.File("d/x", "1"), it.Symlink("d", "/outside"), it.File("d/canary", "dead")},
		"same name":       {it.Symlink("canary", "/outside/canary"), it.File("canary", "dead")},
		"mode of a link":  {it.Symlink("l", "/outside/canary"), it.Dir("l", 0o777)},
		"link then link":  {it.Symlink("l", "/outside/canary"), it.Link("m", "l"), it.File("m", "dead")},
		"proc":            {it.Symlink("p", "/proc/self/root"), it.File("p/x", "dead")},
		"whiteout behind": {it.Symlink("esc", "../outside"), it.File("esc/.wh.canary", "")},
		"opaque behind":   {it.Symlink("esc", "../outside"), it.File("esc/.wh..wh..opq", "")},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := layer(t, Options{}, it.Tar(entries...)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	x := it.File("x", "")
	x.Format, x.PAXRecords = tar.FormatPAX, map[string]string{}
	for i := range 200 {
		x.PAXRecords[paxXattr+fmt.Sprintf("user.a%d", i)] = "v"
	}
	big := it.File("x", "")
	big.Format, big.PAXRecords = tar.FormatPAX, map[string]string{paxXattr + "user.a": strings.Repeat("v", 100<<10)}
	one := it.File("x", "")
	one.Format, one.PAXRecords = tar.FormatPAX, map[string]string{paxXattr + "trusted.overlay.redirect": "/etc", paxXattr + "user.overlay.opaque": "y", paxXattr + "security.selinux": "x", paxXattr + "user.ok": "v"}
	many := make([]it.Entry, 20)
	for i := range many {
		many[i] = it.File(fmt.Sprint(i), "0123456789")
	}
	for name, c := range map[string]struct {
		lim Limits
		raw []byte
		ok  bool
	}{
		"xattrs of an entry":    {Limits{}, it.Tar(x), false},
		"a large xattr":         {Limits{}, it.Tar(big), false},
		"xattrs in all":         {Limits{XattrBytes: 10}, it.Tar(one), false},
		"foreign xattrs go":     {Limits{}, it.Tar(one), true},
		"entries":               {Limits{Entries: 19}, it.Tar(many...), false},
		"entries, just":         {Limits{Entries: 20}, it.Tar(many...), true},
		"bytes":                 {Limits{Bytes: 199}, it.Tar(many...), false},
		"bytes, just":           {Limits{Bytes: 200}, it.Tar(many...), true},
		"a sparse file of 8 TB": {Limits{}, sparse(8 << 40), false},
		"trailing bytes":        {Limits{}, append(it.Tar(), make([]byte, maxTrailer+1)...), false},
		"padding":               {Limits{}, append(it.Tar(many...), make([]byte, 10240)...), true},
		"cut":                   {Limits{}, it.Tar(many...)[:1500], false},
		"no tar":                {Limits{}, bytes.Repeat([]byte("x"), 2000), false},
	} {
		t.Run(name, func(t *testing.T) {
			root, _, err := layer(t, Options{Limits: c.lim}, c.raw)
			if c.ok && err != nil || !c.ok && !errs.Is(err, errs.Invalid) {
				t.Errorf("%v (%v)", err, errs.KindOf(err))
			}
			if name == "foreign xattrs go" {
				fd, err := unix.Open(filepath.Join(root, "x"), unix.O_RDONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				if names, _ := xattrList(fd); len(names) > 1 || len(names) == 1 && names[0] != "user.ok" {
					t.Errorf("attributes %v, want user.ok alone", names)
				}
			}
		})
	}
}

// sparse is a PAX 1.0 sparse file whose map has one byte of data and a hole of size.
func sparse(size int64) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	data := "1\n0\n1\n"
	data += strings.Repeat("\x00", 512-len(data)) + "x"
	h := tar.Header{Typeflag: tar.TypeReg, Name: "s", Size: int64(len(data)), Mode: 0o644}
	_ = w.WriteHeader(&h)
	_, _ = io.WriteString(w, data)
	w.Close()
	// The writer does not make sparse headers: put a PAX header before it by hand.
	rec := func(k, v string) string {
		n := len(k) + len(v) + 3
		for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
			n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	body := rec("GNU.sparse.major", "1") + rec("GNU.sparse.minor", "0") + rec("GNU.sparse.name", "huge") + rec("GNU.sparse.realsize", fmt.Sprint(size))
	var out bytes.Buffer
	pw := tar.NewWriter(&out)
	_ = pw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "pax", Size: int64(len(body)), Mode: 0o644, Format: tar.FormatUSTAR})
	_, _ = io.WriteString(pw, body)
	_ = pw.Flush()
	raw := out.Bytes()
	raw[156] = 'x'
	sum := 0
	for i, b := range raw[:512] {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += int(b)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(raw, buf.Bytes()...)
}

func TestSparseExpands(t *testing.T) {
	root, res, err := layer(t, Options{}, sparse(10<<20))
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(root, "huge"))
	if err != nil || fi.Size() != 10<<20 || res.Bytes > 64<<10 {
		t.Errorf("%v, %v: %d bytes on disk", fi, err, res.Bytes)
	}
}

func TestAttributes(t *testing.T) {
	suid := it.File("su", "x")
	suid.Mode = 0o4755
	root, res, err := layer(t, Options{}, it.Tar(it.Dir("t", 0o1777), it.File("t/f", "x"), suid, it.Dir("ro", 0o555)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{"t": fs.ModeDir | fs.ModeSticky | 0o777, "t/f": 0o644, "su": fs.ModeSetuid | 0o755, "ro": fs.ModeDir | 0o555}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		fi, err := os.Lstat(filepath.Join(root, name))
		if err != nil || fi.Mode() != want[name] || !fi.ModTime().Equal(it.Epoch) {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if res.Inodes != 4 || res.Bytes != 4*4096 {
		t.Errorf("result %+v", res)
	}
}

func TestParents(t *testing.T) {
	below, _, err := layer(t, Options{}, it.Tar(it.Dir("d", 0o710), it.File("d/f", "below"), it.Dir("tmp", 0o1777), it.Symlink("l", "/d/f")))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(below, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	asked := 0
	opts := Options{Parents: func(context.Context) ([]int, error) { asked++; return []int{fd}, nil }}
	root, _, err := layer(t, opts, it.Tar(it.Dir(".", 0o755), it.Link("h", "d/f"), it.File("tmp/x", "x"), it.File("new/x", "x")))
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, root); !slices.Equal(got, []string{"d/", "d/f = below", "h = below", "new/", "new/x = x", "tmp/", "tmp/x = x"}) {
		t.Errorf("got %q", got)
	}
	for name, mode := range map[string]fs.FileMode{"d": 0o710, "tmp": 0o777, "new": 0o755} {
		if fi, err := os.Stat(filepath.Join(root, name)); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if asked != 1 {
		t.Errorf("asked for the layers below %d times", asked)
	}
	if _, _, err = layer(t, opts, it.Tar(it.Link("h", "l"))); !errs.Is(err, errs.Invalid) {
		t.Errorf("hard link to a link of a lower layer: %v", err)
	}
	if _, _, err = layer(t, Options{Parents: func(context.Context) ([]int, error) { t.Error("asked"); return nil, nil }}, it.Tar(it.Dir(".", 0o755), it.Dir("d", 0o755), it.File("d/f", "x"))); err != nil {
		t.Error(err)
	}
}

func TestRoom(t *testing.T) {
	full := errs.New(errs.Exhausted, "full")
	raw := it.Tar(it.File("f", strings.Repeat("x", roomEvery+1)))
	if _, _, err := layer(t, Options{Room: func() error { return full }}, raw); !errs.Is(err, errs.Exhausted) {
		t.Errorf("%v", err)
	}
	if _, _, err := layer(t, Options{Room: func() error { return nil }}, raw); err != nil {
		t.Errorf("%v", err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := Layer(ctx, d, bytes.NewReader(it.Tar(it.File("f", "x"))), Options{Unprivileged: true}); err == nil {
		t.Error("unpacked with a dead context")
	}
}

func FuzzLayer(f *testing.F) {
	f.Add(it.Tar(it.Dir("d", 0o755), it.File("d/f", "x"), it.Symlink("l", "../d"), it.File("l/g", "y"), it.Link("h", "d/f"), it.File("d/.wh.x", ""), it.File("d/.wh..wh..opq", "")))
	f.Add(it.Tar(it.Symlink("a", "/outside"), it.File("a/canary", "x"), it.Dir("a", 0o777)))
	f.Add(sparse(1 << 20))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _, _ = layer(t, Options{Unprivileged: true, Limits: Limits{Entries: 100, Bytes: 1 << 20, Depth: 50, XattrBytes: 1 << 16}}, raw)
	})
}
