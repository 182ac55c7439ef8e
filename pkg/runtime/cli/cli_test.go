package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-server/cri-server/pkg/runtime/cgroup"
	"github.com/cri-server/cri-server/pkg/runtime/rootless"
)

// commandEnv makes the test executable the command line under test.
const commandEnv = "CRI_RUNTIME_TEST_COMMAND"

func asCommand() {
	if os.Getenv(commandEnv) != "" || len(os.Args) == 2 && os.Args[1] == rootless.Verb {
		os.Unsetenv(commandEnv)
		os.Exit(Main(os.Args, "test"))
	}
}

// call is a call of the command line with a root of its own.
func call(root string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--root", root}, args...)...)
	cmd.Args[0] = "cri-runtime"
	cmd.Env = append(os.Environ(), commandEnv+"=1")
	return cmd
}

// result is how a command went.
type result struct {
	code     int
	out, err string
}

func run(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args string
		stop int
		rest string
		want string // values, or the error
	}{
		{"--bundle /b -d c1", 0, "c1", "/b true []"},
		{"c1 -d --bundle=/b", 0, "c1", "/b true []"},
		{"-b /b -- -d", 0, "-d", "/b false []"},
		{"-dk c1", 0, "c1", " true []"},
		{"-d=false c1", 0, "c1", " false []"},
		{"-e A=1 -e B=2,3 c1 ls -d -b", 1, "c1 ls -d -b", " false [A=1 B=2,3]"},
		{"- c1", 0, "- c1", " false []"},
		{"--nope", 0, "", "flag provided but not defined: -nope"},
		{"--bundle", 0, "", "flag needs an argument: --bundle"},
		{"-d=maybe", 0, "", `invalid value "maybe" for flag -d: strconv.ParseBool: parsing "maybe": invalid syntax`},
		{"-db", 0, "", "flag provided but not defined: -db"},
	} {
		var dir string
		var detach, keep bool
		var env []string
		flags := []flag{text(&dir, "bundle b", "DIR", ""), boolean(&detach, "detach d", ""), boolean(&keep, "keep k", ""), list(&env, "env e", "E", "")}
		rest, err := parse(flags, strings.Fields(c.args), c.stop)
		got := strings.TrimSpace(strings.Join([]string{dir, map[bool]string{true: "true", false: "false"}[detach], "[" + strings.Join(env, " ") + "]"}, " "))
		if err != nil {
			got = err.Error()
		}
		if got != strings.TrimSpace(c.want) || strings.Join(rest, " ") != c.rest {
			t.Errorf("%q: %q %q, want %q %q", c.args, got, rest, c.want, c.rest)
		}
	}
}

func TestVersion(t *testing.T) {
	r := run(t, call("/nonexistent", "--version"))
	if want := "\nspec: " + specs.Version + "\ngo: go"; r.code != 0 || !strings.HasPrefix(r.out, "cri-runtime version test\ncommit: ") || !strings.Contains(r.out, want) {
		t.Errorf("%+v", r)
	}
}

func TestTexts(t *testing.T) {
	root := t.TempDir()
	bundle := t.TempDir()
	for _, c := range []struct{ args, want string }{
		{"state c1", "container does not exist"},
		{"start c1", "container does not exist"},
		{"kill c1 TERM", "container does not exist"},
		{"delete c1", "container does not exist"},
		{"exec c1 ls", "exec failed: container does not exist"},
		{"state a/b", "invalid container ID format"},
		{"state ..", "invalid container ID format"},
		{"delete --force ../x", "invalid container ID format"},
		{"run --bundle " + bundle + " c1", "cri-runtime run failed: JSON specification file config.json not found"},
		{"create --bundle " + bundle + " c1", "cri-runtime create failed: JSON specification file config.json not found"},
		{"state", `cri-runtime: "state" requires exactly 1 argument(s)`},
		{"kill", `cri-runtime: "kill" requires a minimum of 1 argument(s)`},
		{"kill a b c", `cri-runtime: "kill" requires a maximum of 2 argument(s)`},
		{"list --format xml", "invalid format option"},
		{"run --what c1", "run: flag provided but not defined: -what"},
		{"frobnicate", "No help topic for 'frobnicate'"},
		{"--cgroup-manager=other list", "it is cgroupfs, systemd or disabled"},
		{"--systemd-cgroup run --bundle " + bundle + " c1", "config.json not found"},
		{"--root / list", "Option --root argument should not be set to /"},
		{"--log-format xml list", "invalid log-format: xml"},
	} {
		r := run(t, call(root, strings.Fields(c.args)...))
		code := 1
		switch {
		case strings.HasPrefix(c.args, "frob"):
			code = 3
		case strings.HasPrefix(c.args, "exec"):
			code = 255
		}
		if r.code != code || !strings.Contains(unquote(r.err), c.want) {
			t.Errorf("%s: %+v, want %q", c.args, r, c.want)
		}
	}
	if r := run(t, call(root, "delete", "--force", "c1")); r.code != 0 || r.err != "" {
		t.Errorf("deleting nothing by force: %+v", r)
	}
	if list, _ := os.ReadDir(root); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
}

