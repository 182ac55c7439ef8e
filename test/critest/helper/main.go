// Command helper gives the conformance suite's look-alike images what a busybox has not. It takes its
// personality from the name it is called by.
//
//	nginx   an HTTP server whose process title is that of an nginx master
//	httpd   an HTTP server that names httpd in its log
//	nnp     prints its effective user; meant to be setuid root
//	ipcs    lists System V shared memory segments
//	pgrep   prints the processes whose command name contains a word
//	pause   sleeps until TERM or INT
package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const title = "nginx: master process "

func main() {
	name := filepath.Base(os.Args[0])
	if strings.HasPrefix(os.Args[0], title) {
		name = "nginx-master"
	}
	run, ok := map[string]func() error{
		"nginx": becomeMaster, "nginx-master": nginx, "httpd": httpd, "nnp": nnp, "ipcs": ipcs, "pgrep": pgrep, "pause": pause,
	}[name]
	if !ok {
		run = func() error { return errors.New("no such personality") }
	}
	err := run()
	if err != nil && !errors.Is(err, errNothing) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	}
	if err != nil {
		os.Exit(1)
	}
}

// errNothing ends pgrep as the real one ends that found nothing: without a word.
var errNothing = errors.New("nothing found")

// becomeMaster executes this program again under the title that a real nginx shows in /proc/1/cmdline; by
// its real path, so that the command name stays "nginx".
func becomeMaster() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, []string{title + strings.Join(os.Args, " ")}, os.Environ())
}

func nginx() error {
	if err := os.MkdirAll("/var/run", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/var/run/nginx.pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	return serve("Welcome to nginx!\n")
}

func httpd() error {
	fmt.Fprintf(os.Stderr, "[core:notice] [pid %d] httpd: resuming normal operations\n", os.Getpid())
	return serve("httpd: It works!\n")
}

// serve answers every HTTP/1 request with 200 and the body until it is told to stop.
func serve(body string) error {
	port := os.Getenv("LISTEN_PORT")
	if port == "" {
		port = "80"
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		waitForStop()
		os.Exit(0)
	}()
	answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			request := ""
			for s := bufio.NewScanner(c); s.Scan() && s.Text() != ""; {
				if request == "" {
					request = s.Text()
				}
			}
			fmt.Printf("%s %q 200\n", c.RemoteAddr(), request)
			_, _ = c.Write([]byte(answer))
		}()
	}
}

func waitForStop() {
	stop := make(chan os.Signal, 4)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGWINCH)
	<-stop
}

func pause() error {
	waitForStop()
	return nil
}

func nnp() error {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
	return nil
}

func ipcs() error {
	f, err := os.Open("/proc/sysvipc/shm")
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Printf("\n------ Shared Memory Segments --------\n%-10s %-10s %-10s %-10s %-10s %-10s\n", "key", "shmid", "owner", "perms", "bytes", "nattch")
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text()) // key shmid perms size cpid lpid nattch uid …
		if len(w) < 9 || w[0] == "key" {
			continue
		}
		key, err := strconv.ParseInt(w[0], 10, 64)
		if err != nil {
			return err
		}
		fmt.Printf("0x%08x %-10s %-10s %-10s %-10s %-10s\n", uint32(key), w[1], w[7], w[2], w[3], w[6])
	}
	return nil
}

func pgrep() error {
	if len(os.Args) != 2 {
		return errors.New("usage: pgrep WORD")
	}
	found := false
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		comm, err := os.ReadFile(d + "/comm")
		if err == nil && filepath.Base(d) != strconv.Itoa(os.Getpid()) && strings.Contains(string(comm), os.Args[1]) {
			fmt.Println(filepath.Base(d))
			found = true
		}
	}
	if !found {
		os.Exit(1) // silently, as the real one
	}
	return nil
}
