package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cri-server/cri-server/"

// guarded are the libraries that only the rows named in the table may import.
var guarded = map[string]string{
	"google.golang.org/grpc":                 "grpc",
	"k8s.io/cri-api":                         "cri-api",
	"k8s.io/klog/v2":                         "klog",
	"k8s.io/cri-streaming":                   "cri-streaming",
	"github.com/coder/websocket":             "websocket",
	"github.com/prometheus/client_golang":    "prometheus",
	"oras.land/oras-go/v2":                   "oras",
	"github.com/vishvananda/netlink":         "netlink",
	"github.com/google/nftables":             "nftables",
	"github.com/containernetworking/cni":     "libcni",
	"github.com/containernetworking/plugins": "libcni",
}

type source struct {
	path string // below the module's root
	fset *token.FileSet
	ast  *ast.File
}

// sources parses every Go file of the project that is no test and no generated data.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir("../..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && (name == "testdata" || name == "bin" || (strings.HasPrefix(name, ".") && len(name) > 2)) {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("../..", p)
		all = append(all, source{filepath.ToSlash(rel), fset, f})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 5 {
		t.Fatalf("only %d files found", len(all))
	}
	return all
}

type row struct{ ours, libs []string }

func importTable(t *testing.T) map[string]row {
	t.Helper()
	doc, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "<!-- import table -->")
	table, _, ok2 := strings.Cut(rest, "<!-- end -->")
	if !ok || !ok2 {
		t.Fatal("ARCHITECTURE.md has no import table between its two marks")
	}
	rows := map[string]row{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.Contains(cells[1], "/") {
			continue
		}
		rows[strings.TrimSpace(cells[1])] = row{strings.Fields(cells[2]), strings.Fields(cells[3])}
	}
	if len(rows) < 10 {
		t.Fatalf("the import table has %d rows", len(rows))
	}
	return rows
}

// room returns the name of the row that a file or package path belongs to: its first two elements.
func room(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) < 2 {
		return path
	}
	return parts[0] + "/" + parts[1]
}

func TestImports(t *testing.T) {
	rows := importTable(t)
	for _, src := range sources(t) {
		from := room(src.path)
		if !strings.HasPrefix(src.path, "pkg/") && !strings.HasPrefix(src.path, "cmd/") {
			continue // test drivers, internal helpers of tests
		}
		r, known := rows[from]
		if !known {
			t.Errorf("%s: %s has no row in the import table", src.path, from)
			continue
		}
		for _, imp := range src.ast.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			if err := allowed(from, r, path); err != nil {
				t.Errorf("%s: %v", src.fset.Position(imp.Pos()), err)
			}
		}
	}
}

func allowed(from string, r row, path string) error {
	if ours, ok := strings.CutPrefix(path, module); ok {
		to := room(ours)
		if to == from || slices.Contains(r.ours, to) || slices.Contains(r.ours, "*") {
			return nil
		}
		return fmt.Errorf("%s may not import %s (ARCHITECTURE.md, import table)", from, ours)
	}
	for lib, name := range guarded {
		if (path == lib || strings.HasPrefix(path, lib+"/")) && !slices.Contains(r.libs, name) && !slices.Contains(r.libs, "*") {
			return fmt.Errorf("%s may not import %s (ARCHITECTURE.md, import table)", from, path)
		}
	}
	return nil
}

func TestAllowed(t *testing.T) {
	r := row{[]string{"pkg/sys"}, []string{"grpc"}}
	for path, ok := range map[string]bool{
		module + "pkg/sys/x": true, module + "pkg/a/internal/b": true, module + "pkg/server": false,
		"google.golang.org/grpc/codes": true, "k8s.io/klog/v2": false, "os": true,
	} {
		if got := allowed("pkg/a", r, path) == nil; got != ok {
			t.Errorf("import of %s by pkg/a: allowed %v, want %v", path, got, ok)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, src := range sources(t) {
		if ast.IsGenerated(src.ast) {
			continue
		}
		if n := src.fset.Position(src.ast.FileEnd).Line; n > 500 {
			t.Errorf("%s has %d lines, at most 500", src.path, n)
		}
		for _, d := range src.ast.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			limit := 70
			if strings.HasPrefix(src.path, "pkg/server/") && f.Recv != nil {
				limit = 25
			}
			from, to := src.fset.Position(f.Pos()), src.fset.Position(f.End())
			if n := to.Line - from.Line + 1; n > limit {
				t.Errorf("%s:%d: %s has %d lines, at most %d", src.path, from.Line, f.Name.Name, n, limit)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	for _, src := range sources(t) {
		dir := filepath.Dir(src.path)
		documented[dir] = documented[dir] || src.ast.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: the package has no comment", dir)
		}
	}
}

// TestRuntimeClosure holds what cri-runtime links: every process start pays for it.
func TestRuntimeClosure(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "./cmd/cri-runtime")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	forbidden := []string{
		"google.golang.org/grpc", "google.golang.org/protobuf", "k8s.io/", "net", "net/http", "github.com/sirupsen/logrus",
		"github.com/godbus/dbus", "regexp", "github.com/opencontainers/go-digest", "text/template", "github.com/spf13/",
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		for _, bad := range forbidden {
			if dep == bad || (strings.HasSuffix(bad, "/") && strings.HasPrefix(dep, bad)) || (strings.Contains(bad, ".") && strings.HasPrefix(dep, bad+"/")) {
				t.Errorf("cri-runtime links %s", dep)
			}
		}
	}
}
