package interp

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden interpreters")

// TestGolden holds each architecture's interpreter to the bytes that were tried: the ones this test runs
// with, and for the other architecture those of a cross-built executable.
func TestGolden(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		code := Code()
		if arch != runtime.GOARCH {
			code = cross(t, arch)
		}
		file := filepath.Join("testdata", "interp_"+arch+".hex")
		got := lines(code)
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("the interpreter for %s is not %s:\n%s", arch, file, got)
		}
	}
}

// lines is code in hexadecimal, 16 bytes a line.
func lines(code []byte) string {
	var b strings.Builder
	for len(code) > 0 {
		n := min(16, len(code))
		b.WriteString(hex.EncodeToString(code[:n]) + "\n")
		code = code[n:]
	}
	return b.String()
}

// cross builds for another architecture and reads the interpreter out of the executable's symbol.
func cross(t *testing.T, arch string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "show")
	cmd := exec.Command("go", "build", "-o", out, "./testdata/show")
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build for %s: %v\n%s", arch, err, msg)
	}
	f, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range syms {
		if !strings.HasSuffix(s.Name, "/internal/interp.interp") && !strings.HasSuffix(s.Name, "/internal/interp.interp.abi0") {
			continue
		}
		sect := f.Sections[s.Section]
		text := make([]byte, s.Size)
		if _, err := sect.ReadAt(text, int64(s.Value-sect.Addr)); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Index(text, endMark[:]); n >= 0 {
			return text[:n]
		}
	}
	t.Fatalf("no interpreter in an executable for %s", arch)
	return nil
}