// unquote undoes the quoting of a log line's message.
func unquote(s string) string { return strings.ReplaceAll(s, `\"`, `"`) }

func TestLog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	r := run(t, call(t.TempDir(), "--log", log, "--log-format", "json", "state", "c1"))
	if r.code != 1 || r.err != "container does not exist\n" {
		t.Errorf("%+v", r)
	}
	var line struct{ Level, Msg, Time string }
	data, err := os.ReadFile(log)
	if err != nil || json.Unmarshal(data, &line) != nil || line.Level != "error" || line.Msg != "container does not exist" || line.Time == "" {
		t.Errorf("the log is %s, %v", data, err)
	}
}

func TestList(t *testing.T) {
	root := t.TempDir()
	if r := run(t, call(root, "list")); r.code != 0 || !strings.HasPrefix(r.out, "ID          PID         STATUS      BUNDLE      CREATED     OWNER") {
		t.Errorf("%+v", r)
	}
	if r := run(t, call(root, "list", "-q", "--format", "json")); r.out != "" {
		t.Errorf("%+v", r)
	}
	if r := run(t, call(root, "list", "-f", "json")); strings.TrimSpace(r.out) != "null" {
		t.Errorf("%+v", r)
	}
	if r := run(t, call(filepath.Join(root, "none"), "list")); r.code != 1 {
		t.Errorf("a root that was named and is not there: %+v", r)
	}
	// A record of another boot is of a container that has stopped; a torn one is told of and left out.
	dir := filepath.Join(root, "old")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	record := `{"version":1,"id":"old","bundle":"/b","rootfs":"/b/r","created":"2026-01-02T03:04:05Z","boot":"x","cgroup":"/old","pid":1,"start":1}`
	if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "torn"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "torn/state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := run(t, call(root, "list", "-f", "json"))
	var got []map[string]any
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || len(got) != 1 {
		t.Fatalf("%+v", r)
	}
	want := map[string]any{"ociVersion": specs.Version, "id": "old", "pid": 0.0, "status": "stopped", "bundle": "/b", "rootfs": "/b/r",
		"created": "2026-01-02T03:04:05Z", "owner": got[0]["owner"]}
	if !reflect.DeepEqual(got[0], want) || !strings.Contains(r.err, "load container torn: state of container torn (") {
		t.Errorf("%+v", r)
	}
	if r := run(t, call(root, "state", "old")); r.code != 0 || !strings.Contains(r.out, "{\n  \"ociVersion\": ") || strings.HasSuffix(r.out, "\n") {
		t.Errorf("%+v", r)
	}
	if r := run(t, call(root, "list", "-q")); r.out != "old\n" {
		t.Errorf("%+v", r)
	}
	newer := strings.Replace(record, `"version":1`, `"version":9`, 1)
	if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, call(root, "state", "old")); r.code != 1 || !strings.Contains(r.err, "version 9") {
		t.Errorf("a record of a newer version: %+v", r)
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{"9": 9, "KILL": 9, "SIGKILL": 9, "sigterm": 15, "HUP": 1, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "0": 0} {
		if got, err := parseSignal(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "NOPE", "-1", "65", "RTMIN+99", "RTMIN3", "9x"} {
		if got, err := parseSignal(s); err == nil {
			t.Errorf("%q is signal %d", s, got)
		}
	}
}

func TestUsers(t *testing.T) {
	e := &execution{user: "1000:100", gids: []string{"5", "6"}}
	p := &specs.Process{}
	if err := e.setUser(p); err != nil || p.User.UID != 1000 || p.User.GID != 100 || !slices.Equal(p.User.AdditionalGids, []uint32{5, 6}) {
		t.Errorf("%+v, %v", p.User, err)
	}
	for _, bad := range []string{"4294967296", "4294967297:4294967298", "-1", "4294967295", "1:-1", "1:", "root", "1:2:3", " 1", "+1", "0x1"} {
		if err := (&execution{user: bad}).setUser(&specs.Process{}); err == nil {
			t.Errorf("--user %q is a user", bad)
		}
	}
	if err := (&execution{gids: []string{"4294967296"}}).setUser(&specs.Process{}); err == nil {
		t.Error("4294967296 is a group")
	}
}

func TestSpec(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"spec", "--bundle", dir}, {"spec", "--rootless", "--bundle", t.TempDir()}} {
		if r := run(t, call("/nonexistent", args...)); r.code != 0 {
			t.Fatalf("%+v", r)
		}
		s, _, err := loadSpec(filepath.Join(args[len(args)-1], "config.json"))
		if err != nil || checkProcess(s.Process) != nil || len(s.Linux.Namespaces) < 5 {
			t.Errorf("%+v, %v", s, err)
		}
	}
	if r := run(t, call("/nonexistent", "spec", "-b", dir)); r.code != 1 || !strings.Contains(r.err, "File config.json exists. Remove it first") {
		t.Errorf("%+v", r)
	}
}

