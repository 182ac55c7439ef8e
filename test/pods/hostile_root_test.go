//go:build root

package pods

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func fifo(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o644}, ""}
}

// box is a busybox without account files, to which an image adds its own.
func box(t *testing.T, more ...entry) []entry {
	t.Helper()
	var out []entry
	for _, e := range busyboxFiles(t) {
		if !strings.HasPrefix(e.Name, "etc/") && e.Name != "bin/observer" {
			out = append(out, e)
		}
	}
	return append(out, more...)
}

// canary is what is on the host, for images to get at: a directory with a secret, and /etc.
type canary struct{ dir, before string }

func newCanary(n *node) *canary {
	n.t.Helper()
	c := &canary{dir: filepath.Join(filepath.Dir(n.dir), "canary")}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	touch(n.t, c.dir, "secret")
	c.before = c.look(n.t)
	return c
}

func (c *canary) look(t testing.TB) string {
	t.Helper()
	var out []string
	for _, dir := range []string{c.dir, "/etc", "/", "/dev"} {
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range names {
			if i, err := e.Info(); err == nil {
				line := fmt.Sprint(dir, "/", e.Name(), " ", i.Mode())
				if i.Mode().IsRegular() {
					line += fmt.Sprint(" ", i.Size(), " ", i.ModTime())
				}
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "\n")
}

func (c *canary) sings(t testing.TB) {
	t.Helper()
	if after := c.look(t); after != c.before {
		t.Errorf("the host has changed: %s, was %s", after, c.before)
	}
}

// climb is a path that leads from a root filesystem to one of the host, if it is let.
func climb(to string) string { return strings.Repeat("../", 20) + strings.TrimPrefix(to, "/") }

// attempt runs a script in a container of the image and returns what it says, or what it is refused with.
func (n *node) attempt(ref, script string) (string, error) {
	n.t.Helper()
	if _, err := n.img.PullImage(n.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		return "", err
	}
	config := n.podConfig("hostile")
	pod := n.pod(config)
	defer n.removePod(pod)
	id, err := n.tryCreate(pod, containerConfig(config, "c", script, func(c *cri.ContainerConfig) { c.Image.Image = ref }), config)
	if err == nil {
		err = n.tryStart(id)
	}
	if err != nil {
		return "", err
	}
	n.ended(id)
	var out []string
	for line := range strings.Lines(n.log(id)) {
		_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " F ")
		out = append(out, text)
	}
	_ = os.Remove(n.status(id).LogPath)
	return strings.Join(out, "\n"), nil
}

// hostile is an image, and what comes of it: what a script in it says, or the code it is refused with.
type hostile struct {
	name    string
	config  v1.Config
	entries []entry
	script  string
	says    string
	code    codes.Code
}

// TestHostileImages pulls images that reach for the host, and runs them.
func TestHostileImages(t *testing.T) {
	n := newNode(t)
	c := newCanary(n)
	const invalid = codes.InvalidArgument
	path := v1.Config{Env: []string{"PATH=/bin"}}
	named := v1.Config{User: "user", Env: path.Env}
	passwd := file("etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n")
	for _, h := range []hostile{
		{"accounts are a FIFO", named, box(t, fifo("etc/passwd")), "id -u", "", invalid},
		{"accounts are a FIFO and nobody asks", path, box(t, fifo("etc/passwd"), fifo("etc/group")), "id -u", "", invalid},
		{"accounts are a device", named, box(t, symlink("etc/passwd", "/dev/zero")), "id -u", "", codes.NotFound},
		{"accounts are the host's", v1.Config{User: "daemon", Env: path.Env}, box(t, symlink("etc/passwd", climb("/etc/passwd"))), "id -u", "", invalid},
		{"accounts are huge", named, box(t, file("etc/passwd", 0o644, strings.Repeat("a", 20<<20))), "id -u", "", invalid},
		{"home of the account has a line end", path, box(t, file("etc/passwd", 0o644, "root:x:0:0:root:/r\x0d\x00evil:/bin/sh\n")), "echo $HOME", "/", 0},
		{"volume climbs", v1.Config{Volumes: map[string]struct{}{"/" + climb(c.dir): {}}, Env: path.Env}, box(t, passwd), "ls " + c.dir + "/secret 2>/dev/null; echo done", "done", 0},
		{"volume is a link", v1.Config{Volumes: map[string]struct{}{"/data": {}}, Env: path.Env}, box(t, symlink("data", climb(c.dir))), "ls /data/secret 2>/dev/null; echo done", "done", 0},
		{"working directory is below a link", v1.Config{WorkingDir: "/link/made", Env: path.Env}, box(t, symlink("link", climb(c.dir))), "pwd -P", "", invalid},
		{"working directory is a link to nothing", v1.Config{WorkingDir: "/link", Env: path.Env}, box(t, symlink("link", "/none/at/all")), "pwd -P", "", invalid},
		{"working directory climbs", v1.Config{WorkingDir: "/" + climb(c.dir) + "/made", Env: path.Env}, box(t), "pwd -P", c.dir + "/made", 0},
		{"working directory is a descriptor", v1.Config{WorkingDir: "/proc/self/fd/7", Env: path.Env}, box(t), "pwd", "", invalid},
		{"/etc leads out", path, box(t, symlink("etc", climb(c.dir))), "cat /etc/hostname; ls " + c.dir, "hostile\nhostname\nhosts\nresolv.conf", 0},
		{"/proc leads out", path, box(t, symlink("proc", climb(c.dir))), "true", "", invalid},
		{"/dev leads out", path, box(t, symlink("dev", climb(c.dir))), "true", "", invalid},
		{"/sys leads out", path, box(t, symlink("sys", climb(c.dir))), "true", "", invalid},
		{"/dev/null is a file", path, box(t, dir("dev", 0o755), file("dev/null", 0o666, "fake")), "cat /dev/null /proc/keys; stat -c '%t %T' /dev/null", "1 3", 0},
		{"a device", path, box(t, entry{tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o666, Devmajor: 8}, ""}), "cat /disk >/dev/null 2>&1 || echo refused", "refused", 0},
		{"an entry climbs", path, box(t, file(climb(c.dir)+"/made", 0o644, "x")), "true", "", invalid},
		{"an entry goes through a link", path, box(t, symlink("out", climb(c.dir)), file("out/made", 0o644, "x\n")), "cat out/made", "x", 0},
		{"a link to the host's secret", path, box(t, entry{tar.Header{Typeflag: tar.TypeLink, Name: "secret", Linkname: climb(c.dir) + "/secret"}, ""}), "true", "", invalid},
		{"a whiteout of what is outside", path, box(t, symlink("out", climb(c.dir)), file("out/.wh.secret", 0o644, "")), "echo done", "done", 0},
		{"a whiteout of the parent", path, box(t, file(".wh...", 0o644, "")), "echo done", "", invalid},
		{"labels that mean something elsewhere", v1.Config{Env: path.Env, Labels: map[string]string{"containerd.io/restart.loguri": "binary:///bin/touch?" + c.dir + "/made", "io.kubernetes.cri.container-type": "sandbox"}}, box(t), "echo done", "done", 0},
	} {
		t.Run(h.name, func(t *testing.T) {
			n.t = t
			ref := "registry.test/hostile:t" + strings.Map(func(r rune) rune {
				if r == ' ' || r == '/' || r == '\'' {
					return '-'
				}
				return r
			}, h.name)
			push(t, ref, h.config, h.entries...)
			says, err := n.attempt(ref, h.script)
			if code := status.Code(err); code != h.code || says != h.says {
				t.Errorf("it says %q, want %q; code %s, want %s: %v", says, h.says, code, h.code, err)
			}
			c.sings(t)
		})
		n.t = t
	}
	n.clean()
}

