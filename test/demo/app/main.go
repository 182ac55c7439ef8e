// Command app is the only program in the demo's image: a web server, and a client that reads it.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "web":
		err = web(os.Args[2])
	case len(os.Args) > 2 && os.Args[1] == "read":
		err = read(os.Args[2:])
	case len(os.Args) == 2 && os.Args[1] == "whoami":
		host, _ := os.Hostname()
		fmt.Printf("uid %d, pid %d, host %s\n", os.Getuid(), os.Getpid(), host)
	default:
		err = errors.New("usage: app web ADDRESS | read URL... | whoami")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func web(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("request %s from %s\n", r.URL.Path, r.RemoteAddr)
		fmt.Fprintln(w, "hello from the pod")
	})}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		fmt.Println("stopping")
		s.Close()
	}()
	fmt.Println("listening on", address)
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func read(urls []string) error {
	client := http.Client{Timeout: 3 * time.Second}
	for _, u := range urls {
		r, err := client.Get(u)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		r.Body.Close()
		if err != nil {
			return err
		}
		fmt.Printf("%s: %s", u, body)
	}
	return nil
}
