package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// streamClient trusts whoever answers at a URL that the server itself gave out on its own socket, as kubelets do: the
// certificate's name is that of the way by which others come.
var streamClient = &http.Client{Transport: &http.Transport{
	TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
}}

// session connects this command's stdio to a streaming URL, by version 5 of the channel protocol, and returns
// the exit code that comes at its end.
func (a *app) session(ctx context.Context, url string, stdin, output, tty bool) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	//nolint:bodyclose // the library's documentation: it never needs to be
	conn, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{Subprotocols: []string{"v5.channel.k8s.io"}, HTTPClient: streamClient})
	if err != nil {
		return 0, fmt.Errorf("connect to stream: %w", err)
	}
	defer func() { _ = conn.CloseNow() }() // closed already where all went well
	conn.SetReadLimit(-1)
	if f := a.terminal(); tty && f != nil {
		restore, err := raw(ctx, f, conn)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	if in := a.input(stdin); in != nil {
		go func() { _ = send(ctx, conn, in) }() // ends with the process at the latest: reading a terminal cannot be interrupted
	}
	out, errOut := a.out, a.err
	if !output {
		out, errOut = io.Discard, io.Discard
	}
	return receive(ctx, conn, out, errOut)
}

// send copies standard input, and tells its end.
func send(ctx context.Context, conn *websocket.Conn, in io.Reader) error {
	buf := make([]byte, 1+32<<10)
	for {
		n, err := in.Read(buf[1:])
		if n > 0 {
			if err := conn.Write(ctx, websocket.MessageBinary, buf[:1+n]); err != nil { // channel 0
				return err
			}
		}
		if err != nil {
			return conn.Write(ctx, websocket.MessageBinary, []byte{255, 0})
		}
	}
}

// receive copies the outputs until the server closes, and reads the result.
func receive(ctx context.Context, conn *websocket.Conn, out, errOut io.Writer) (int, error) {
	var result []byte
	for {
		_, r, err := conn.Reader(ctx)
		if websocket.CloseStatus(err) == websocket.StatusNormalClosure && len(result) > 0 {
			return exitStatus(result)
		}
		if err != nil {
			return 0, fmt.Errorf("read stream: %w", err)
		}
		var channel [1]byte
		if _, err := io.ReadFull(r, channel[:]); err != nil {
			continue
		}
		switch channel[0] {
		case 1:
			_, err = io.Copy(out, r)
		case 2:
			_, err = io.Copy(errOut, r)
		case 3:
			var b []byte
			b, err = io.ReadAll(r)
			result = append(result, b...)
		}
		if err != nil {
			return 0, fmt.Errorf("copy stream: %w", err)
		}
	}
}

// exitStatus reads the Status that ends a stream.
func exitStatus(b []byte) (int, error) {
	var st struct {
		Status, Reason, Message string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return 0, fmt.Errorf("read result of stream: %w", err)
	}
	if st.Status == "Success" {
		return 0, nil
	}
	for _, c := range st.Details.Causes {
		if code, err := strconv.Atoi(c.Message); c.Reason == "ExitCode" && err == nil {
			return code, nil
		}
	}
	return 0, errors.New(st.Message)
}

// raw hands keys over unread, and the terminal's size whenever it changes.
func raw(ctx context.Context, f *os.File, conn *websocket.Conn) (restore func(), err error) {
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("switch terminal to raw: %w", err)
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	changed <- unix.SIGWINCH // the first size
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				if w, h, err := term.GetSize(int(f.Fd())); err == nil {
					size, _ := json.Marshal(map[string]int{"Width": w, "Height": h}) // numbers always encode
					_ = conn.Write(ctx, websocket.MessageBinary, append([]byte{4}, size...))
				}
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		_ = term.Restore(int(f.Fd()), old)
	}, nil
}
