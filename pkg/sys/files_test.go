package sys

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if _, err := ReadFile(name); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, size := range []int{1 << 20, 4096, 4095, 1, 0} {
		data := bytes.Repeat([]byte("x"), size)
		if err := WriteFile(name, data, 0o640); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadFile(name); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: read %d, %v", size, len(got), err)
		}
	}
	if st, err := os.Stat(name); err != nil || st.Mode().Perm()&^0o640 != 0 {
		t.Error(st, err)
	}
	if got, err := ReadFile("/proc/self/stat"); err != nil || len(got) == 0 {
		t.Error(got, err)
	}
	var pe *fs.PathError
	if _, err := ReadFile(t.TempDir()); !errors.As(err, &pe) || pe.Op != "read" {
		t.Error(err)
	}
	f, err := Open(t.TempDir(), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if list, err := f.Readdirnames(-1); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
}