func TestFeatures(t *testing.T) {
	r := run(t, call("/nonexistent", "features"))
	var f struct {
		MountOptions []string
		Linux        struct {
			Namespaces, Capabilities []string
			Seccomp                  struct{ Actions, Operators, Archs []string }
		}
	}
	if err := json.Unmarshal([]byte(r.out), &f); err != nil || r.code != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, c := range []struct {
		list []string
		want string
	}{{f.MountOptions, "rrelatime"}, {f.Linux.Namespaces, "user"}, {f.Linux.Capabilities, "CAP_SYS_ADMIN"}, {f.Linux.Seccomp.Actions, "SCMP_ACT_NOTIFY"},
		{f.Linux.Seccomp.Operators, "SCMP_CMP_MASKED_EQ"}, {f.Linux.Seccomp.Archs, "SCMP_ARCH_X86_64"}} {
		if !slices.Contains(c.list, c.want) {
			t.Errorf("%v does not have %s", c.list, c.want)
		}
	}
}

func TestUpdates(t *testing.T) {
	u := updates{memory: "-1", shares: "512", weight: "70000"}
	if _, err := u.resources(); err == nil || !strings.Contains(err.Error(), "blkio-weight") {
		t.Errorf("a weight of 70000: %v", err)
	}
	u.weight = ""
	res, err := u.resources()
	if err != nil || *res.Memory.Limit != -1 || *res.CPU.Shares != 512 || res.CPU.Quota != nil || res.BlockIO.Weight != nil {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestTerminalNeedsSocket(t *testing.T) {
	for _, c := range []struct {
		terminal, detach bool
		socket           string
		ok               bool
	}{{false, false, "", true}, {true, false, "", true}, {true, true, "", false}, {true, true, "s", true}, {false, true, "s", false}, {true, false, "s", false}} {
		if err := checkTerminal(c.terminal, c.detach, c.socket); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{"50M": 50 << 20, "1.5GiB": 3 << 29, "100kb": 100 << 10, "7": 7, "7b": 7, "-1": -1, "0": 0} {
		var p *int64
		if err := size("memory", s, &p); err != nil || *p != want {
			t.Errorf("%s: %v, want %d", s, err, want)
		}
	}
	for _, s := range []string{"M", "x", "-5", "1MM", "9999999P", "1e400", "NaN"} {
		var p *int64
		if err := size("memory", s, &p); err == nil {
			t.Errorf("%q is %d bytes", s, *p)
		}
	}
}

func TestEnviron(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(dir, "etc/passwd")
	if err := os.WriteFile(passwd, []byte("torn\nroot:x:0:0:root:/root:/bin/sh\nu:x:5:5::/home/u:/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, c := range []struct {
		env, want string
		uid       uint32
	}{
		{"A=1 B=2 A=3", "A=3 B=2 HOME=/root", 0},
		{"HOME=/x", "HOME=/x", 0},
		{"HOME= A=1", "HOME=/home/u A=1", 5},
		{"HOME=/x HOME=", "HOME=/root", 0},
		{"", "HOME=/", 77},
	} {
		if got := strings.Join(environ(strings.Fields(c.env), passwdOf(root), c.uid), " "); got != c.want {
			t.Errorf("%q for %d: %q, want %q", c.env, c.uid, got, c.want)
		}
	}
	// A passwd file that is a fifo, or leads out of the tree, must not hold or mislead us.
	if err := os.Remove(passwd); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(passwd, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := home(passwdOf(root), 0); got != "/" {
		t.Errorf("the home of a fifo's root is %s", got)
	}
	if err := os.Remove(passwd); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", passwd); err != nil {
		t.Fatal(err)
	}
	if got := home(passwdOf(root), 0); got != "/" {
		t.Errorf("through a link that leads to itself the home is %s", got)
	}
}

func TestCountMounts(t *testing.T) {
	const mounts = "20 1 0:1 / / rw - ext4 /dev/x rw\n21 20 0:2 / /a\\040b rw - tmpfs t rw\n22 21 0:3 / /a\\040b rw - tmpfs t rw\n"
	for dir, want := range map[string]int{"/": 1, "/a b": 2, "/a": 0} {
		if got := countMounts(mounts, dir); got != want {
			t.Errorf("%s: %d, want %d", dir, got, want)
		}
	}
}

// What the memory controller tells on v2, beside others on v1, is not lost.
func TestStatsOfHybrid(t *testing.T) {
	var s stats
	s.Memory.Usage.Usage = 5
	if s.add(&cgroup.Detail{PerCPU: []uint64{1}}); s.Memory.Usage.Usage != 5 || s.Memory.TCP != nil || len(s.CPU.Usage.PerCPU) != 1 {
		t.Errorf("%+v", s)
	}
	if s.add(&cgroup.Detail{Memory: cgroup.Counter{Limit: 9, Usage: 7}}); s.Memory.Usage.Usage != 7 || s.Memory.TCP == nil {
		t.Errorf("%+v", s)
	}
}
