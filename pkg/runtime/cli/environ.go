package cli

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-server/cri-server/pkg/sys"
)

// maxPasswd is how much of a container's passwd file is read for a home directory: it is the image's, and
// may be anything.
const maxPasswd = 1 << 20

// environ keeps the last value of every variable, and gives the process its user's home directory where
// the configuration does not, as runc does. root is the container's root directory; it may be nil.
func environ(env []string, root *os.File, uid uint32) []string {
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
		return append(out, "HOME="+home(root, uid))
	}
	if out[i] == "HOME=" {
		out[i] += home(root, uid)
	}
	return out
}

// home looks a user up in the container's passwd file. Who has no line there is at home in /.
func home(root *os.File, uid uint32) string {
	const none = "/"
	if root == nil {
		return none
	}
	// Not a fifo, which would hold us, nor a link out of the tree.
	f, err := sys.OpenAt(root, "etc/passwd", os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0, sys.InRoot)
	if err != nil {
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
