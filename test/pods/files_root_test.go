//go:build root

package pods

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestVolumesOfImages starts containers of an image that declares volumes which it contains, which it does not contain, and
// which cannot be directories.
func TestVolumesOfImages(t *testing.T) {
	n := newNode(t)
	const ref = "registry.test/volumes:1"
	push(t, ref, v1.Config{Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{
		"/data": {}, "deep/er": {}, "/tmp": {}, "/etc/passwd": {}, "/link/x": {}, "/../../out": {}, "/" + strings.Repeat("x", 300): {}, "/file": {}, "/é": {},
	}}, append(busyboxFiles(t), symlink("link", "/nowhere"))...)
	n.pull(ref)
	host := filepath.Join(filepath.Dir(n.dir), "host")
	if err := os.WriteFile(host, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*cri.PodSandboxConfig){"plain": func(*cri.PodSandboxConfig) {}, "user namespace": userNamespace} {
		t.Run(name, func(t *testing.T) {
			config := n.podConfig("volumes", edit)
			pod := n.pod(config)
			id := n.run(pod, config, "c", "exec sleep 1000", func(c *cri.ContainerConfig) {
				c.Image.Image = ref
				c.Mounts = []*cri.Mount{{HostPath: host, ContainerPath: "/file", Readonly: true}}
			})
			const want = "0:0:755 0:0:755 0:0:755 0:0:755 0:0:1777 of the host"
			if got := n.exec(id, "touch /data/a /deep/er/a && echo $(stat -c %u:%g:%a /data /deep/er /é /out /tmp) $(cat /file)"); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			n.removePod(pod)
		})
	}
	if _, err := os.Lstat("/out"); err == nil {
		t.Error("a volume of the image climbed out")
	}
	n.removeAll()
}

// TestFilesOfThePod has root of containers write the files that the pod's containers share.
func TestFilesOfThePod(t *testing.T) {
	n := newNode(t)
	for name, edit := range map[string]func(*cri.PodSandboxConfig){"plain": func(*cri.PodSandboxConfig) {}, "user namespace": userNamespace} {
		t.Run(name, func(t *testing.T) {
			config := n.podConfig("files", edit)
			pod := n.pod(config)
			id := n.run(pod, config, "c", "exec sleep 1000")
			const files = "/etc/hosts /etc/hostname /etc/resolv.conf"
			if got := n.exec(id, "stat -c %u:%g:%a "+files+"; for f in "+files+"; do echo '# more' >> $f || exit; done"); got != "0:0:644\n0:0:644\n0:0:644" {
				t.Errorf("owners and modes:\n%s", got)
			}
			n.removePod(pod)
		})
	}
	n.removeAll()
}
