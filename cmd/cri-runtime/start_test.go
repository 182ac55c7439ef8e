package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkVersion measures what a start of cri-runtime costs before it does anything: the least time of
// 200 calls of --version, and its ratio to that of an empty program. Every package that cri-runtime links
// pays into it, and so does every pod, whose shim is the same executable.
func BenchmarkVersion(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "empty.go"), []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	build := func(out, what string) string {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, out), what)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, text)
		}
		return filepath.Join(dir, out)
	}
	empty, runtime := build("empty", filepath.Join(dir, "empty.go")), build("cri-runtime", ".")
	for b.Loop() {
		least := map[string]time.Duration{empty: time.Hour, runtime: time.Hour}
		for range 200 { // by turns, so that both see the same machine
			for program := range least {
				begun := time.Now()
				if err := exec.Command(program, "--version").Run(); err != nil {
					b.Fatal(err)
				}
				least[program] = min(least[program], time.Since(begun))
			}
		}
		b.ReportMetric(float64(least[runtime].Microseconds()), "µs/start")
		b.ReportMetric(float64(least[runtime])/float64(least[empty]), "×empty")
	}
}
