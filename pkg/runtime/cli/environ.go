package cli

import (
	"bufio"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// maxPasswd is how much of a container's passwd file is read for a home directory: it is the image's, and
// may be anything.
const maxPasswd = 1 << 20

// environ keeps the last value of every variable, and gives the process its user's home directory where
// the configuration does not, as runc does. What passwd opens, nil for nothing, is closed.
func environ(env []string, passwd func() *os.File, uid uint32) []string {
	var out []string
	at := map[string]int{}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	i, ok := at["HOME"]
	if !ok {
		return append(out, "HOME="+home(passwd, uid))
	}
	if out[i] == "HOME=" {
		out[i] += home(passwd, uid)
	}
	return out
}

// passwd is where a container's users are named.
const passwd = "etc/passwd"

// passwdOf opens a container's passwd file below its root directory, nil where it cannot be: neither a fifo, which would
// hold us, nor a link out of the tree.
func passwdOf(root *os.File) func() *os.File {
	return func() *os.File {
		if root == nil {
			return nil
		}
		f, err := sys.OpenAt(root, passwd, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0, sys.InRoot)
		if err != nil {
			return nil
		}
		return f
	}
}

// passwdToBe is passwdOf before the mounts are made: the file may be one of theirs.
func passwdToBe(bundle string, mounts []specs.Mount, root *os.File) func() *os.File {
	for _, m := range slices.Backward(mounts) {
		rest, over := strings.CutPrefix("/"+passwd+"/", path.Clean("/"+m.Destination)+"/")
		bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		if !over || slices.Contains(m.Options, "remount") || !bind && slices.Contains(m.Options, "tmpcopyup") {
			continue
		}
		if !bind {
			return passwdOf(nil)
		}
		source := m.Source
		if !filepath.IsAbs(source) {
			source = filepath.Join(bundle, source)
		}
		return func() *os.File {
			f, err := sys.Open(source, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
			if err != nil {
				return nil
			}
			if rest == "" {
				return f
			}
			defer f.Close()
			below, err := sys.OpenAt(f, strings.TrimSuffix(rest, "/"), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0, sys.InRoot)
			if err != nil {
				return nil
			}
			return below
		}
	}
	return passwdOf(root)
}

// home looks a user up in the container's passwd file. Who has no line there is at home in /.
func home(open func() *os.File, uid uint32) string {
	const none = "/"
	f := open()
	if f == nil {
		return none
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return none
	}
	want := strconv.FormatUint(uint64(uid), 10)
	sc := bufio.NewScanner(io.LimitReader(f, maxPasswd))
	for sc.Scan() {
		if w := strings.Split(sc.Text(), ":"); len(w) > 5 && w[2] == want && w[5] != "" {
			return w[5]
		}
	}
	return none
}
