package sys

import (
	"os"
	"path/filepath"
	"testing"
)

func TestResolveInRoot(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "a/b"), 0o755)
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o644)
	for name, to := range map[string]string{
		"abs": "/a", "rel": "a/b", "up": "../../../a/b/../b", "none": "/x/y", "chain": "none/z", "loop": "loop", "a/self": ".", "out": "../../../../etc",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for p, want := range map[string]string{
		"": ".", "/": ".", "a/b": "a/b", "abs/b/c": "a/b/c", "rel": "a/b", "up/q": "a/b/q", "none": "x/y", "none/w": "x/y/w", "chain/v": "x/y/z/v",
		"a/self/self/b": "a/b", "file/x": "file/x", "../../etc": "etc", "out/passwd": "etc/passwd", "new/dir": "new/dir",
	} {
		if got, err := ResolveInRoot(root, p); got != want || err != nil {
			t.Errorf("%q is %q, %v; want %q", p, got, err, want)
		}
	}
	if got, err := ResolveInRoot(root, "loop"); err == nil {
		t.Errorf("a loop resolves to %q", got)
	}
}