// TestUsersOfImages are what stands for a user in an image's configuration, with accounts that are called like numbers.
func TestUsersOfImages(t *testing.T) {
	n := newNode(t)
	trap := ""
	for _, name := range []string{"1000", "4294967296", "4294967295", "2147483648", "00", "+0", "0x0", "-1", "1e3", "1000 ", "99999999999999999999"} {
		trap += name + ":x:0:0:trap:/:/bin/sh\n"
	}
	files := box(t, file("etc/passwd", 0o644, trap+"root:x:0:0:root:/root:/bin/sh\nuser:x:33:44:user:/:/bin/sh\n"), file("etc/group", 0o644, "root:x:0:\n1000:x:0:\nextra:x:55:user\n"))
	for i, c := range []struct {
		user, says string
		code       codes.Code
	}{
		{"1000", "1000 0 0", 0}, {"1000:1000", "1000 1000 1000", 0}, {"2147483648", "2147483648 0 0", 0}, {"4294967294", "4294967294 0 0", 0},
		{"user", "33 44 44 55", 0}, {"user:extra", "33 55 55", 0}, {"", "0 0 0", 0},
		{"4294967295", "", codes.InvalidArgument}, {"4294967296", "", codes.InvalidArgument}, {"00", "", codes.InvalidArgument}, {"+0", "", codes.InvalidArgument},
		{"0x0", "", codes.InvalidArgument}, {"-1", "", codes.InvalidArgument}, {" 0", "", codes.InvalidArgument}, {"1000 ", "", codes.InvalidArgument},
		{"99999999999999999999", "", codes.InvalidArgument}, {"0:4294967296", "", codes.InvalidArgument}, {"user:-1", "", codes.InvalidArgument},
		{"nobody", "", codes.NotFound}, {"user:none", "", codes.NotFound},
	} {
		t.Run("user "+c.user, func(t *testing.T) {
			n.t = t
			ref := fmt.Sprint("registry.test/users:", i)
			push(t, ref, v1.Config{User: c.user, Env: []string{"PATH=/bin"}}, files...)
			says, err := n.attempt(ref, "echo $(id -u) $(id -g) $(id -G)")
			if code := status.Code(err); code != c.code || says != c.says {
				t.Errorf("it says %q, want %q; code %s, want %s: %v", says, c.says, code, c.code, err)
			}
		})
		n.t = t
	}
	n.clean()
}

