package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// logInterval is how often a log that is followed is looked at.
const logInterval = 50 * time.Millisecond

func (a *app) logs() *cobra.Command {
	var follow, timestamps bool
	var tail int
	cmd := &cobra.Command{
		Use: "logs CONTAINER", Short: "Print what a container wrote", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *client) error {
				st, err := c.ContainerStatus(cmd.Context(), &cri.ContainerStatusRequest{ContainerId: args[0]})
				if err != nil {
					return err
				}
				path := st.GetStatus().GetLogPath()
				if path == "" {
					return fmt.Errorf("read log (container %s): it was created without one. Create it with a log path.", args[0])
				}
				l := &logReader{path: path, out: a.out, err: a.err, tail: tail, timestamps: timestamps}
				if !follow {
					return l.print()
				}
				return l.follow(cmd.Context(), func() bool { return !c.runs(cmd.Context(), st.GetStatus().GetId()) })
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the container ends")
	cmd.Flags().IntVar(&tail, "tail", -1, "only the last lines (default all)")
	cmd.Flags().BoolVarP(&timestamps, "timestamps", "t", false, "with the time of each line")
	return cmd
}

// runs reports whether a container is running, or about to.
func (c *client) runs(ctx context.Context, id string) bool {
	st, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	return err == nil && st.GetStatus().GetState() != cri.ContainerState_CONTAINER_EXITED
}

// logReader prints a log file of the CRI's format: "time stream tag text", where the tag P says that the line
// goes on.
type logReader struct {
	path       string
	out, err   io.Writer
	tail       int // -1 is everything
	timestamps bool
	file       *os.File
	rest       []byte // of a line whose end is not written yet
	inLine     bool   // the last line printed goes on
}

// print prints what there is.
func (l *logReader) print() error {
	if err := l.open(); err != nil {
		return err
	}
	defer l.file.Close()
	return l.copy()
}

// follow prints what there is and what comes, until ended says that no more will, or ctx ends. A file that is
// renamed away is read to its end before the new one.
func (l *logReader) follow(ctx context.Context, ended func() bool) error {
	if err := l.open(); err != nil {
		return err
	}
	defer func() { l.file.Close() }()
	tick := time.NewTicker(logInterval)
	defer tick.Stop()
	for {
		last := ended() // before the copy: what was written by then is in the file
		if err := l.copy(); err != nil || last {
			return err
		}
		if err := l.rotated(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (l *logReader) open() error {
	f, err := os.Open(l.path)
	if err != nil {
		return fmt.Errorf("read log: %w. The server and this command must see the same files", err)
	}
	l.file = f
	if l.tail >= 0 {
		return l.seekTail()
	}
	return nil
}

// seekTail moves to where the last l.tail lines begin. It reads the file backwards in blocks.
func (l *logReader) seekTail() error {
	end, err := l.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	lines := 0
	for pos := end; pos > 0; {
		n := min(pos, block)
		pos -= n
		if _, err := l.file.ReadAt(buf[:n], pos); err != nil {
			return err
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] != '\n' || pos+i == end-1 || !l.full(pos+i+1, end) {
				continue
			}
			if lines++; lines == l.tail {
				_, err := l.file.Seek(pos+i+1, io.SeekStart)
				return err
			}
		}
	}
	if l.tail == 0 {
		return nil
	}
	_, err = l.file.Seek(0, io.SeekStart)
	return err
}

// full reports whether the line before the one at offset was complete, so that a line begins there.
func (l *logReader) full(offset, end int64) bool {
	if offset >= end {
		return true
	}
	start := max(0, offset-(32<<10)) // longer than any entry
	buf := make([]byte, offset-start)
	if _, err := l.file.ReadAt(buf, start); err != nil {
		return true
	}
	line := bytes.TrimSuffix(buf, []byte("\n"))
	line = line[bytes.LastIndexByte(line, '\n')+1:]
	_, tag, _ := splitEntry(line)
	return tag != "P"
}

// rotated goes on with the new file when the path names another one now.
func (l *logReader) rotated() error {
	now, err := os.Stat(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // between the renaming and the reopening
	}
	if err != nil {
		return err
	}
	mine, err := l.file.Stat()
	if err != nil || os.SameFile(now, mine) {
		return err
	}
	if err := l.copy(); err != nil {
		return err
	}
	l.file.Close()
	l.tail = -1
	return l.open()
}

// copy prints the complete lines up to the end of the file.
func (l *logReader) copy() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := l.file.Read(buf)
		data := append(l.rest, buf[:n]...)
		for {
			i := bytes.IndexByte(data, '\n')
			if i < 0 {
				break
			}
			if err := l.entry(data[:i]); err != nil {
				return err
			}
			data = data[i+1:]
		}
		l.rest = append([]byte(nil), data...)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
}

// entry prints one line of the file.
func (l *logReader) entry(line []byte) error {
	stream, tag, text := splitEntry(line)
	w := l.out
	if stream == "stderr" {
		w = l.err
	}
	if l.timestamps && !l.inLine {
		stamp, _, _ := bytes.Cut(line, []byte(" "))
		text = append(append(append([]byte(nil), stamp...), ' '), text...)
	}
	l.inLine = tag == "P"
	if !l.inLine {
		text = append(append([]byte(nil), text...), '\n')
	}
	_, err := w.Write(text)
	return err
}

// splitEntry takes an entry apart. What is none is printed whole.
func splitEntry(line []byte) (stream, tag string, text []byte) {
	parts := bytes.SplitN(line, []byte(" "), 4)
	if len(parts) < 3 {
		return "stdout", "F", line
	}
	if len(parts) == 4 {
		text = parts[3]
	}
	t, _, _ := bytes.Cut(parts[2], []byte(":"))
	return string(parts[1]), string(t), text
}
