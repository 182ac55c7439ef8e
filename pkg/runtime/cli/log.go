package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// logger writes what a person or the caller is to know, in the two formats that callers of runc parse.
type logger struct {
	file   string // "" for standard error
	format string
	debug  bool
	out    *os.File
}

// open opens the file and checks the format.
func (l *logger) open() error {
	if l.format != "" && l.format != "text" && l.format != "json" {
		return fmt.Errorf("invalid log-format: %s", l.format)
	}
	if l.file == "" {
		return nil
	}
	f, err := os.OpenFile(l.file, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o644)
	if err == nil {
		l.out = f
	}
	return err
}

// fatal reports the error that the process ends with. With a log file it goes to standard error too, bare.
func (l *logger) fatal(err error) {
	l.write("error", err.Error())
	if l.out != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// warn reports what did not stop us.
func (l *logger) warn(format string, args ...any) { l.write("warning", fmt.Sprintf(format, args...)) }

// debugf reports what is going on, where that was asked for.
func (l *logger) debugf(format string, args ...any) {
	if l.debug {
		l.write("debug", fmt.Sprintf(format, args...))
	}
}

func (l *logger) write(level, msg string) {
	out := l.out
	if out == nil {
		out = os.Stderr
	}
	now := time.Now().Format(time.RFC3339)
	switch {
	case l.format == "json":
		line, _ := json.Marshal(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{level, msg, now})
		_, _ = out.Write(append(line, '\n'))
	case isTerminal(out):
		fmt.Fprintf(out, "%s[0000] %s\n", strings.ToUpper(level[:4]), msg)
	default:
		fmt.Fprintf(out, "time=%q level=%s msg=%s\n", now, level, strconv.Quote(msg))
	}
}

// isTerminal reports whether f is one.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