// TestHostileManifests puts manifests into the registry that are not what they say.
func TestHostileManifests(t *testing.T) {
	n := newNode(t)
	before := len(n.images())
	for name, edit := range map[string]func(m map[string]any){
		"an index too":     func(m map[string]any) { m["manifests"] = []any{m["config"]} },
		"config too short": func(m map[string]any) { config(m)["size"] = 10 },
		"config too long":  func(m map[string]any) { config(m)["size"] = 1 << 40 },
		"negative size":    func(m map[string]any) { config(m)["size"] = -1 },
		"digest climbs":    func(m map[string]any) { config(m)["digest"] = "sha256:../../../../../../etc/passwd" },
		"layer is config":  func(m map[string]any) { m["layers"] = []any{m["config"]} },
		"layer too short":  func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)["size"] = 100 },
		"layer twice":      func(m map[string]any) { m["layers"] = []any{m["layers"].([]any)[0], m["layers"].([]any)[0]} },
		"no layers":        func(m map[string]any) { m["layers"] = []any{} },
		"schema 1":         func(m map[string]any) { m["schemaVersion"] = 1 },
		"annotations":      func(m map[string]any) { m["annotations"] = map[string]string{"a": strings.Repeat("a", 8<<20)} },
	} {
		t.Run(name, func(t *testing.T) {
			rewrite(t, "busybox", "1", "hostile", edit)
			_, err := n.img.PullImage(n.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: "registry.test/busybox:hostile"}})
			if code := status.Code(err); code != codes.InvalidArgument && code != codes.Unimplemented {
				t.Errorf("code %s: %v", code, err)
			}
			if got := len(n.images()); got != before {
				t.Errorf("%d images, were %d", got, before)
			}
		})
	}
	n.clean()
}

func config(m map[string]any) map[string]any { return m["config"].(map[string]any) }

func (n *node) images() []*cri.Image {
	n.t.Helper()
	r, err := n.img.ListImages(n.ctx, &cri.ListImagesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.Images
}

// rewrite puts a changed manifest beside the one it is made of.
func rewrite(t *testing.T, repo, from, to string, edit func(m map[string]any)) {
	t.Helper()
	url := shared.url + "/v2/" + repo + "/manifests/"
	r, err := http.Get(url + from)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	if body, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPut, url+to, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", r.Header.Get("Content-Type"))
	put, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer put.Body.Close()
	if put.StatusCode != http.StatusCreated {
		said, _ := io.ReadAll(put.Body)
		t.Fatalf("put manifest: %s: %s", put.Status, said)
	}
}

// TestStateIsClosed holds that nobody but root gets into the server's directories.
func TestStateIsClosed(t *testing.T) {
	n := newNode(t)
	config := n.podConfig("a", userNamespace)
	n.run(n.pod(config), config, "c", "exec sleep 1000")
	for _, d := range []string{"lib", "run"} {
		if st, err := os.Stat(n.path(d)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", d, st.Mode(), err)
		}
	}
	if st, err := os.Stat(n.path("cri-server.sock")); err != nil || st.Mode().Perm()&0o077 != 0 {
		t.Errorf("the socket: %v, %v", st.Mode(), err)
	}
	if b, err := os.ReadFile("/proc/net/unix"); err != nil || strings.Contains(string(b), "@") {
		t.Errorf("an abstract socket: %s, %v", b, err)
	}
	n.removeAll()
}
